//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/ctfleet/ctfleet/internal/host"
)

// The addresses behind every firewall: benchmark and documentation prefixes, which
// nothing on the Internet uses.
var (
	ClientPrefix4 = netip.MustParsePrefix("198.18.0.0/15")
	ClientPrefix6 = netip.MustParsePrefix("2001:db8:18::/48")
	ServerPrefix4 = netip.MustParsePrefix("203.0.113.0/24")
	ServerPrefix6 = netip.MustParsePrefix("2001:db8:113::/48")
)

// MaxFirewalls is how many fit into one lab: each takes four addresses of 192.0.2.0/24 for its links.
const MaxFirewalls = 64

// Spec describes a lab.
type Spec struct {
	Firewalls []FirewallSpec
}

// FirewallSpec describes one firewall.
type FirewallSpec struct {
	Name string
	IPv6 bool // forward IPv6 as well as IPv4

	// Masquerade replaces the source of what leaves to the server side by the
	// firewall's own address there (SNAT).
	Masquerade bool
	// DNAT lists the addresses that stand for another one on the server side.
	DNAT []DNAT

	// Sysctls are set in the firewall's namespace, under the names that sysctl(8)
	// uses, such as "net.netfilter.nf_conntrack_acct": "1". nf_conntrack_max cannot
	// be set in a namespace, not even by root.
	Sysctls map[string]string
}

// DNAT sends what is addressed to From, in one protocol, to To.
type DNAT struct {
	Protocol uint8          // IP protocol number, 6 for TCP and 17 for UDP
	From, To netip.AddrPort // both of one address family; within the server prefix
}

// Lab is a running virtual fleet.
type Lab struct {
	firewalls []*Firewall
}

// Firewall is one firewall of a lab with what is connected to it.
type Firewall struct {
	Name string
	IPv6 bool

	// The firewall's own namespace and those at its two sides.
	NS, Client, Server *host.Namespace

	// The links to the firewall, as the client's and the server's side sees them.
	ClientLink, ServerLink Link

	// Addrs are the firewall's own addresses on its links.
	Addrs []netip.Addr
}

// New builds the lab. It needs the rights that [Permitted] checks.
func New(ctx context.Context, spec Spec) (*Lab, error) {
	if len(spec.Firewalls) > MaxFirewalls {
		return nil, fmt.Errorf("build lab: %d firewalls asked for, at most %d fit", len(spec.Firewalls), MaxFirewalls)
	}
	l := &Lab{}
	for i, fw := range spec.Firewalls {
		err := ctx.Err()
		if err == nil && l.Firewall(fw.Name) != nil {
			err = errors.New("another firewall has this name")
		}
		if err == nil {
			err = l.add(ctx, i, fw)
		}
		if err != nil {
			return nil, fmt.Errorf("build lab: firewall %q: %w", fw.Name, errors.Join(err, l.Close()))
		}
	}
	return l, nil
}

// Firewall returns the firewall called name, nil if there is none.
func (l *Lab) Firewall(name string) *Firewall {
	for _, fw := range l.firewalls {
		if fw.Name == name {
			return fw
		}
	}
	return nil
}

// Firewalls returns all firewalls in the order of the spec.
func (l *Lab) Firewalls() []*Firewall {
	return l.firewalls
}

// Close lets go of the namespaces. The kernel takes them down, with links, rules
// and entries, once no socket is left in them.
func (l *Lab) Close() error {
	var errs []error
	for _, fw := range l.firewalls {
		errs = append(errs, fw.NS.Close(), fw.Client.Close(), fw.Server.Close())
	}
	return errors.Join(errs...)
}

// add builds one firewall. It is kept in l from the first namespace on, so that
// Close finds what a failure leaves.
func (l *Lab) add(ctx context.Context, index int, spec FirewallSpec) error {
	fw := &Firewall{Name: spec.Name, IPv6: spec.IPv6}
	l.firewalls = append(l.firewalls, fw)
	for _, ns := range []**host.Namespace{&fw.NS, &fw.Client, &fw.Server} {
		var err error
		if *ns, err = host.NewNamespace(); err != nil {
			return err
		}
	}
	for _, end := range []*host.Namespace{fw.NS, fw.Client, fw.Server} {
		if err := prepare(end, spec.IPv6); err != nil {
			return err
		}
	}
	if err := fw.connect(ctx, index); err != nil {
		return err
	}
	if err := fw.addRules(spec); err != nil {
		return err
	}
	for _, side := range []*host.Namespace{fw.Client, fw.Server} {
		if err := swallowStamped(side); err != nil {
			return err
		}
	}
	// Those of conntrack exist only once the rules have turned it on.
	return setSysctls(fw.NS, spec.Sysctls)
}

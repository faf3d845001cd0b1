//go:build linux

package conntrack

import (
	"errors"
	"fmt"

	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// ErrUnknown is wrapped where there is no way to tell.
var ErrUnknown = errors.New("cannot be told on this host")

// Numbers of linux/netfilter/nfnetlink_hook.h.
const (
	subsysHook = 12 // NFNL_SUBSYS_HOOK

	hookNum      = 1
	hookPriority = 2
	hookFunction = 4
	hookChain    = 6

	preRouting        = 0    // NF_INET_PRE_ROUTING
	priorityConntrack = -200 // NF_IP_PRI_CONNTRACK, and the same for IPv6
)

// Enabled reports for each family whether connection tracking is on in ns. It is
// off in a new namespace, and stays off until something needs it: a rule that
// looks at ct state, a NAT rule, a flowtable. Until then the table stays empty
// and no event ever comes.
//
// Where the kernel can say, it is asked for what decides: whether conntrack's
// functions hang in the namespace's prerouting hook. The kernel puts them there
// with the first user, whoever that is, and takes them away with the last. That
// needs Linux 5.14 and CONFIG_NETFILTER_NETLINK_HOOK. Elsewhere the rules are
// read instead. They miss users that are no rules of nftables (Open vSwitch,
// tc, IPVS), so off means there: no rule asks for it. ErrUnknown is returned
// where not even that can be told.
func Enabled(ns *host.Namespace) (ipv4, ipv6 bool, err error) {
	ipv4, ipv6, err = enabledByHooks(ns)
	if errors.Is(err, ErrUnknown) {
		ipv4, ipv6, err = enabledByRuleset(ns)
	}
	if err != nil {
		return false, false, fmt.Errorf("find out whether tracking is on: %w", err)
	}
	return ipv4, ipv6, nil
}

func enabledByHooks(ns *host.Namespace) (ipv4, ipv6 bool, err error) {
	conn, err := openQuery(ns)
	if err != nil {
		return false, false, err
	}
	if ipv4, err = hooked(conn, netfilter.ProtoIPv4); err == nil {
		ipv6, err = hooked(conn, netfilter.ProtoIPv6)
	}
	return ipv4, ipv6, errors.Join(err, conn.Close())
}

func hooked(conn *netfilter.Conn, family netfilter.ProtoFamily) (bool, error) {
	hook := netfilter.Attribute{Type: hookNum}
	hook.PutUint32(preRouting)
	hooks, err := query(conn, netfilter.Header{SubsystemID: subsysHook, Family: family}, hook)
	switch {
	case errors.Is(err, unix.ENOENT): // nothing at all hangs there
		return false, nil
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP): // nfnetlink knows no such subsystem, or no such family
		return false, fmt.Errorf("%w: %w", ErrUnknown, err)
	case err != nil:
		return false, err
	}
	for _, msg := range hooks {
		_, attrs, err := netfilter.UnmarshalNetlink(msg)
		if err != nil {
			return false, err
		}
		if isConntrack(attrs) {
			return true, nil
		}
	}
	return false, nil
}

// isConntrack recognizes ipv4_conntrack_in and ipv6_conntrack_in. A kernel
// without symbol names still tells the priority, at which nothing else but
// somebody's chain could be, and chains describe themselves.
func isConntrack(attrs []netfilter.Attribute) bool {
	var name string
	atPriority, chain := false, false
	for _, a := range attrs {
		switch a.Type {
		case hookFunction:
			name = text(a.Data)
		case hookPriority:
			atPriority = len(a.Data) == 4 && int32(network.Uint32(a.Data)) == priorityConntrack
		case hookChain:
			chain = true
		}
	}
	if name != "" {
		return name == "ipv4_conntrack_in" || name == "ipv6_conntrack_in"
	}
	return atPriority && !chain
}

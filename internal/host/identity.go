package host

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Identity are the addresses without which this host is lost.
type Identity struct {
	Addresses []netip.Addr // its own, loopback included
	Gateways  []netip.Addr // next hops of its routes
	Resolvers []netip.Addr // from /etc/resolv.conf
}

// Identify reads the addresses and routes of ns (nil: the process's own).
func Identify(ns *Namespace) (Identity, error) {
	var id Identity
	err := ns.Do(func() error {
		addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			if ip, ok := netip.AddrFromSlice(a.IP); ok {
				id.Addresses = append(id.Addresses, ip.Unmap())
			}
		}
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if ip, ok := netip.AddrFromSlice(r.Gw); ok {
				id.Gateways = append(id.Gateways, ip.Unmap())
			}
			for _, hop := range r.MultiPath {
				if ip, ok := netip.AddrFromSlice(hop.Gw); ok {
					id.Gateways = append(id.Gateways, ip.Unmap())
				}
			}
		}
		return nil
	})
	if err != nil {
		return id, fmt.Errorf("identify host: %w", err)
	}
	id.Resolvers, err = readResolvers("/etc/resolv.conf")
	for _, list := range []*[]netip.Addr{&id.Addresses, &id.Gateways, &id.Resolvers} {
		slices.SortFunc(*list, netip.Addr.Compare)
		*list = slices.Compact(*list)
	}
	return id, err
}

func readResolvers(path string) ([]netip.Addr, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("identify host: %w", err)
	}
	defer f.Close()
	var out []netip.Addr
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0] != "nameserver" {
			continue
		}
		if a, err := netip.ParseAddr(words[1]); err == nil {
			out = append(out, a.WithZone("").Unmap())
		}
	}
	return out, nil
}

// NetAdmin reports whether this process holds CAP_NET_ADMIN, without which the
// kernel shows nobody its connection table.
func NetAdmin() bool {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && caps&(1<<unix.CAP_NET_ADMIN) != 0
		}
	}
	return false
}

// Name is the default firewall name: the full host name, in lower case, with
// dots and whatever else a name cannot hold turned to dashes.
func Name() string {
	h, err := os.Hostname()
	if err != nil || h == "" {
		return "firewall"
	}
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '_' {
			return r
		}
		return '-'
	}, strings.ToLower(h))
	name = strings.TrimLeft(name, "-_")
	return name[:min(len(name), 63)]
}

package host

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Identify reads the addresses and routes of ns (nil: the process's own).
func Identify(ns *Namespace) (Identity, error) {
	var id Identity
	err := ns.Do(func() error { return id.read() })
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

// read fills in the addresses and gateways of the calling thread's namespace.
func (id *Identity) read() error {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			id.Addresses = append(id.Addresses, ip.Unmap())
		}
	}
	// Of every table: a firewall with several uplinks routes by policy. One by
	// one: a table may hold a million routes, which have few gateways.
	gateways := map[netip.Addr]struct{}{}
	routes := func() ([]struct{}, error) {
		return nil, netlink.RouteListFilteredIter(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
			hop(gateways, r.Gw, r.Via)
			for _, h := range r.MultiPath {
				hop(gateways, h.Gw, h.Via)
			}
			return true
		})
	}
	if _, err := whole(routes); err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	id.Gateways = slices.Collect(maps.Keys(gateways))
	return nil
}

// hop adds a next hop; via is one of another family (IPv4 by way of IPv6).
func hop(set map[netip.Addr]struct{}, ip net.IP, via netlink.Destination) {
	if a, ok := netip.AddrFromSlice(ip); ok {
		set[a.Unmap()] = struct{}{}
	}
	if v, ok := via.(*netlink.Via); ok {
		hop(set, v.Addr, nil)
	}
}

// whole lists again when the kernel's list changed while it was read.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	const tries = 5
	for try := 1; ; try++ {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == tries {
			return out, err
		}
	}
}

// NetAdmin reports whether this process holds CAP_NET_ADMIN, without which the
// kernel shows nobody its connection table.
func NetAdmin() bool {
	data, err := os.ReadFile("/proc/self/status")
	return err == nil && netAdmin(string(data))
}

func netAdmin(status string) bool {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			caps, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
			return err == nil && caps&(1<<unix.CAP_NET_ADMIN) != 0
		}
	}
	return false
}

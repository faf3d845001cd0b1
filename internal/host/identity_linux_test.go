package host

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestIdentify reads a namespace with addresses of both families, a default
// route, a second uplink in a table of its own, a route over two hops, and one
// for IPv4 by way of IPv6.
func TestIdentify(t *testing.T) {
	ns := newNamespace(t)
	ip := net.ParseIP
	network := func(s string) *net.IPNet {
		_, n, err := net.ParseCIDR(s)
		if err != nil {
			panic(err)
		}
		return n
	}
	err := ns.Do(func() error {
		link := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "up0"}, PeerName: "up1"}
		if err := netlink.LinkAdd(link); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		peer, err := netlink.LinkByName("up1")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(lo), netlink.LinkSetUp(peer), netlink.LinkSetUp(link)); err != nil {
			return err
		}
		for _, s := range []string{"192.0.2.1/24", "192.0.2.2/32", "2001:db8::1/64"} {
			addr, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(link, addr); err != nil {
				return err
			}
		}
		index := link.Attrs().Index
		for _, r := range []netlink.Route{
			{LinkIndex: index, Gw: ip("192.0.2.254")},
			{LinkIndex: index, Dst: network("2001:db8:9::/48"), Gw: ip("2001:db8::ffff")},
			{LinkIndex: index, Gw: ip("192.0.2.253"), Table: 100},
			{Dst: network("198.18.0.0/16"), MultiPath: []*netlink.NexthopInfo{{LinkIndex: index, Gw: ip("192.0.2.251")}, {LinkIndex: index, Gw: ip("192.0.2.252")}}},
			{LinkIndex: index, Dst: network("203.0.113.0/24"), Via: &netlink.Via{AddrFamily: netlink.FAMILY_V6, Addr: ip("2001:db8::fffe")}},
			{LinkIndex: index, Dst: network("198.19.0.0/16"), Gw: ip("192.0.2.254")}, // a gateway twice
		} {
			if err := netlink.RouteAdd(&r); err != nil {
				return fmt.Errorf("%s: %w", r, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	id, err := Identify(ns)
	if err != nil {
		t.Fatal(err)
	}
	f := func(what string, got []netip.Addr, want ...string) {
		t.Helper()
		// The kernel gives each link a link-local address by itself.
		got = slices.DeleteFunc(slices.Clone(got), netip.Addr.IsLinkLocalUnicast)
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		if !slices.Equal(text, want) {
			t.Errorf("%s: %v, want %v", what, text, want)
		}
	}
	f("addresses", id.Addresses, "127.0.0.1", "192.0.2.1", "192.0.2.2", "::1", "2001:db8::1")
	f("gateways", id.Gateways, "192.0.2.251", "192.0.2.252", "192.0.2.253", "192.0.2.254", "2001:db8::fffe", "2001:db8::ffff")

	closed := newNamespace(t)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Identify(closed); err == nil || !strings.Contains(err.Error(), "identify host") {
		t.Errorf("a closed namespace: %v", err)
	}
}

func TestNetAdmin(t *testing.T) {
	f := func(status string, want bool) {
		t.Helper()
		if got := netAdmin(status); got != want {
			t.Errorf("%q: %t", status, got)
		}
	}
	f("Name:\tx\nCapPrm:\t0000000000001000\nCapEff:\t0000000000001000\n", true)
	f("CapPrm:\t0000000000001000\nCapEff:\t0000000000000000\n", false) // permitted is not effective
	f("CapEff:\t000001ffffffffff\n", true)
	f("CapEff:\t000001ffffffefff\n", false)
	f("CapEff:\tnone\n", false)
	f("", false)
}

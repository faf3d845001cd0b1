//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// Link is one end of a link between a side and its firewall.
type Link struct {
	Name  string
	Index int              // interface index in the side's namespace
	MAC   net.HardwareAddr // of this end
	Peer  net.HardwareAddr // of the firewall's end
}

// Dropped returns how many packets that were sent over the link from ns, the
// namespace of the side, never reached the firewall. The kernel drops them when the
// receiving processor's queue is full (net.core.netdev_max_backlog).
func (l Link) Dropped(ns *host.Namespace) (uint64, error) {
	h, err := routes(ns)
	if err != nil {
		return 0, err
	}
	defer h.Close()
	link, err := h.LinkByIndex(l.Index)
	if err != nil {
		return 0, fmt.Errorf("read counters of link %s: %w", l.Name, err)
	}
	return link.Attrs().Statistics.TxDropped, nil
}

// Names of the links: uplink at a side, and in the firewall the name of the side that it leads to.
const (
	uplink     = "uplink"
	clientLink = "client"
	serverLink = "server"
)

// side is one of the two links of a firewall with all that goes over it.
type side struct {
	ns       *host.Namespace
	link     string           // name at the firewall
	mac      net.HardwareAddr // of the firewall's end
	peerMAC  net.HardwareAddr
	addr     []netip.Prefix // of the firewall's end, one per family
	peerAddr []netip.Prefix
	local    []netip.Prefix // what lives at this side
	remote   []netip.Prefix // what it reaches through the firewall
}

// connect lays the two links of the index-th firewall and the routes over them.
func (fw *Firewall) connect(ctx context.Context, index int) error {
	families := 1
	if fw.IPv6 {
		families = 2
	}
	clients := []netip.Prefix{ClientPrefix4, ClientPrefix6}[:families]
	servers := []netip.Prefix{ServerPrefix4, ServerPrefix6}[:families]
	sides := []side{
		{ns: fw.Client, link: clientLink, local: clients, remote: servers},
		{ns: fw.Server, link: serverLink, local: servers, remote: clients},
	}
	for i := range sides {
		s := &sides[i]
		n := 2*index + i // of the link, counted through the lab
		// Locally administered addresses: the link's number, then which end.
		s.mac = net.HardwareAddr{0x02, 0, 0, 0, byte(n), 1}
		s.peerMAC = net.HardwareAddr{0x02, 0, 0, 0, byte(n), 2}
		near, far := linkAddrs(n)
		s.addr, s.peerAddr = near[:families], far[:families]
		for _, a := range s.addr {
			fw.Addrs = append(fw.Addrs, a.Addr())
		}
	}
	for _, s := range sides {
		if err := s.connect(ctx, fw.NS); err != nil {
			return fmt.Errorf("connect %s side: %w", s.link, err)
		}
	}
	var err error
	if fw.ClientLink, err = sides[0].peerLink(); err != nil {
		return err
	}
	fw.ServerLink, err = sides[1].peerLink()
	return err
}

// linkAddrs returns the addresses of both ends of link n, first the firewall's: a
// /31 of 192.0.2.0/24 and a /127 of a /64 of 2001:db8:ffff::/48.
func linkAddrs(n int) (near, far []netip.Prefix) {
	for end, list := range []*[]netip.Prefix{&near, &far} {
		v4 := netip.AddrFrom4([4]byte{192, 0, 2, byte(2*n + end)})
		v6 := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0xff, 0xff, 0, byte(n), 15: byte(2 + end)}
		*list = []netip.Prefix{netip.PrefixFrom(v4, 31), netip.PrefixFrom(netip.AddrFrom16(v6), 127)}
	}
	return near, far
}

// connect creates the link and configures both ends.
func (s *side) connect(ctx context.Context, firewall *host.Namespace) error {
	near, err := routes(firewall)
	if err != nil {
		return err
	}
	defer near.Close()
	far, err := routes(s.ns)
	if err != nil {
		return err
	}
	defer far.Close()

	veth := netlink.NewVeth(netlink.LinkAttrs{Name: s.link, HardwareAddr: s.mac})
	veth.PeerName, veth.PeerHardwareAddr = uplink, s.peerMAC
	veth.PeerNamespace = netlink.NsFd(s.ns.FD())
	if err := near.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth pair: %w", err)
	}
	if err := configure(near, s.link, s.addr, s.peerAddr, s.peerMAC, s.local); err != nil {
		return fmt.Errorf("firewall's end: %w", err)
	}
	if err := configure(far, uplink, s.peerAddr, s.addr, s.mac, s.remote); err != nil {
		return fmt.Errorf("far end: %w", err)
	}
	if err := anyIP(far, s.local); err != nil {
		return err
	}
	if err := awaitUp(ctx, near, s.link); err != nil {
		return err
	}
	return awaitUp(ctx, far, uplink)
}

func (s *side) peerLink() (Link, error) {
	h, err := routes(s.ns)
	if err != nil {
		return Link{}, err
	}
	defer h.Close()
	l, err := h.LinkByName(uplink)
	if err != nil {
		return Link{}, fmt.Errorf("find link of %s side: %w", s.link, err)
	}
	return Link{Name: uplink, Index: l.Attrs().Index, MAC: s.peerMAC, Peer: s.mac}, nil
}

// routes opens a route socket in ns.
func routes(ns *host.Namespace) (*netlink.Handle, error) {
	var h *netlink.Handle
	err := ns.Do(func() (err error) {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open route socket: %w", err)
	}
	return h, nil
}

// configure gives the link its addresses, its neighbour for good, and the prefixes
// that lie behind that neighbour.
func configure(h *netlink.Handle, name string, addrs, peers []netip.Prefix, peerMAC net.HardwareAddr, behind []netip.Prefix) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link: %w", err)
	}
	for _, a := range addrs {
		addr := &netlink.Addr{IPNet: ipNet(a)}
		if a.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // usable at once; nobody else is on the link
		}
		if err := h.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("add address %s: %w", a, err)
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	index := link.Attrs().Index
	for i, p := range peers {
		neigh := &netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, IP: p.Addr().AsSlice(), HardwareAddr: peerMAC}
		if err := h.NeighSet(neigh); err != nil {
			return fmt.Errorf("set neighbour %s: %w", p.Addr(), err)
		}
		route := &netlink.Route{LinkIndex: index, Dst: ipNet(behind[i]), Gw: p.Addr().AsSlice()}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add route to %s: %w", behind[i], err)
		}
	}
	return nil
}

// awaitUp waits until the link can send. The end of a veth pair that is set up
// first gets its carrier with the second; the kernel then makes it ready from a
// work queue (linkwatch), and until that has run drops what it is given to send.
func awaitUp(ctx context.Context, h *netlink.Handle, name string) error {
	for {
		link, err := h.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find link: %w", err)
		}
		if link.Attrs().OperState == netlink.OperUp {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for link %s: %w", name, ctx.Err())
		case <-time.After(time.Millisecond):
		}
	}
}

// anyIP makes the namespace take every address of the prefixes for its own.
func anyIP(h *netlink.Handle, prefixes []netip.Prefix) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	for _, p := range prefixes {
		route := &netlink.Route{
			LinkIndex: lo.Attrs().Index, Dst: ipNet(p),
			Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: unix.RT_SCOPE_HOST,
		}
		if err := h.RouteAdd(route); err != nil {
			return fmt.Errorf("add local route for %s: %w", p, err)
		}
	}
	return nil
}

// prepare sets up a new namespace before it has links, whose settings are copied
// from the defaults at that moment.
func prepare(ns *host.Namespace, ipv6 bool) error {
	values := map[string]string{
		"net.ipv4.ip_forward": "1",
		// The kernel takes the larger of all and the link's own.
		"net.ipv4.conf.all.rp_filter":     "0",
		"net.ipv4.conf.default.rp_filter": "0",
	}
	_, err := os.Stat("/proc/sys/net/ipv6")
	switch hasIPv6 := err == nil; {
	case ipv6 && !hasIPv6:
		return fmt.Errorf("IPv6 asked for, and this kernel runs without it: %w", err)
	case ipv6:
		values["net.ipv6.conf.all.forwarding"] = "1"
		values["net.ipv6.conf.default.addr_gen_mode"] = "1" // no link-local address, hence no router solicitations
		values["net.ipv6.conf.default.accept_dad"] = "0"
		// IPv4 lets a program bind to any address that has a local route, IPv6 only
		// to those of a link, unless told so.
		values["net.ipv6.ip_nonlocal_bind"] = "1"
	case hasIPv6:
		values["net.ipv6.conf.default.disable_ipv6"] = "1"
	}
	if err := setSysctls(ns, values); err != nil {
		return err
	}
	return loopbackUp(ns)
}

func loopbackUp(ns *host.Namespace) error {
	h, err := routes(ns)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback: %w", err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

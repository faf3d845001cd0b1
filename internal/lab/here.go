//go:build linux

package lab

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
)

// Here makes a firewall of the namespace that the process is in: a container, say, that may
// not create namespaces. It needs CAP_NET_ADMIN, and that the namespace forwards IPv4, which
// is not switched on here: a container has its settings from whoever starts it.
//
// Both of its links lead back into this namespace, where all that arrives is dropped once
// packet sockets have seen it. So there are no clients and no servers but those that
// package traffic's Flood plays, and only IPv4. Close takes the links down and, with
// them, the rules; entries end by themselves.
func Here(ctx context.Context, name string) (*Firewall, func(), error) {
	fw := &Firewall{Name: name}
	undo, err := fw.here(ctx)
	if err != nil {
		undo()
		return nil, nil, fmt.Errorf("make a firewall here: %w", err)
	}
	return fw, undo, nil
}

func (fw *Firewall) here(ctx context.Context) (undo func(), err error) {
	undo = func() {}
	h, err := routes(nil)
	if err != nil {
		return undo, err
	}
	undo = func() {
		for _, name := range []string{clientLink, serverLink} {
			if l, err := h.LinkByName(name); err == nil {
				_ = h.LinkDel(l) // of a namespace that goes with its container
			}
		}
		h.Close()
		if c, err := nftables.New(); err == nil {
			c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab"})
			c.DelTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "lab"})
			_ = c.Flush()
		}
	}
	for n, s := range []struct {
		name   string
		link   *Link
		behind netip.Prefix
	}{{clientLink, &fw.ClientLink, ClientPrefix4}, {serverLink, &fw.ServerLink, ServerPrefix4}} {
		mac, peerMAC := net.HardwareAddr{0x02, 0, 0, 0, byte(n), 1}, net.HardwareAddr{0x02, 0, 0, 0, byte(n), 2}
		near, far := linkAddrs(n)
		fw.Addrs = append(fw.Addrs, near[0].Addr())
		veth := netlink.NewVeth(netlink.LinkAttrs{Name: s.name, HardwareAddr: mac})
		veth.PeerName, veth.PeerHardwareAddr = s.name+"-far", peerMAC
		if err := h.LinkAdd(veth); err != nil {
			return undo, fmt.Errorf("add veth pair %s: %w", s.name, err)
		}
		peer, err := h.LinkByName(veth.PeerName)
		if err != nil {
			return undo, fmt.Errorf("find link %s: %w", veth.PeerName, err)
		}
		*s.link = Link{Name: veth.PeerName, Index: peer.Attrs().Index, MAC: peerMAC, Peer: mac}
		if err := swallow(veth.PeerName); err != nil {
			return undo, err
		}
		if err := h.LinkSetUp(peer); err != nil {
			return undo, fmt.Errorf("set link %s up: %w", veth.PeerName, err)
		}
		if err := configure(h, s.name, near[:1], far[:1], peerMAC, []netip.Prefix{s.behind}); err != nil {
			return undo, fmt.Errorf("link %s: %w", s.name, err)
		}
		for _, link := range []string{s.name, veth.PeerName} {
			if err := awaitUp(ctx, h, link); err != nil {
				return undo, err
			}
		}
	}
	return undo, fw.addRules(FirewallSpec{})
}

// swallow drops all that arrives at a link, behind the packet sockets.
func swallow(link string) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "lab"})
	chain := c.AddChain(&nftables.Chain{
		Name: link, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: link,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("drop what arrives at %s: %w", link, err)
	}
	return nil
}

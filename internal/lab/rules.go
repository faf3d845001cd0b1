//go:build linux

package lab

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// Stamp marks generated packets in their DSCP field, with code points that RFC 2474
// leaves to local use. Both sides of a firewall drop stamped packets as they
// arrive, before their IP stack could answer with an error or a reset that would
// change the firewall's entries. Packets without a stamp are ordinary traffic.
type Stamp uint8

// The stamps that package traffic uses.
const (
	StampSilent Stamp = 0b000011 // wants no answer
	StampAnswer Stamp = 0b000111 // package traffic answers it before it is dropped
)

// addRules writes the firewall's table.
func (fw *Firewall) addRules(spec FirewallSpec) error {
	var in []nftables.ConnOption
	if fw.NS != nil { // to enter the one that we are in takes a right, too
		in = append(in, nftables.WithNetNSFd(fw.NS.FD()))
	}
	c, err := nftables.New(in...)
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "lab"})

	forward := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	// This rule is what turns connection tracking on. Dropping what fits no flow is
	// what most firewalls do.
	c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: append(ctState(expr.CtStateBitINVALID), &expr.Verdict{Kind: expr.VerdictDrop})})

	if len(spec.DNAT) > 0 {
		prerouting := c.AddChain(&nftables.Chain{
			Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		for _, d := range spec.DNAT {
			if err := fw.checkDNAT(d); err != nil {
				return err
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: prerouting, Exprs: dnat(d)})
		}
	}
	if spec.Masquerade {
		postrouting := c.AddChain(&nftables.Chain{
			Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: postrouting, Exprs: append(metaIs(expr.MetaKeyOIFNAME, ifname(serverLink)), &expr.Masq{})})
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables rules: %w", err)
	}
	return nil
}

func (fw *Firewall) checkDNAT(d DNAT) error {
	for _, a := range []netip.Addr{d.From.Addr(), d.To.Addr()} {
		if atServer := ServerPrefix4.Contains(a) || fw.IPv6 && ServerPrefix6.Contains(a); !atServer {
			return fmt.Errorf("DNAT %s to %s: %s is not at the server side", d.From, d.To, a)
		}
	}
	if d.From.Addr().Is4() != d.To.Addr().Is4() {
		return fmt.Errorf("DNAT %s to %s: not one address family", d.From, d.To)
	}
	return nil
}

// swallowStamped makes a side drop stamped packets at its link's ingress hook:
// after packet sockets have seen them, before anything else costs time.
func swallowStamped(ns *host.Namespace) error {
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return fmt.Errorf("open nftables socket: %w", err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyNetdev, Name: "lab"})
	ingress := c.AddChain(&nftables.Chain{
		Name: "ingress", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Device: uplink,
	})
	for _, f := range []struct {
		ethertype uint16
		offset    uint32 // of the two bytes that hold the DSCP, from the network header
		shift     int    // of the DSCP within them
	}{
		{unix.ETH_P_IP, 0, 2},
		{unix.ETH_P_IPV6, 0, 6},
	} {
		for _, stamp := range []Stamp{StampSilent, StampAnswer} {
			rule := metaIs(expr.MetaKeyPROTOCOL, binaryutil.BigEndian.PutUint16(f.ethertype))
			rule = append(rule,
				&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: f.offset, Len: 2},
				&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: binaryutil.BigEndian.PutUint16(0x3f << f.shift), Xor: []byte{0, 0}},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(uint16(stamp) << f.shift)},
				&expr.Verdict{Kind: expr.VerdictDrop},
			)
			c.AddRule(&nftables.Rule{Table: table, Chain: ingress, Exprs: rule})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write ingress rules: %w", err)
	}
	return nil
}

// ctState matches packets in any of the states.
func ctState(states uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(states), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func metaIs(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

// dnat is: meta nfproto F meta l4proto P ip daddr FROM th dport PORT dnat to TO.
func dnat(d DNAT) []expr.Any {
	family, offset := uint32(unix.NFPROTO_IPV4), uint32(16) // of the destination address in the IP header
	if d.From.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	from, to := d.From.Addr().AsSlice(), d.To.Addr().AsSlice()
	rule := metaIs(expr.MetaKeyNFPROTO, []byte{byte(family)})
	rule = append(rule, metaIs(expr.MetaKeyL4PROTO, []byte{d.Protocol})...)
	return append(rule,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(from))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(d.From.Port())},
		&expr.Immediate{Register: 1, Data: to},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(d.To.Port())},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	)
}

// ifname is an interface name as the kernel compares it.
func ifname(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

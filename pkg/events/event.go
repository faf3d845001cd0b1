package events

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Type says what happened to a flow.
type Type uint8

const (
	// New is a flow that a packet created.
	New Type = 1
	// Destroy is the end of a flow.
	Destroy Type = 2
	// Existing is a flow seen in a dump, or one that another program inserted
	// (its netlink port id is not 0: conntrackd on a fail-over, say). It is
	// held in the table but is no new connection.
	Existing Type = 3
)

func (t Type) String() string {
	switch t {
	case New:
		return "NEW"
	case Destroy:
		return "DESTROY"
	case Existing:
		return "EXISTING"
	}
	return fmt.Sprintf("type(%d)", uint8(t))
}

// Flags qualify an event for those who keep the set of live flows. The
// producer knows the identity of each live flow; the flags tell consumers,
// which only add and subtract, whether this event changes that set.
type Flags uint8

const (
	// Unheld: the event does not change the set of its own epoch. A NEW whose
	// flow the dump delivered first, or a DESTROY of a flow never held.
	Unheld Flags = 0x80
	// UnheldBefore: the event does not change the set of the epoch before,
	// which is what consumers show until the new epoch's snapshot is complete.
	UnheldBefore Flags = 0x40

	typeMask = 0x03
	flagMask = Unheld | UnheldBefore
)

// Conntrack status bits (enum ip_conntrack_status, linux/netfilter/nf_conntrack_common.h).
const (
	StatusSeenReply uint16 = 1 << 1
	StatusAssured   uint16 = 1 << 2
	StatusConfirmed uint16 = 1 << 3
	StatusSrcNAT    uint16 = 1 << 4
	StatusDstNAT    uint16 = 1 << 5
	StatusDying     uint16 = 1 << 9
)

// Addr is an IP address as two numbers, the way it is counted and stored:
// IPv6 as its high and low eight bytes, IPv4 as Hi 0 and Lo its 32-bit value.
// The family stands beside it.
type Addr struct{ Hi, Lo uint64 }

// FromNetip converts a; an IPv4-mapped IPv6 address is IPv4.
func FromNetip(a netip.Addr) (addr Addr, ipv6 bool) {
	a = a.Unmap()
	if a.Is4() {
		b := a.As4()
		return Addr{Lo: uint64(binary.BigEndian.Uint32(b[:]))}, false
	}
	b := a.As16()
	return Addr{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}, true
}

// Netip converts back.
func (a Addr) Netip(ipv6 bool) netip.Addr {
	if !ipv6 {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], uint32(a.Lo))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.Hi)
	binary.BigEndian.PutUint64(b[8:], a.Lo)
	return netip.AddrFrom16(b)
}

// Tuple is one direction of a flow. For ICMP and ICMPv6 SrcPort is the id and
// DstPort is type<<8 | code; for GRE the ports are the keys; for protocols
// without ports both are 0.
type Tuple struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
}

// Mirror returns the tuple of the opposite direction when no NAT is applied.
// proto matters because an ICMP reply has another type than its request.
func (t Tuple) Mirror(proto uint8, ipv6 bool) Tuple {
	m := Tuple{Src: t.Dst, Dst: t.Src, SrcPort: t.DstPort, DstPort: t.SrcPort}
	if proto == 1 && !ipv6 || proto == 58 && ipv6 {
		m.SrcPort, m.DstPort = t.SrcPort, mirrorICMP(t.DstPort, ipv6)
	}
	return m
}

// mirrorICMP maps a request's type to its reply's and back, as conntrack does
// (invmap in nf_conntrack_proto_icmp.c and _icmpv6.c). Types without an answer
// make no entry and map to themselves.
func mirrorICMP(typeCode uint16, ipv6 bool) uint16 {
	t, code := typeCode>>8, typeCode&0xff
	pairs := [...][2]uint16{{0, 8}, {13, 14}, {15, 16}, {17, 18}}
	if ipv6 {
		pairs = [...][2]uint16{{128, 129}, {139, 140}, {0xffff, 0xffff}, {0xffff, 0xffff}}
	}
	for _, p := range pairs {
		switch t {
		case p[0]:
			return p[1]<<8 | code
		case p[1]:
			return p[0]<<8 | code
		}
	}
	return typeCode
}

// Counters are a flow's packets and bytes, as kept with nf_conntrack_acct=1.
type Counters struct {
	OrigPackets, OrigBytes, ReplyPackets, ReplyBytes uint64
}

// Event is one flow's beginning, end or presence. It holds no pointers, so
// that one Event is reused for millions.
type Event struct {
	Time  int64 // when it was read, ns on the firewall's monotonic clock
	Orig  Tuple
	Reply Tuple // meaningful when NAT is set; otherwise the mirror of Orig
	Counters
	ID          uint32 // CTA_ID, a hash: tells two lives of a tuple apart mostly, not always
	Zone        uint16
	Status      uint16
	Type        Type
	Flags       Flags
	Proto       uint8 // IP protocol number
	IPv6        bool
	NAT         bool // Reply is not the mirror of Orig
	HasCounters bool
}

// Src and Dst return the original source and destination.
func (e *Event) Src() netip.Addr { return e.Orig.Src.Netip(e.IPv6) }
func (e *Event) Dst() netip.Addr { return e.Orig.Dst.Netip(e.IPv6) }

// Replied reports whether the flow was ever answered, as far as its status
// tells at this event: a NEW never was, a DESTROY says how it ended.
func (e *Event) Replied() bool { return e.Status&StatusSeenReply != 0 }

// Answered reports whether whoever opened the flow has shown to be there, as far as
// the table knows: with TCP the handshake was completed, of other protocols there
// was a reply. A reply alone says little of TCP: a server sends one to a forged
// source too.
func (e *Event) Answered() bool {
	if e.Proto == protoTCP {
		return e.Status&StatusAssured != 0
	}
	return e.Replied()
}

const protoTCP = 6

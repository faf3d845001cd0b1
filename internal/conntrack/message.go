//go:build linux

package conntrack

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// message appends netlink messages to a buffer that is reused.
type message struct{ buf []byte }

// begin starts a message and returns its offset, for end.
func (m *message) begin(kind, flags uint16, seq uint32, family uint8) int {
	at := len(m.buf)
	b := native.AppendUint32(m.buf, 0) // the length, set by end
	b = native.AppendUint16(b, subsysCTNetlink<<8|kind)
	b = native.AppendUint16(b, flags)
	b = native.AppendUint32(b, seq)
	b = native.AppendUint32(b, 0)      // the kernel's port
	m.buf = append(b, family, 0, 0, 0) // NFNETLINK_V0, no resource
	return at
}

func (m *message) end(at int) { native.PutUint32(m.buf[at:], uint32(len(m.buf)-at)) }

// attr appends an attribute, padded.
func (m *message) attr(kind uint16, value ...byte) {
	b := native.AppendUint16(m.buf, uint16(nlaHeader+len(value)))
	b = native.AppendUint16(b, kind)
	b = append(b, value...)
	m.buf = append(b, make([]byte, align(len(value))-len(value))...)
}

// nest opens a nested attribute and returns its offset, for endNest.
func (m *message) nest(kind uint16) int {
	at := len(m.buf)
	m.attr(kind | nlaNested)
	return at
}

func (m *message) endNest(at int) { native.PutUint16(m.buf[at:], uint16(len(m.buf)-at)) }

func (m *message) uint16(kind, v uint16) { m.attr(kind, byte(v>>8), byte(v)) }

func (m *message) uint32(kind uint16, v uint32) {
	m.attr(kind, byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func (m *message) addr(kind uint16, a events.Addr, ipv6 bool) {
	var b [16]byte
	network.PutUint64(b[:], a.Hi)
	network.PutUint64(b[8:], a.Lo)
	if ipv6 {
		m.attr(kind, b[:]...)
	} else {
		m.attr(kind, b[12:]...)
	}
}

func familyOf(ipv6 bool) uint8 {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// dump asks for all entries of one family, or with AF_UNSPEC of both.
func (m *message) dump(seq uint32, family uint8) {
	m.end(m.begin(msgGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, seq, family))
}

// dumpFiltered asks for the entries whose original source or destination is one
// IPv4 address. Before Linux 5.8 the kernel does not know CTA_FILTER and sends
// all of them, which is why every entry is matched again.
//
// IPv6 must never come this way. Linux 6.18 compares with !ipv6_addr_cmp() where
// it means the opposite, and so selects every entry except those asked for
// (ctnetlink_filter_match_tuple): used for a flush, it deletes the flows of
// everybody else.
func (m *message) dumpFiltered(seq uint32, addr netip.Addr, by string) {
	const (
		ipSrc = 1 << 0 // CTA_FILTER_F_CTA_IP_SRC, net/netfilter/nf_internals.h
		ipDst = 1 << 1
	)
	a, ipv6 := events.FromNetip(addr)
	if ipv6 {
		panic("conntrack: IPv6 address in a filter")
	}
	kind, flags := uint16(ctaIPv4Src), uint32(ipSrc)
	if by == events.ByDst {
		kind, flags = ctaIPv4Dst, ipDst
	}
	at := m.begin(msgGet, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, seq, unix.AF_INET)
	tuple := m.nest(ctaTupleOrig)
	ip := m.nest(ctaTupleIP)
	m.addr(kind, a, false)
	m.endNest(ip)
	m.endNest(tuple)
	filter := m.nest(ctaFilter)
	m.attr(ctaFilterOrigFlags, native.AppendUint32(nil, flags)...) // the one number that is in the machine's order
	m.endNest(filter)
	m.end(at)
}

// delete asks to delete one entry: the one with this original tuple in this
// zone, if it still is the one with this id.
func (m *message) delete(seq uint32, e *events.Event) {
	at := m.begin(msgDelete, unix.NLM_F_REQUEST|unix.NLM_F_ACK, seq, familyOf(e.IPv6))
	tuple := m.nest(ctaTupleOrig)
	ip := m.nest(ctaTupleIP)
	if e.IPv6 {
		m.addr(ctaIPv6Src, e.Orig.Src, true)
		m.addr(ctaIPv6Dst, e.Orig.Dst, true)
	} else {
		m.addr(ctaIPv4Src, e.Orig.Src, false)
		m.addr(ctaIPv4Dst, e.Orig.Dst, false)
	}
	m.endNest(ip)
	proto := m.nest(ctaTupleProto)
	m.attr(ctaProtoNum, e.Proto)
	switch e.Proto {
	case unix.IPPROTO_ICMP:
		m.uint16(ctaProtoICMPID, e.Orig.SrcPort)
		m.attr(ctaProtoICMPType, byte(e.Orig.DstPort>>8))
		m.attr(ctaProtoICMPCode, byte(e.Orig.DstPort))
	case unix.IPPROTO_ICMPV6:
		m.uint16(ctaProtoICMPv6ID, e.Orig.SrcPort)
		m.attr(ctaProtoICMPv6Type, byte(e.Orig.DstPort>>8))
		m.attr(ctaProtoICMPv6Code, byte(e.Orig.DstPort))
	default: // the kernel ignores ports where the protocol has none
		m.uint16(ctaProtoSrcPort, e.Orig.SrcPort)
		m.uint16(ctaProtoDstPort, e.Orig.DstPort)
	}
	m.endNest(proto)
	m.endNest(tuple)
	if e.Zone != 0 {
		m.uint16(ctaZone, e.Zone)
	}
	m.uint32(ctaID, e.ID)
	m.end(at)
}

package conntrack

import (
	"errors"
	"fmt"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Decode reads one conntrack message, netlink header included, into e, and sets
// every field of e but Time, which only the reader knows. It allocates only to
// report an error, which names the attribute at fault; e is undefined then. msg
// is not kept.
//
// A message of type NEW is [events.New] when a packet made the flow. It is
// [events.Existing] when it answers a dump, or when its port id is not 0: then
// a program inserted the flow (conntrackd after a fail-over, say), and nobody
// has just connected.
//
// e.Zone is the zone of the original direction, in which the original tuple is
// looked up. A zone that holds for the reply only is not reported.
func Decode(msg []byte, e *events.Event) error {
	if len(msg) < headers {
		return fmt.Errorf("decode: message of %d bytes, its headers alone are %d", len(msg), headers)
	}
	size := native.Uint32(msg)
	if size < headers || uint64(size) > uint64(len(msg)) {
		return fmt.Errorf("decode: message says it has %d bytes, there are %d", size, len(msg))
	}
	kind, flags, port := native.Uint16(msg[4:]), native.Uint16(msg[6:]), native.Uint32(msg[12:])
	at := e.Time
	*e = events.Event{} // in place; with Time inside it would be a copy
	e.Time = at
	switch kind {
	case subsysCTNetlink<<8 | msgNew:
		e.Type = events.Existing
		if flags&(flagCreate|flagExclusive) != 0 && port == 0 {
			e.Type = events.New
		}
	case subsysCTNetlink<<8 | msgDelete:
		e.Type = events.Destroy
	default:
		return fmt.Errorf("decode: message type %#04x is no conntrack entry", kind)
	}
	switch msg[nlmsgHeader] {
	case linuxINET:
	case linuxINET6:
		e.IPv6 = true
	default:
		return fmt.Errorf("decode: address family %d is neither IPv4 nor IPv6", msg[nlmsgHeader])
	}
	if err := decodeEntry(msg[headers:size], e); err != nil {
		return fmt.Errorf("decode: %w", err)
	}
	return nil
}

// cut takes the first netlink message off a datagram; rest is nil after the
// last one.
func cut(datagram []byte) (msg, rest []byte, err error) {
	if len(datagram) < nlmsgHeader {
		return nil, nil, errTruncated
	}
	size := uint64(native.Uint32(datagram))
	if size < nlmsgHeader || size > uint64(len(datagram)) {
		return nil, nil, errTruncated
	}
	if next := align(int(size)); next < len(datagram) {
		rest = datagram[next:]
	}
	return datagram[:size], rest, nil
}

// What can be wrong with an attribute. Errors are wrapped with its name on the
// way out.
var (
	errTruncated = errors.New("ends within an attribute")
	errLength    = errors.New("wrong length")
	errMissing   = errors.New("is missing")
	errRepeated  = errors.New("is there twice")
	errFamily    = errors.New("address of the other family")
)

func wrong(name string, err error) error { return fmt.Errorf("%s: %w", name, err) }

// attributes walks a run of netlink attributes.
type attributes struct{ rest []byte }

// next cuts off the first attribute. Bytes at the end too few for a header are
// padding.
func (a *attributes) next() (kind uint16, value []byte, ok bool, err error) {
	p := a.rest
	if len(p) < nlaHeader {
		return 0, nil, false, nil
	}
	size := int(native.Uint16(p))
	if size < nlaHeader || size > len(p) {
		return 0, nil, false, errTruncated
	}
	// The last attribute of a message may come without its padding.
	a.rest = p[min(align(size), len(p)):]
	return native.Uint16(p[2:]) & nlaTypeMask, p[nlaHeader:size], true, nil
}

func decodeEntry(p []byte, e *events.Event) error {
	orig, reply := tuple{Tuple: &e.Orig}, tuple{Tuple: &e.Reply}
	attrs := attributes{p}
	for {
		kind, v, ok, err := attrs.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		// Everything else (CTA_TIMEOUT, CTA_MARK, CTA_PROTOINFO, CTA_HELP,
		// CTA_TIMESTAMP, labels, whatever comes with the next kernel) is of no
		// use here.
		switch kind {
		case ctaTupleOrig:
			if err := orig.decode(v, e.IPv6); err != nil {
				return wrong("CTA_TUPLE_ORIG", err)
			}
		case ctaTupleReply:
			if err := reply.decode(v, e.IPv6); err != nil {
				return wrong("CTA_TUPLE_REPLY", err)
			}
		case ctaStatus:
			if len(v) != 4 {
				return wrong("CTA_STATUS", errLength)
			}
			// 32 bits on the wire; the kernel defines 16 (__IPS_MAX_BIT).
			e.Status = uint16(network.Uint32(v))
		case ctaID:
			if len(v) != 4 {
				return wrong("CTA_ID", errLength)
			}
			e.ID = network.Uint32(v)
		case ctaZone:
			if len(v) != 2 {
				return wrong("CTA_ZONE", errLength)
			}
			e.Zone = network.Uint16(v)
		case ctaCountersOrig:
			if err := decodeCounters(v, &e.OrigPackets, &e.OrigBytes); err != nil {
				return wrong("CTA_COUNTERS_ORIG", err)
			}
			e.HasCounters = true
		case ctaCountersReply:
			if err := decodeCounters(v, &e.ReplyPackets, &e.ReplyBytes); err != nil {
				return wrong("CTA_COUNTERS_REPLY", err)
			}
			e.HasCounters = true
		}
	}
	switch {
	case !orig.seen:
		return wrong("CTA_TUPLE_ORIG", errMissing)
	case !reply.seen:
		return wrong("CTA_TUPLE_REPLY", errMissing)
	case reply.proto != orig.proto:
		return wrong("CTA_TUPLE_REPLY", fmt.Errorf("protocol %d, the original has %d", reply.proto, orig.proto))
	}
	e.Proto = orig.proto
	if orig.zone != 0 { // given here instead of CTA_ZONE when it holds for one direction only
		e.Zone = orig.zone
	}
	if isICMP(e.Proto) {
		e.NAT = e.Reply != e.Orig.Mirror(e.Proto, e.IPv6)
	} else { // the same, without making the mirrored tuple: only the order changes
		e.NAT = e.Reply.Src != e.Orig.Dst || e.Reply.Dst != e.Orig.Src || e.Reply.SrcPort != e.Orig.DstPort || e.Reply.DstPort != e.Orig.SrcPort
	}
	return nil
}

// tuple is one direction, decoded into its place in the event, with what the
// wire puts beside the addresses.
type tuple struct {
	*events.Tuple
	zone  uint16
	proto uint8
	seen  bool
}

// decode reads a CTA_TUPLE_ORIG or _REPLY. It takes addresses and protocol in
// whatever order they come, but both must be there.
func (t *tuple) decode(p []byte, ipv6 bool) error {
	if t.seen {
		return errRepeated
	}
	t.seen = true
	if t.decodeUsual(p, ipv6) {
		return nil
	}
	hasIP, hasProto := false, false
	attrs := attributes{p}
	for {
		kind, v, ok, err := attrs.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		switch kind {
		case ctaTupleIP:
			if err := t.decodeIP(v, ipv6); err != nil {
				return wrong("CTA_TUPLE_IP", err)
			}
			hasIP = true
		case ctaTupleProto:
			if err := t.decodeProto(v); err != nil {
				return wrong("CTA_TUPLE_PROTO", err)
			}
			hasProto = true
		case ctaTupleZone:
			if len(v) != 2 {
				return wrong("CTA_TUPLE_ZONE", errLength)
			}
			t.zone = network.Uint16(v)
		}
	}
	switch {
	case !hasIP:
		return wrong("CTA_TUPLE_IP", errMissing)
	case !hasProto:
		return wrong("CTA_TUPLE_PROTO", errMissing)
	}
	return nil
}

// usual is how every kernel so far lays out a tuple with ports: the attributes'
// headers, in the machine's order, and where they are. Between them lie the
// values.
type usual struct {
	size    int
	headers [7]struct {
		at   int
		want uint32
	}
}

var usual4, usual6 = layout(ctaIPv4Src, ctaIPv4Dst, 4), layout(ctaIPv6Src, ctaIPv6Dst, 16)

func layout(src, dst uint16, addr int) (u usual) {
	at := 0
	for i, a := range []struct {
		kind  uint16
		value int // length
		skip  int // to the next header: the value, or nothing where that is a nest
	}{
		{ctaTupleIP | nlaNested, 2 * (nlaHeader + addr), 0},
		{src, addr, addr},
		{dst, addr, addr},
		{ctaTupleProto | nlaNested, 3 * (nlaHeader + 4), 0},
		{ctaProtoNum, 1, 4},
		{ctaProtoSrcPort, 2, 4},
		{ctaProtoDstPort, 2, 4},
	} {
		u.headers[i].at = at
		u.headers[i].want = native.Uint32(native.AppendUint16(native.AppendUint16(nil, uint16(nlaHeader+a.value)), a.kind))
		at += nlaHeader + a.skip
	}
	u.size = at
	return u
}

// decodeUsual reads a tuple of the usual layout and reports whether it was one.
// It halves the cost of a message: no loops, no lengths to check one by one.
func (t *tuple) decodeUsual(p []byte, ipv6 bool) bool {
	u := &usual4
	if ipv6 {
		u = &usual6
	}
	if len(p) != u.size {
		return false
	}
	for i := range u.headers {
		if h := &u.headers[i]; native.Uint32(p[h.at:]) != h.want {
			return false
		}
	}
	tail := p[len(p)-20:] // from the protocol number on
	if t.proto = tail[0]; isICMP(t.proto) {
		return false
	}
	if ipv6 {
		t.Src = events.Addr{Hi: network.Uint64(p[8:]), Lo: network.Uint64(p[16:])}
		t.Dst = events.Addr{Hi: network.Uint64(p[28:]), Lo: network.Uint64(p[36:])}
	} else {
		t.Src = events.Addr{Lo: uint64(network.Uint32(p[8:]))}
		t.Dst = events.Addr{Lo: uint64(network.Uint32(p[16:]))}
	}
	t.SrcPort, t.DstPort = network.Uint16(tail[8:]), network.Uint16(tail[16:])
	return true
}

func (t *tuple) decodeIP(p []byte, ipv6 bool) error {
	hasSrc, hasDst := false, false
	attrs := attributes{p}
	for {
		kind, v, ok, err := attrs.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		var a *events.Addr
		switch kind {
		case ctaIPv4Src, ctaIPv6Src:
			a, hasSrc = &t.Src, true
		case ctaIPv4Dst, ctaIPv6Dst:
			a, hasDst = &t.Dst, true
		default:
			continue
		}
		switch v6 := kind >= ctaIPv6Src; {
		case v6 != ipv6:
			return errFamily
		case !v6 && len(v) == 4:
			*a = events.Addr{Lo: uint64(network.Uint32(v))}
		case v6 && len(v) == 16:
			*a = events.Addr{Hi: network.Uint64(v), Lo: network.Uint64(v[8:])}
		default:
			return errLength
		}
	}
	if !hasSrc || !hasDst {
		return errMissing
	}
	return nil
}

// protoLength is the length of each attribute of CTA_TUPLE_PROTO, by type.
var protoLength = [...]int{
	ctaProtoNum:     1,
	ctaProtoSrcPort: 2, ctaProtoDstPort: 2,
	ctaProtoICMPID: 2, ctaProtoICMPType: 1, ctaProtoICMPCode: 1,
	ctaProtoICMPv6ID: 2, ctaProtoICMPv6Type: 1, ctaProtoICMPv6Code: 1,
}

// decodeProto reads protocol and ports. TCP, UDP, UDPLITE, SCTP and DCCP have
// ports; GRE has its two keys under the same attributes; ICMP has id, type and
// code; anything else has the protocol number alone.
func (t *tuple) decodeProto(p []byte) error {
	hasNum := false
	var icmpID, icmpKind uint16 // type in the high byte, code in the low one
	attrs := attributes{p}
	for {
		kind, v, ok, err := attrs.next()
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if kind == 0 || int(kind) >= len(protoLength) {
			continue
		}
		if len(v) != protoLength[kind] {
			return errLength
		}
		switch kind {
		case ctaProtoNum:
			t.proto, hasNum = v[0], true
		case ctaProtoSrcPort:
			t.SrcPort = network.Uint16(v)
		case ctaProtoDstPort:
			t.DstPort = network.Uint16(v)
		case ctaProtoICMPID, ctaProtoICMPv6ID:
			icmpID = network.Uint16(v)
		case ctaProtoICMPType, ctaProtoICMPv6Type:
			icmpKind = icmpKind&0x00ff | uint16(v[0])<<8
		case ctaProtoICMPCode, ctaProtoICMPv6Code:
			icmpKind = icmpKind&0xff00 | uint16(v[0])
		}
	}
	if !hasNum {
		return wrong("CTA_PROTO_NUM", errMissing)
	}
	if isICMP(t.proto) {
		t.SrcPort, t.DstPort = icmpID, icmpKind
	}
	return nil
}

func decodeCounters(p []byte, packets, bytes *uint64) error {
	attrs := attributes{p}
	for {
		kind, v, ok, err := attrs.next()
		if err != nil || !ok {
			return err
		}
		var c *uint64
		switch kind {
		case ctaCountersPackets:
			c = packets
		case ctaCountersBytes:
			c = bytes
		default:
			continue
		}
		if len(v) != 8 {
			return errLength
		}
		*c = network.Uint64(v)
	}
}

// isICMP reports whether a protocol has type, code and id in the place of ports.
func isICMP(protocol uint8) bool {
	return protocol == protoICMP || protocol == protoICMPv6
}

package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// maxDepth is how deep tags may be nested; the tool's are four deep.
const maxDepth = 8

// flowXML is a <flow> as it is read.
type flowXML struct {
	f *XMLFlow

	stack [maxDepth][]byte // open tags
	depth int
	meta  string // original, reply or independent

	tuples      [2]tupleXML
	when        [6]int // year, month, day, hour, minute, second
	whens       int
	independent bool
	assured     bool
	unreplied   bool
}

// tupleXML is one direction.
type tupleXML struct {
	src, dst netip.Addr
	sport    uint16
	dport    uint16
	icmpID   uint16
	icmpKind uint16
	hasICMP  bool
	family   uint64
	proto    uint64
	hasProto bool
	zone     uint16
}

var (
	errTag    = errors.New("a tag is broken")
	errNested = errors.New("tags are not closed in their order")
)

// parseFlow reads one <flow>, from its tag to its end.
func parseFlow(p []byte, f *XMLFlow) (typ string, err error) {
	x := flowXML{f: f}
	*f = XMLFlow{}
	var text []byte
	for len(p) > 0 {
		open := bytes.IndexByte(p, '<')
		if open < 0 {
			return "", errTag
		}
		text, p = p[:open], p[open:]
		shut := bytes.IndexByte(p, '>')
		if shut < 2 {
			return "", errTag
		}
		tag := p[1:shut]
		p = p[shut+1:]
		switch {
		case tag[0] == '/':
			if x.depth == 0 || !bytes.Equal(tag[1:], x.stack[x.depth-1]) {
				return "", errNested
			}
			x.depth--
			if err := x.value(tag[1:], text); err != nil {
				return "", fmt.Errorf("%s: %w", tag[1:], err)
			}
		case tag[len(tag)-1] == '/':
			x.empty(tag[:len(tag)-1])
		default:
			name, attrs, _ := bytes.Cut(tag, []byte{' '})
			if x.depth == maxDepth {
				return "", errNested
			}
			x.stack[x.depth] = name
			x.depth++
			if x.depth == 1 {
				if typ, err = x.flowType(attrs); err != nil {
					return "", err
				}
				continue
			}
			if err := x.begin(name, attrs); err != nil {
				return "", fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	if x.depth != 0 {
		return "", errNested
	}
	return typ, x.finish()
}

// within reports whether the innermost open tag is called so.
func (x *flowXML) within(name string) bool {
	return x.depth > 0 && string(x.stack[x.depth-1]) == name
}

// flowType: what conntrack -L lists has none.
func (x *flowXML) flowType(attrs []byte) (string, error) {
	typ, ok := attribute(attrs, "type")
	switch {
	case !ok:
		x.f.Type, x.f.Listed = events.Existing, true
		return "", nil
	case string(typ) == "new":
		x.f.Type = events.New
	case string(typ) == "destroy":
		x.f.Type = events.Destroy
	case string(typ) != "update":
		return "", fmt.Errorf("the flow is of no known type: %.20q", typ)
	}
	return string(typ), nil
}

// direction is the tuple that is being read.
func (x *flowXML) direction() *tupleXML {
	switch x.meta {
	case "original":
		return &x.tuples[0]
	case "reply":
		return &x.tuples[1]
	}
	return nil
}

// begin takes a tag with its attributes.
func (x *flowXML) begin(name, attrs []byte) (err error) {
	switch string(name) {
	case "meta":
		v, _ := attribute(attrs, "direction")
		x.meta = string(v)
		x.independent = x.independent || x.meta == "independent"
	case "layer3":
		if t := x.direction(); t != nil {
			t.family, err = number(attrs, familyNumbers)
		}
	case "layer4":
		if t := x.direction(); t != nil {
			t.hasProto = true
			t.proto, err = number(attrs, protocolNumbers)
		}
	}
	return err
}

// empty takes a tag without content, which is a word.
func (x *flowXML) empty(name []byte) {
	if x.meta != "independent" || !x.within("meta") {
		return
	}
	switch string(bytes.TrimSpace(name)) {
	case "assured":
		x.assured = true
	case "unreplied":
		x.unreplied = true
	}
}

// value takes what stood within a tag that is closed now: those of the tuples by
// the tag around it.
func (x *flowXML) value(name, text []byte) (err error) {
	t := x.direction()
	switch {
	case t != nil && x.within("layer3"):
		switch string(name) {
		case "src":
			t.src, err = netip.ParseAddr(string(text))
		case "dst":
			t.dst, err = netip.ParseAddr(string(text))
		}
	case t != nil && x.within("layer4"):
		err = t.port(name, text)
	case t != nil && x.within("counters"):
		err = x.counter(name, text)
	case x.within("meta"):
		switch string(name) {
		case "zone":
			zone := &x.f.Zone
			if t != nil {
				zone = &t.zone
			}
			*zone, err = decimal[uint16](text, 16)
		case "id":
			if t == nil {
				x.f.ID, err = decimal[uint32](text, 32)
			}
		}
	case x.within("when"):
		err = x.clock(name, text)
	}
	return err
}

func (t *tupleXML) port(name, text []byte) (err error) {
	switch string(name) {
	case "sport":
		t.sport, err = decimal[uint16](text, 16)
	case "dport":
		t.dport, err = decimal[uint16](text, 16)
	case "srckey":
		t.sport, err = hex16(text)
	case "dstkey":
		t.dport, err = hex16(text)
	// No version of the tool prints these so far. They are taken as its other
	// output calls them.
	case "id":
		t.icmpID, err = decimal[uint16](text, 16)
		t.hasICMP = true
	case "type", "code":
		var v uint8
		v, err = decimal[uint8](text, 8)
		t.hasICMP = true
		if string(name) == "type" {
			t.icmpKind |= uint16(v) << 8
		} else {
			t.icmpKind |= uint16(v)
		}
	}
	return err
}

func (x *flowXML) counter(name, text []byte) (err error) {
	c := &x.f.Counters
	packets, size := &c.OrigPackets, &c.OrigBytes
	if x.meta == "reply" {
		packets, size = &c.ReplyPackets, &c.ReplyBytes
	}
	switch string(name) {
	case "packets":
		*packets, err = decimal[uint64](text, 64)
	case "bytes":
		*size, err = decimal[uint64](text, 64)
	default:
		return nil
	}
	x.f.HasCounters = true
	return err
}

func (x *flowXML) clock(name, text []byte) (err error) {
	for i, part := range [...]string{"year", "month", "day", "hour", "min", "sec"} {
		if string(name) == part {
			var v uint16
			v, err = decimal[uint16](text, 16)
			x.when[i] = int(v)
			x.whens |= 1 << i
		}
	}
	return err
}

// finish puts together what was read.
func (x *flowXML) finish() error {
	f, o, r := x.f, &x.tuples[0], &x.tuples[1]
	for i, t := range &x.tuples {
		name := [...]string{"original", "reply"}[i]
		switch {
		case !t.src.IsValid() || !t.dst.IsValid() || !t.hasProto:
			return fmt.Errorf("the %s direction is not there, or not all of it", name)
		case t.src.Is4() != t.dst.Is4() || t.src.Is4() != o.src.Is4(), t.src.Is4() != (t.family == linuxINET):
			return fmt.Errorf("the %s direction mixes address families", name)
		case t.src.Zone() != "" || t.dst.Zone() != "":
			return fmt.Errorf("an address of the %s direction has a zone", name)
		}
	}
	if o.proto != r.proto {
		return fmt.Errorf("the reply's protocol is %d, the original's %d", r.proto, o.proto)
	}
	if !x.independent { // half a flow: whether it was answered stands there
		return errCut
	}
	f.Proto, f.IPv6 = uint8(o.proto), !o.src.Is4()
	f.Orig, f.Reply = o.tuple(f.Proto), r.tuple(f.Proto)
	mirror := f.Orig.Mirror(f.Proto, f.IPv6)
	if isICMP(f.Proto) && !r.hasICMP {
		f.Reply.SrcPort, f.Reply.DstPort = mirror.SrcPort, mirror.DstPort // not printed
	}
	f.NAT = f.Reply != mirror
	if o.zone != 0 {
		f.Zone = o.zone
	}
	f.Status = events.StatusConfirmed
	if !x.unreplied {
		f.Status |= events.StatusSeenReply
	}
	if x.assured {
		f.Status |= events.StatusAssured
	}
	if f.Reply.Dst != f.Orig.Src || f.Reply.DstPort != mirror.DstPort {
		f.Status |= events.StatusSrcNAT
	}
	if f.Reply.Src != f.Orig.Dst || f.Reply.SrcPort != mirror.SrcPort {
		f.Status |= events.StatusDstNAT
	}
	if f.Type == events.Destroy {
		f.Status |= events.StatusDying
	}
	if x.whens == 1<<len(x.when)-1 {
		w := &x.when
		f.When = time.Date(w[0], time.Month(w[1]), w[2], w[3], w[4], w[5], 0, time.UTC)
	}
	return nil
}

func (t *tupleXML) tuple(proto uint8) (out events.Tuple) {
	out = events.Tuple{Src: addrOf(t.src), Dst: addrOf(t.dst), SrcPort: t.sport, DstPort: t.dport}
	if isICMP(proto) {
		out.SrcPort, out.DstPort = t.icmpID, t.icmpKind
	}
	return out
}

// addrOf keeps the family that the address was written in, as the kernel's
// messages do: FromNetip would make IPv4 of a mapped one.
func addrOf(a netip.Addr) events.Addr {
	if a.Is4() {
		b := a.As4()
		return events.Addr{Lo: uint64(network.Uint32(b[:]))}
	}
	b := a.As16()
	return events.Addr{Hi: network.Uint64(b[:8]), Lo: network.Uint64(b[8:])}
}

// attribute returns the value of name="value".
func attribute(attrs []byte, name string) ([]byte, bool) {
	for len(attrs) > 0 {
		key, rest, ok := bytes.Cut(attrs, []byte(`="`))
		if !ok {
			return nil, false
		}
		value, after, ok := bytes.Cut(rest, []byte{'"'})
		if !ok {
			return nil, false
		}
		if string(bytes.TrimSpace(key)) == name {
			return value, true
		}
		attrs = after
	}
	return nil, false
}

// What has a number may also be known by its name alone.
var (
	familyNumbers   = map[string]uint64{"ipv4": linuxINET, "ipv6": linuxINET6}
	protocolNumbers = map[string]uint64{
		"icmp": protoICMP, "igmp": 2, "ipip": 4, "tcp": 6, "udp": 17, "dccp": 33, "gre": 47, "esp": 50, "ah": 51, "icmpv6": protoICMPv6,
		"sctp": 132, "udplite": 136,
	}
)

func number(attrs []byte, names map[string]uint64) (uint64, error) {
	if v, ok := attribute(attrs, "protonum"); ok {
		return decimal[uint64](v, 8)
	}
	v, _ := attribute(attrs, "protoname")
	if n, ok := names[string(v)]; ok {
		return n, nil
	}
	return 0, fmt.Errorf("protocol %.20q is not known", v)
}

// decimal reads a number of so many bits.
func decimal[T uint8 | uint16 | uint32 | uint64](p []byte, bits int) (T, error) {
	v, err := strconv.ParseUint(string(p), 10, bits)
	if err != nil {
		return 0, fmt.Errorf("%.30q is no number that fits", p)
	}
	return T(v), nil
}

func hex16(p []byte) (uint16, error) {
	digits, ok := bytes.CutPrefix(p, []byte("0x"))
	v, err := strconv.ParseUint(string(digits), 16, 16)
	if err != nil || !ok {
		return 0, fmt.Errorf("%.30q is no key", p)
	}
	return uint16(v), nil
}

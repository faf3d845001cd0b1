//go:build linux

package conntrack

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/mdlayher/netlink"
	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// decodeOracle decodes msg with the library.
func decodeOracle(msg []byte) (*timo.Event, error) {
	var e timo.Event
	err := e.Unmarshal(netlink.Message{
		Header: netlink.Header{
			Length:   native.Uint32(msg),
			Type:     netlink.HeaderType(native.Uint16(msg[4:])),
			Flags:    netlink.HeaderFlags(native.Uint16(msg[6:])),
			Sequence: native.Uint32(msg[8:]),
			PID:      native.Uint32(msg[12:]),
		},
		Data: msg[nlmsgHeader:native.Uint32(msg)],
	})
	return &e, err
}

// disagree compares what both decoders made of msg, field by field, and returns
// the first difference.
func disagree(msg []byte, e *events.Event, o *timo.Event) error {
	f := o.Flow
	wantType := events.Existing
	switch {
	case o.Type == timo.EventDestroy:
		wantType = events.Destroy
	case o.Type == timo.EventNew && native.Uint32(msg[12:]) == 0:
		wantType = events.New
	}
	wantZone := f.Zone
	if f.TupleOrig.Zone != 0 {
		wantZone = f.TupleOrig.Zone
	}
	orig, reply := oracleTuple(&f.TupleOrig), oracleTuple(&f.TupleReply)
	for _, field := range []struct {
		name      string
		got, want any
	}{
		{"type", e.Type, wantType},
		{"id", e.ID, f.ID},
		{"status", e.Status, uint16(f.Status)},
		{"zone", e.Zone, wantZone},
		{"protocol", e.Proto, f.TupleOrig.Proto.Protocol},
		{"source", e.Src(), f.TupleOrig.IP.SourceAddress},
		{"destination", e.Dst(), f.TupleOrig.IP.DestinationAddress},
		{"reply source", e.Reply.Src.Netip(e.IPv6), f.TupleReply.IP.SourceAddress},
		{"reply destination", e.Reply.Dst.Netip(e.IPv6), f.TupleReply.IP.DestinationAddress},
		{"original tuple", e.Orig, orig},
		{"reply tuple", e.Reply, reply},
		{"NAT", e.NAT, reply != orig.Mirror(e.Proto, e.IPv6)},
		{"counters", e.Counters, events.Counters{
			OrigPackets: f.CountersOrig.Packets, OrigBytes: f.CountersOrig.Bytes,
			ReplyPackets: f.CountersReply.Packets, ReplyBytes: f.CountersReply.Bytes,
		}},
	} {
		if field.got != field.want {
			return fmt.Errorf("%s: %v, the oracle has %v", field.name, field.got, field.want)
		}
	}
	return nil
}

func oracleTuple(t *timo.Tuple) events.Tuple {
	src, _ := events.FromNetip(t.IP.SourceAddress)
	dst, _ := events.FromNetip(t.IP.DestinationAddress)
	out := events.Tuple{Src: src, Dst: dst, SrcPort: t.Proto.SourcePort, DstPort: t.Proto.DestinationPort}
	if p := t.Proto; p.Protocol == unix.IPPROTO_ICMP || p.Protocol == unix.IPPROTO_ICMPV6 {
		out.SrcPort, out.DstPort = p.ICMPID, uint16(p.ICMPType)<<8|uint16(p.ICMPCode)
	}
	return out
}

// wide reports whether msg has an attribute type beyond 255 where the oracle
// reads one. It keeps the low byte only, and takes 0x1002 for 2.
func wide(p []byte, depth int) bool {
	for attrs := (attributes{p}); ; {
		kind, v, ok, err := attrs.next()
		if !ok || err != nil {
			return false
		}
		if kind > 0xff || depth > 0 && wide(v, depth-1) {
			return true
		}
	}
}

// mapped reports whether an address is IPv4 within IPv6, which the batch's
// address form cannot tell from IPv4 without the family beside it.
func mapped(addrs ...netip.Addr) bool {
	for _, a := range addrs {
		if a.Is4In6() {
			return true
		}
	}
	return false
}

// decodeBoth decodes msg with both decoders and fails where they differ.
func decodeBoth(t testing.TB, msg []byte) events.Event {
	t.Helper()
	var e events.Event
	if err := Decode(msg, &e); err != nil {
		t.Fatalf("%v\n%x", err, msg)
	}
	o, err := decodeOracle(msg)
	if err != nil {
		t.Fatalf("oracle: %v\n%x", err, msg)
	}
	if err := disagree(msg, &e, o); err != nil {
		t.Errorf("%v\n%x", err, msg)
	}
	return e
}

func TestDecodeStoredMessages(t *testing.T) {
	for name, msg := range stored(t) {
		t.Run(name, func(t *testing.T) {
			e := decodeBoth(t, msg)
			if e.ID == 0 {
				t.Error("no id")
			}
			if want := strings.Contains(name, "-snat") || strings.Contains(name, "-dnat"); e.NAT != want {
				t.Errorf("NAT %v, want %v: %+v", e.NAT, want, e)
			}
		})
	}
}

// FuzzDecode: nothing makes Decode panic, and what both decoders accept they
// understand alike.
func FuzzDecode(f *testing.F) {
	for _, msg := range stored(f) {
		f.Add(msg)
	}
	f.Fuzz(func(t *testing.T, msg []byte) {
		var e events.Event
		if err := Decode(msg, &e); err != nil {
			return
		}
		if wide(msg[headers:native.Uint32(msg)], 2) {
			return
		}
		o, err := decodeOracle(msg)
		if err != nil || mapped(o.Flow.TupleOrig.IP.SourceAddress, o.Flow.TupleOrig.IP.DestinationAddress,
			o.Flow.TupleReply.IP.SourceAddress, o.Flow.TupleReply.IP.DestinationAddress) {
			return
		}
		if err := disagree(msg, &e, o); err != nil {
			t.Errorf("%v\n%x", err, msg)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	msgs := stored(b)
	for _, name := range []string{"udp4-plain-new", "tcp6-plain-new", "tcp6-acct-destroy"} {
		msg := msgs[name]
		b.Run(name+"/ctfleet", func(b *testing.B) {
			b.ReportAllocs()
			var e events.Event
			for b.Loop() {
				if err := Decode(msg, &e); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(name+"/ti-mo", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := decodeOracle(msg); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

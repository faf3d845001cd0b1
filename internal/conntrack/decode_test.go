package conntrack

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

const messagesDir = "testdata/messages"

// stored returns the captured messages by name.
func stored(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(messagesDir, "*.hex"))
	if err != nil {
		t.Fatal(err)
	}
	if len(files) == 0 {
		t.Fatalf("no messages in %s", messagesDir)
	}
	out := map[string][]byte{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		comment, digits, ok := strings.Cut(string(text), "\n")
		if !ok || !strings.HasPrefix(comment, "# ") {
			t.Fatalf("%s: the first line must say where it comes from", file)
		}
		msg, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		out[strings.TrimSuffix(filepath.Base(file), ".hex")] = msg
	}
	return out
}

func TestDecodeReadsWhatIsThere(t *testing.T) {
	addr := func(p interface{ String() string }) string { return p.String() }
	msgs := stored(t)
	for _, c := range []struct {
		file             string
		kind             events.Type
		src, dst         string
		proto            uint8
		srcPort, dstPort uint16
		status           uint16
		counters         events.Counters
	}{
		{"udp4-plain-new", events.New, "198.18.0.9", "203.0.113.7", 17, 1024, 53, events.StatusConfirmed, events.Counters{}},
		{"icmp4-plain-new", events.New, "198.18.0.9", "203.0.113.7", protoICMP, 0, 8 << 8, events.StatusConfirmed, events.Counters{}},
		{"icmp6-plain-new", events.New, "2001:db8:18::9", "2001:db8:113::7", protoICMPv6, 0, 128 << 8, events.StatusConfirmed, events.Counters{}},
		{"gre6-plain-dump", events.Existing, "2001:db8:18::9", "2001:db8:113::7", 47, 0, 0, events.StatusConfirmed | events.StatusSeenReply, events.Counters{}},
		{"udp4-acct-destroy", events.Destroy, "198.18.0.9", "203.0.113.7", 17, 1024, 53,
			events.StatusConfirmed | events.StatusSeenReply | events.StatusDying, events.Counters{OrigPackets: 1, OrigBytes: 28, ReplyPackets: 1, ReplyBytes: 28}},
	} {
		var e events.Event
		e.Time = 42
		if err := Decode(msgs[c.file], &e); err != nil {
			t.Errorf("%s: %v", c.file, err)
			continue
		}
		if e.Type != c.kind || addr(e.Src()) != c.src || addr(e.Dst()) != c.dst || e.Proto != c.proto || e.Orig.SrcPort != c.srcPort || e.Orig.DstPort != c.dstPort ||
			e.Status != c.status || e.Counters != c.counters || e.HasCounters != (c.counters != events.Counters{}) {
			t.Errorf("%s: decoded %+v, want %+v", c.file, e, c)
		}
		if e.Time != 42 {
			t.Errorf("%s: Decode set the time, which is the reader's", c.file)
		}
	}
}

func TestDecodeOverwritesTheEventBefore(t *testing.T) {
	msgs := stored(t)
	var fresh, used events.Event
	for name, msg := range msgs {
		fresh = events.Event{}
		if err := Decode(msg, &fresh); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for _, before := range []string{"tcp6-snat-destroy", "udp4-zone-new", "udp4-acct-destroy"} {
			if err := Decode(msgs[before], &used); err != nil {
				t.Fatalf("%s: %v", before, err)
			}
			if err := Decode(msg, &used); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if used != fresh {
				t.Errorf("%s after %s: %+v, want %+v", name, before, used, fresh)
			}
		}
	}
}

func TestDecodeTellsInsertedFromNew(t *testing.T) {
	msg := bytes.Clone(stored(t)["tcp4-plain-new"])
	var e events.Event
	binary.NativeEndian.PutUint32(msg[12:], 4711) // another program's netlink port
	if err := Decode(msg, &e); err != nil || e.Type != events.Existing {
		t.Errorf("a NEW from port 4711 is %s (%v), want EXISTING", e.Type, err)
	}
}

func TestDecodeErrorsNameTheFault(t *testing.T) {
	good := stored(t)["udp4-acct-destroy"]
	at := func(sub ...byte) int { // offset of an attribute by what is in its header
		i := bytes.Index(good, sub)
		if i < 0 {
			t.Fatalf("no % x in the message", sub)
		}
		return i
	}
	for _, c := range []struct {
		name string
		bend func([]byte) []byte
		want string
	}{
		{"empty", func(b []byte) []byte { return nil }, "0 bytes"},
		{"no attributes", func(b []byte) []byte { native.PutUint32(b, headers); return b }, "CTA_TUPLE_ORIG: is missing"},
		{"longer than it is", func(b []byte) []byte { native.PutUint32(b, uint32(len(b)+1)); return b }, "says it has"},
		{"shorter than its headers", func(b []byte) []byte { native.PutUint32(b, headers-1); return b }, "says it has"},
		{"another subsystem", func(b []byte) []byte { b[5] = 10; return b }, "message type 0x0a02"},
		{"another family", func(b []byte) []byte { b[16] = 7; return b }, "address family 7"},
		{"IPv4 said to be IPv6", func(b []byte) []byte { b[16] = linuxINET6; return b }, "CTA_TUPLE_ORIG: CTA_TUPLE_IP: address of the other family"},
		{"cut", func(b []byte) []byte { native.PutUint32(b, 40); return b[:40] }, "ends within an attribute"},
		{"address of three bytes", func(b []byte) []byte { b[at(8, 0, 1, 0, 198)] = 7; return b }, "CTA_TUPLE_ORIG: CTA_TUPLE_IP: wrong length"},
		{"port of one byte", func(b []byte) []byte { b[at(6, 0, 2, 0)] = 5; return b }, "CTA_TUPLE_ORIG: CTA_TUPLE_PROTO: wrong length"},
		{"no reply", func(b []byte) []byte { b[at(0x34, 0, 2, 0x80)+2] = 63; return b }, "CTA_TUPLE_REPLY: is missing"},
		{"original twice", func(b []byte) []byte { b[at(0x34, 0, 2, 0x80)+2] = 1; return b }, "CTA_TUPLE_ORIG: is there twice"},
		{"id of three bytes", func(b []byte) []byte { b[at(8, 0, 12, 0)] = 7; return b }, "CTA_ID: wrong length"},
		{"status of three bytes", func(b []byte) []byte { b[at(8, 0, 3, 0, 0, 0)] = 7; return b }, "CTA_STATUS: wrong length"},
		{"counter of four bytes", func(b []byte) []byte { b[at(0x1c, 0, 9, 0x80)+4] = 8; return b }, "CTA_COUNTERS_ORIG: wrong length"},
	} {
		var e events.Event
		err := Decode(c.bend(bytes.Clone(good)), &e)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.HasPrefix(err.Error(), "decode: ") {
			t.Errorf("%s: error %v, want decode: … %q", c.name, err, c.want)
		}
	}
}

func TestDecodeDoesNotAllocate(t *testing.T) {
	var e events.Event
	for name, msg := range stored(t) {
		if n := testing.AllocsPerRun(100, func() { _ = Decode(msg, &e) }); n != 0 {
			t.Errorf("%s: %v allocations, want none", name, n)
		}
	}
}

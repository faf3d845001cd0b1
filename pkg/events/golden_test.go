package events_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

var update = flag.Bool("update", false, "write the golden files in testdata that are missing")

func tuple(src, dst string, sport, dport uint16) events.Tuple {
	s, _ := events.FromNetip(netip.MustParseAddr(src))
	d, _ := events.FromNetip(netip.MustParseAddr(dst))
	return events.Tuple{Src: s, Dst: d, SrcPort: sport, DstPort: dport}
}

// golden is a batch and the name of its files in testdata.
type golden struct {
	name   string
	header events.Header
	events []events.Event
}

func goldens() []golden {
	const base = 1_234_567_890_123_000 // some days after the firewall's start
	boot := events.Boot{0: 0xc0, 1: 0xff, 14: 0xee, 15: 0x01}
	header := events.Header{
		Firewall: "fw-a", Realm: events.RealmDefault, Boot: boot, Seq: 7, Epoch: 2,
		Sent: base + 10_000_000, Clean: true, Total: 3000,
	}
	with := func(change func(*events.Header)) events.Header {
		h := header
		change(&h)
		return h
	}
	tcp4 := events.Event{
		Time: base, Type: events.New, Proto: 6, ID: 0xdeadbeef, Status: events.StatusConfirmed,
		Orig: tuple("192.0.2.10", "198.51.100.1", 40000, 443),
	}
	end4 := tcp4
	end4.Time, end4.Type = base+1_500_000, events.Destroy
	end4.Status |= events.StatusSeenReply | events.StatusAssured | events.StatusDying
	udp6 := events.Event{
		Time: base + 20_000, Type: events.New, Proto: 17, IPv6: true, ID: 1, Status: events.StatusConfirmed,
		Orig: tuple("2001:db8::7", "2001:db8:ffff::53", 5353, 53),
	}
	ping4 := events.Event{
		Time: base + 30_000, Type: events.New, Proto: 1, ID: 2, Status: events.StatusConfirmed,
		Orig: tuple("198.18.0.9", "203.0.113.4", 77, 8<<8),
	}
	ping6 := events.Event{
		Time: base + 31_000, Type: events.New, Proto: 58, IPv6: true, ID: 3, Status: events.StatusConfirmed,
		Orig: tuple("2001:db8::9", "2001:db8::1", 78, 128<<8),
	}
	snat := tcp4
	snat.NAT, snat.Status = true, events.StatusConfirmed|events.StatusSrcNAT
	snat.Reply = tuple("198.51.100.1", "203.0.113.99", 443, 61000)
	dnat6 := udp6
	dnat6.NAT, dnat6.Status = true, events.StatusConfirmed|events.StatusDstNAT
	dnat6.Reply = tuple("2001:db8:aaaa::53", "2001:db8::7", 53, 5353)
	zoned := tcp4
	zoned.Zone = 65535
	zoned6 := udp6
	zoned6.Zone = 5
	counted := end4
	counted.HasCounters = true
	counted.Counters = events.Counters{OrigPackets: 10, OrigBytes: 4200, ReplyPackets: 9, ReplyBytes: 1 << 40}
	existing := tcp4
	existing.Type, existing.ID = events.Existing, 9
	early := end4
	early.Flags = events.Unheld
	both := end4
	both.Flags = events.Unheld | events.UnheldBefore
	full := counted
	full.Time, full.Zone, full.NAT, full.Reply, full.Flags = base+2_000_000, 12, true, snat.Reply, events.UnheldBefore

	return []golden{
		{"ipv4", header, []events.Event{tcp4, end4}},
		{"ipv6", header, []events.Event{udp6, ping6}},
		{"nat", header, []events.Event{tcp4, snat, dnat6, end4}},
		{"zones", header, []events.Event{zoned, tcp4, zoned6}},
		{"counters", header, []events.Event{tcp4, counted}},
		{"mixed", with(func(h *events.Header) { h.Clean, h.Lost = false, 1<<40 }),
			[]events.Event{tcp4, udp6, ping4, ping6, snat, dnat6, zoned, existing, early, both, full}},
		{"snapshot-begin", with(func(h *events.Header) {
			h.Seq, h.Total, h.After, h.Phase = 1, 0, 41, events.SnapshotPart|events.SnapshotBegin
		}), []events.Event{existing}},
		{"snapshot-end", with(func(h *events.Header) {
			h.Seq, h.Total, h.After, h.Phase = 2, 1, 43, events.SnapshotPart|events.SnapshotEnd
		}), []events.Event{existing, existing}},
		{"snapshot-abort", with(func(h *events.Header) {
			h.Seq, h.Total, h.After, h.Phase = 3, 3, 44, events.SnapshotPart|events.SnapshotAbort
		}), nil},
		{"empty", with(func(h *events.Header) { h.Seq, h.Total = 1, 0 }), nil},
	}
}

func encode(t testing.TB, h events.Header, evs []events.Event) []byte {
	t.Helper()
	var w events.BatchWriter
	for i := range evs {
		if err := w.Append(&evs[i]); err != nil {
			t.Fatalf("append event %d: %v", i, err)
		}
	}
	out, err := w.Encode(&h)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return bytes.Clone(out)
}

// describe writes a batch as testdata/decode_batch.py does: a line for the
// header and one for each event.
func describe(t testing.TB, data []byte) string {
	t.Helper()
	var d events.Decoder
	var b events.Batch
	if err := d.Decode(data, &b); err != nil {
		t.Fatalf("decode: %v", err)
	}
	var out strings.Builder
	line := func(v any) {
		j, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(append(j, '\n'))
	}
	line(map[string]any{
		"v": events.BatchVersion, "fw": b.Firewall, "realm": b.Realm, "boot": hex.EncodeToString(b.Boot[:]), "seq": b.Seq,
		"epoch": b.Epoch, "phase": b.Phase, "sent": b.Sent, "clean": b.Clean, "base": b.Base, "n": b.Count,
		"total": b.Total, "lost": b.Lost, "after": b.After,
	})
	var e events.Event
	for r := b.Events(); r.Next(&e); {
		m := map[string]any{
			"type": e.Type.String(), "unheld": e.Flags&events.Unheld != 0, "unheld_before": e.Flags&events.UnheldBefore != 0,
			"time": e.Time, "proto": e.Proto, "src": e.Src().String(), "dst": e.Dst().String(),
			"sport": e.Orig.SrcPort, "dport": e.Orig.DstPort, "id": e.ID, "status": e.Status, "zone": e.Zone,
			"nat": nil, "counters": nil,
		}
		if e.NAT {
			m["nat"] = map[string]any{
				"src": e.Reply.Src.Netip(e.IPv6).String(), "dst": e.Reply.Dst.Netip(e.IPv6).String(),
				"sport": e.Reply.SrcPort, "dport": e.Reply.DstPort,
			}
		}
		if e.HasCounters {
			m["counters"] = []uint64{e.OrigPackets, e.OrigBytes, e.ReplyPackets, e.ReplyBytes}
		}
		line(m)
	}
	return out.String()
}

// sameLines fails unless got and want are the same JSON values, line by line.
func sameLines(t *testing.T, got, want string) {
	t.Helper()
	parse := func(s string) (vs []any) {
		d := json.NewDecoder(strings.NewReader(s))
		d.UseNumber()
		for d.More() {
			var v any
			if err := d.Decode(&v); err != nil {
				t.Fatalf("%v in %s", err, s)
			}
			vs = append(vs, v)
		}
		return vs
	}
	g, w := parse(got), parse(want)
	for i := range max(len(g), len(w)) {
		switch {
		case i >= len(g):
			t.Errorf("line %d is missing, want %v", i+1, w[i])
		case i >= len(w):
			t.Errorf("line %d is too much: %v", i+1, g[i])
		case !reflect.DeepEqual(g[i], w[i]):
			t.Errorf("line %d:\n got %v\nwant %v", i+1, g[i], w[i])
		}
	}
}

// TestGolden reads the batches that earlier versions wrote. They are never
// changed: a new version of the format adds files.
func TestGolden(t *testing.T) {
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			file := filepath.Join("testdata", g.name)
			if *update {
				data := encode(t, g.header, g.events)
				for name, content := range map[string][]byte{".msgpack": data, ".json": []byte(describe(t, data))} {
					writeOnce(t, file+name, content)
				}
			}
			data, want := read(t, file+".msgpack"), read(t, file+".json")
			sameLines(t, describe(t, data), string(want))
			if now := encode(t, g.header, g.events); !bytes.Equal(now, data) {
				t.Errorf("this version writes other bytes:\n%x\nwant\n%x", now, data)
			}
		})
	}
}

// TestGoldenPython reads them with a decoder that was written from
// docs/reference/wire.md in another language.
func TestGoldenPython(t *testing.T) {
	python := findPython(t)
	for _, g := range goldens() {
		t.Run(g.name, func(t *testing.T) {
			file := filepath.Join("testdata", g.name)
			out, err := exec.CommandContext(t.Context(), python, "testdata/decode_batch.py", file+".msgpack").CombinedOutput()
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			sameLines(t, string(out), string(read(t, file+".json")))
		})
	}
	t.Run("refuses a truncated batch", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "cut.msgpack")
		data := read(t, "testdata/mixed.msgpack")
		if err := os.WriteFile(file, data[:len(data)-1], 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.CommandContext(t.Context(), python, "testdata/decode_batch.py", file).CombinedOutput(); err == nil {
			t.Errorf("no error: %s", out)
		}
	})
}

// findPython returns a Python that has msgpack.
func findPython(t *testing.T) string {
	t.Helper()
	for _, python := range []string{"/usr/bin/python3", "python3"} {
		if exec.CommandContext(t.Context(), python, "-c", "import msgpack").Run() == nil {
			return python
		}
	}
	missing := "no Python 3 with msgpack: install the package python3-msgpack"
	if os.Getenv("CTFLEET_REQUIRE_KERNEL") == "1" {
		t.Fatal(missing)
	}
	t.Skip(missing)
	return ""
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (go test ./pkg/events -run Golden -update writes it)", err)
	}
	return data
}

// TestBatchSize holds the promise of at most 26 bytes per IPv4 event without
// NAT or counters, in a batch as producers send it.
func TestBatchSize(t *testing.T) {
	g := goldens()[0]
	var evs []events.Event
	for i := range 512 {
		e := g.events[0]
		e.Time += int64(i) * 19_000
		e.Orig.SrcPort += uint16(i)
		evs = append(evs, e)
	}
	h := g.header
	h.Firewall = strings.Repeat("f", 63) // the longest name costs most
	data := encode(t, h, evs)
	perEvent := float64(len(data)) / float64(len(evs))
	t.Logf("%d bytes for %d events: %.2f each", len(data), len(evs), perEvent)
	if perEvent > 26 {
		t.Errorf("%.2f bytes per event, at most 26 are allowed", perEvent)
	}
	if len(data) > events.MaxBatchBytes {
		t.Error(fmt.Sprint("larger than a decoder accepts: ", len(data)))
	}
}

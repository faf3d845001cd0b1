package events_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// anyEvent draws an event of any shape.
func anyEvent(r *rand.Rand, base int64) events.Event {
	e := events.Event{
		Time: base + r.Int64N(1e9)/1000*1000, ID: r.Uint32(), Status: uint16(r.Uint32()),
		Type: events.Type(1 + r.IntN(3)), Proto: uint8(r.Uint32()), IPv6: r.IntN(2) == 0,
		Flags: []events.Flags{0, events.Unheld, events.UnheldBefore, events.Unheld | events.UnheldBefore}[r.IntN(4)],
	}
	addr := func() events.Addr {
		if e.IPv6 {
			return events.Addr{Hi: r.Uint64(), Lo: r.Uint64()}
		}
		return events.Addr{Lo: uint64(r.Uint32())}
	}
	any := func() events.Tuple {
		return events.Tuple{Src: addr(), Dst: addr(), SrcPort: uint16(r.Uint32()), DstPort: uint16(r.Uint32())}
	}
	e.Orig = any()
	e.Reply = e.Orig.Mirror(e.Proto, e.IPv6)
	if r.IntN(4) == 0 {
		e.NAT, e.Reply = true, any()
	}
	if r.IntN(4) == 0 {
		e.Zone = uint16(1 + r.IntN(65535))
	}
	if r.IntN(4) == 0 {
		e.HasCounters = true
		e.Counters = events.Counters{OrigPackets: r.Uint64(), OrigBytes: r.Uint64(), ReplyPackets: r.Uint64(), ReplyBytes: r.Uint64()}
	}
	return e
}

func readAll(b *events.Batch) (out []events.Event) {
	var e events.Event
	for r := b.Events(); r.Next(&e); {
		out = append(out, e)
	}
	return out
}

func TestBatchRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 1))
	var w events.BatchWriter
	var d events.Decoder
	var b events.Batch
	for range 200 {
		const base = 5_000_000_000
		var want []events.Event
		for range r.IntN(40) {
			e := anyEvent(r, base)
			if len(want) == 0 {
				e.Time = base
			}
			want = append(want, e)
			if err := w.Append(&e); err != nil {
				t.Fatalf("seed %d: append: %v", seed, err)
			}
		}
		h := events.Header{
			Firewall: "fw-" + string(rune('a'+r.IntN(26))), Realm: "r", Seq: 1 + r.Uint64N(1<<40), Epoch: r.Uint32(),
			Phase: events.Phase(r.IntN(16)), Sent: r.Int64(), Clean: r.IntN(2) == 0, Total: r.Uint64(), Lost: r.Uint64(), After: r.Uint64(),
		}
		binary.BigEndian.PutUint64(h.Boot[8:], r.Uint64())
		data, err := w.Encode(&h)
		if err != nil {
			t.Fatalf("seed %d: encode: %v", seed, err)
		}
		if err := d.Decode(data, &b); err != nil {
			t.Fatalf("seed %d: decode: %v", seed, err)
		}
		if b.Header != h {
			t.Fatalf("seed %d: header\n got %+v\nwant %+v", seed, b.Header, h)
		}
		if got := readAll(&b); !slices.Equal(got, want) {
			t.Fatalf("seed %d: events\n got %+v\nwant %+v", seed, got, want)
		}
	}
}

func TestStampEqualsEncoding(t *testing.T) {
	g := goldens()[0]
	late := g.header
	late.Sent, late.Clean, late.Seq, late.Total, late.Lost = -5, false, math.MaxUint64, 1<<63, 200
	data := encode(t, g.header, g.events)
	events.Stamp{Sent: late.Sent, Clean: late.Clean, Seq: late.Seq, Total: late.Total, Lost: late.Lost}.Apply(data)
	if want := encode(t, late, g.events); !bytes.Equal(data, want) {
		t.Errorf("stamped\n%x\nencoded\n%x", data, want)
	}
}

func TestBatchLimits(t *testing.T) {
	var d events.Decoder
	var b events.Batch
	fill := func(e events.Event) (n int, data []byte) {
		var w events.BatchWriter
		for w.Append(&e) == nil {
			n++
		}
		if w.Len() != n {
			t.Errorf("Len is %d after %d events", w.Len(), n)
		}
		size := w.Size()
		h := events.Header{Firewall: strings.Repeat("f", 63), Realm: strings.Repeat("r", 50), Total: math.MaxUint64, After: math.MaxUint64}
		data, err := w.Encode(&h)
		if err != nil {
			t.Fatal(err)
		}
		if head := len(data) - size; head <= 0 || head > 512 {
			t.Errorf("%d events: Size is %d of %d bytes", n, size, len(data))
		}
		if w.Len() != 0 {
			t.Errorf("not empty after Encode")
		}
		return n, data
	}
	for _, e := range []events.Event{
		{Type: events.New},
		{Type: events.Destroy, IPv6: true, NAT: true, Zone: 1, HasCounters: true},
	} {
		n, data := fill(e)
		if len(data) > events.MaxBatchBytes || n > events.MaxBatchEvents {
			t.Errorf("a full batch has %d events in %d bytes", n, len(data))
		}
		if err := d.Decode(data, &b); err != nil {
			t.Errorf("full batch of %d: %v", n, err)
		}
		if b.Count != n || len(readAll(&b)) != n {
			t.Errorf("%d events read, want %d", b.Count, n)
		}
	}

	var w events.BatchWriter
	first := events.Event{Type: events.New, Time: 1e12}
	late, early := first, first
	late.Time += 72 * 60 * 1e9
	early.Time -= 1e6
	if err := w.Append(&first); err != nil {
		t.Fatal(err)
	}
	if err := w.Append(&late); !errors.Is(err, events.ErrBatchFull) {
		t.Errorf("72 minutes later: error is %v", err)
	}
	if err := w.Append(&early); err != nil {
		t.Errorf("1 ms earlier: %v", err)
	}
	data, err := w.Encode(&events.Header{Firewall: "a", Realm: "b"})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Decode(data, &b); err != nil {
		t.Fatal(err)
	}
	if got := readAll(&b); len(got) != 2 || got[1].Time != first.Time {
		t.Errorf("an event before the first one: %+v", got)
	}
}

// fields decodes a batch into its fields, changes them, and encodes it again
// in sorted order, which is as good as any other.
func fields(t *testing.T, data []byte, change func(map[string]any)) []byte {
	t.Helper()
	m := map[string]any{}
	if err := msgpack.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	change(m)
	out, err := msgpack.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestDecodeMalformed(t *testing.T) {
	data := read(t, "testdata/mixed.msgpack")
	set := func(key string, v any) []byte {
		return fields(t, data, func(m map[string]any) { m[key] = v })
	}
	col := func(key string, change func([]byte) []byte) []byte {
		return fields(t, data, func(m map[string]any) { m[key] = change(m[key].([]byte)) })
	}
	without := func(key string) []byte {
		return fields(t, data, func(m map[string]any) { delete(m, key) })
	}
	poke := func(at int, v byte) func([]byte) []byte {
		return func(b []byte) []byte { b[at] = v; return b }
	}
	cut := func(b []byte) []byte { return b[:len(b)-1] }
	huge := []byte{0x81, 0xa1, 'x', 0xdf, 0xff, 0xff, 0xff, 0xff}
	deep := append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 200_000)...)

	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":                   {nil, "not a msgpack map"},
		"an array":                  {[]byte{0x93, 1, 2, 3}, "not a msgpack map"},
		"a nil":                     {[]byte{0xc0}, "not a msgpack map"},
		"text":                      {[]byte("GET / HTTP/1.1\r\n"), "batch"},
		"a newer version":           {set("v", 2), `field "v": unknown version 2, this program reads 1`},
		"no version":                {without("v"), `field "v" is missing`},
		"no boot":                   {without("boot"), `field "boot" is missing`},
		"no column":                 {without("status"), `field "status" is missing`},
		"a short boot":              {set("boot", []byte{1, 2}), `field "boot": 2 bytes, not 16`},
		"a long boot":               {set("boot", make([]byte, 17)), `field "boot": 17 bytes, not 16`},
		"a firewall without a name": {set("fw", ""), `field "fw": firewall name is empty`},
		"a firewall with a dot":     {set("fw", "a.b"), `'.' at position 2`},
		"a reserved firewall":       {set("fw", "fleet"), "reserved"},
		"control characters":        {set("fw", "a\x1b[31m"), `field "fw"`},
		"a realm like a zone's":     {set("realm", "default_z7"), `ends like the realm of a conntrack zone`},
		"a long realm":              {set("realm", strings.Repeat("r", 51)), "at most 50 are allowed"},
		"an epoch beyond 32 bits":   {set("epoch", uint64(1)<<32), `field "epoch": 4294967296 is out of range`},
		"a phase beyond 8 bits":     {set("phase", 256), `field "phase": 256 is out of range`},
		"an unknown phase":          {set("phase", 0x11), `field "phase": unknown bits`},
		"a number that is text":     {set("seq", "7"), `field "seq"`},
		"a column that is a number": {set("time", 7), `field "time"`},
		"more events than columns":  {set("n", 12), "11 bytes, 12 events need 12"},
		"fewer events than columns": {set("n", 10), "bytes, 10 events need 10"},
		"a negative count":          {set("n", -1), "at most 4096 are allowed"},
		"a count without end":       {set("n", uint64(math.MaxUint64)), "at most 4096 are allowed"},
		"a short column":            {col("time", cut), `column "time" has 43 bytes, 11 events need 44`},
		"a short address column":    {col("addr", cut), `column "addr"`},
		"a family of 5":             {col("family", poke(0, 5)), "event 0: family 5"},
		"a family that disagrees":   {col("family", poke(0, 6)), `column "addr" has`},
		"a type of 0":               {col("type", poke(3, 0)), "event 3: unknown type 0x0"},
		"an unknown flag":           {col("type", poke(3, 0x21)), "event 3: unknown type 0x21"},
		"a sparse column cut":       {col("nat", cut), `column "nat" ends within an entry`},
		"a sparse index too large":  {col("zone", poke(0, 11)), `column "zone": index 11`},
		"sparse indexes descending": {col("zone", poke(0, 10)), `column "zone": index 10 after 10`},
		"truncated":                 {cut(data), "batch"},
		"bytes after the end":       {append(slices.Clone(data), 0), "1 bytes after its end"},
		"too many bytes":            {make([]byte, events.MaxBatchBytes+1), "at most 262144 are allowed"},
		"a key that is no string":   {[]byte{0x81, 0x01, 0x01}, "key"},
		"a length without bytes":    {[]byte{0x81, 0xc6, 0xff, 0xff, 0xff, 0xff}, "key"},
		"a huge unknown map":        {huge, `field "x"`},
		"deep nesting":              {deep, `field "x"`},
		"only unknown fields":       {[]byte{0x81, 0xa1, 'x', 0x90}, `field "v" is missing`},
	} {
		t.Run(name, func(t *testing.T) {
			var d events.Decoder
			var b events.Batch
			for range 2 { // a decoder remembers nothing of what it refused
				if err := d.Decode(c.data, &b); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Fatalf("error is %v, want one with %q", err, c.want)
				}
			}
		})
	}
	for n := range data {
		var d events.Decoder
		var b events.Batch
		if err := d.Decode(data[:n:n], &b); err == nil {
			t.Errorf("the first %d of %d bytes are taken as a batch", n, len(data))
		}
	}
}

func TestDecodeVersionIsAnError(t *testing.T) {
	data := fields(t, read(t, "testdata/ipv4.msgpack"), func(m map[string]any) { m["v"] = 9 })
	var d events.Decoder
	var b events.Batch
	if err := d.Decode(data, &b); !errors.Is(err, events.ErrVersion) {
		t.Errorf("error is %v, want ErrVersion", err)
	}
}

func TestDecodeRepeatedField(t *testing.T) {
	data := read(t, "testdata/empty.msgpack")
	fields := binary.BigEndian.Uint16(data[1:]) // a map 16: 0xde and two bytes
	again := append(slices.Clone(data), 0xa3, 's', 'e', 'q', 1)
	binary.BigEndian.PutUint16(again[1:], fields+1)
	var d events.Decoder
	var b events.Batch
	if err := d.Decode(again, &b); err == nil || !strings.Contains(err.Error(), `field "seq" appears twice`) {
		t.Errorf("error is %v", err)
	}
}

func TestDecodeSkipsUnknownFields(t *testing.T) {
	data := read(t, "testdata/mixed.msgpack")
	more := fields(t, data, func(m map[string]any) {
		m["country"] = map[string]any{"a": []any{1, "x", nil, map[string]int{"y": 1}}, "b": bytes.Repeat([]byte{7}, 300)}
		m["zz"] = 1.5
	})
	sameLines(t, describe(t, more), describe(t, data))
}

// raceEnabled is set by race_test.go: the race detector allocates.
var raceEnabled bool

func TestBatchDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	evs := hundreds()
	var w events.BatchWriter
	h := goldens()[0].header
	var data []byte
	if n := testing.AllocsPerRun(100, func() {
		for i := range evs {
			if err := w.Append(&evs[i]); err != nil {
				t.Fatal(err)
			}
		}
		var err error
		if data, err = w.Encode(&h); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("Append and Encode: %v allocations for %d events", n, len(evs))
	}
	var d events.Decoder
	var b events.Batch
	var e events.Event
	if n := testing.AllocsPerRun(100, func() {
		if err := d.Decode(data, &b); err != nil {
			t.Fatal(err)
		}
		for r := b.Events(); r.Next(&e); {
		}
	}); n != 0 {
		t.Errorf("Decode and Next: %v allocations for %d events", n, len(evs))
	}
}

// hundreds is a batch as producers send it: 512 events, IPv4, no NAT.
func hundreds() []events.Event {
	evs := make([]events.Event, 512)
	for i := range evs {
		evs[i] = goldens()[0].events[0]
		evs[i].Time += int64(i) * 19_000
		evs[i].Orig.Src.Lo += uint64(i)
	}
	return evs
}

// TestBriefs: events in brief are the events, of whatever is in the batch.
func TestBriefs(t *testing.T) {
	for _, g := range goldens() {
		var d events.Decoder
		var b events.Batch
		if err := d.Decode(encode(t, g.header, g.events), &b); err != nil {
			t.Fatal(err)
		}
		briefs := b.AppendBriefs([]events.Brief{{Proto: 99}})
		if len(briefs) != 1+b.Count || briefs[0].Proto != 99 {
			t.Fatalf("%d briefs appended to one, want %d", len(briefs)-1, b.Count)
		}
		var e events.Event
		for i, r := 1, b.Events(); r.Next(&e); i++ {
			want := events.Brief{Src: e.Orig.Src, Dst: e.Orig.Dst, Time: e.Time, DstPort: e.Orig.DstPort, Status: e.Status, Zone: e.Zone, Type: e.Type, Flags: e.Flags, Proto: e.Proto, IPv6: e.IPv6}
			if briefs[i] != want {
				t.Errorf("event %d in brief is %+v, want %+v", i-1, briefs[i], want)
			}
		}
	}
}

func BenchmarkEncode(b *testing.B) {
	evs := hundreds()
	var w events.BatchWriter
	h := goldens()[0].header
	b.ReportAllocs()
	for b.Loop() {
		for i := range evs {
			if err := w.Append(&evs[i]); err != nil {
				b.Fatal(err)
			}
		}
		if _, err := w.Encode(&h); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(evs)), "ns/event")
}

func BenchmarkDecode(b *testing.B) {
	evs := hundreds()
	data := encode(b, goldens()[0].header, evs)
	var d events.Decoder
	var batch events.Batch
	run := func(name string, read func()) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := d.Decode(data, &batch); err != nil {
					b.Fatal(err)
				}
				read()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(evs)), "ns/event")
		})
	}
	var e events.Event
	var briefs []events.Brief
	run("check", func() {})
	run("events", func() {
		for r := batch.Events(); r.Next(&e); {
		}
	})
	run("briefs", func() { briefs = batch.AppendBriefs(briefs[:0]) })
}

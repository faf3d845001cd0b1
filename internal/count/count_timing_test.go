package count

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// load makes batches of 512 events as a firewall under load sends them, from many sources to few destinations.
type load struct {
	bytes [][]byte
	base  int // offset of the field of the same name
	seq   uint64
	at    int64
	dec   events.Decoder
	batch events.Batch
}

// mix is what the events of a load are: with both, half of them NEW and half DESTROY.
type mix struct {
	source func() uint64
	ipv6   bool
	ends   bool
	// apart: so many firewalls take turns, and each has a part of the sources to itself.
	apart int
}

const loadEvents = 512

func newLoad(b testing.TB, batches int, m mix) *load {
	b.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	l := &load{at: day, bytes: make([][]byte, batches)}
	var w events.BatchWriter
	for i := range batches {
		source := m.source
		if m.apart > 0 {
			each := uint64(1_000_000 / m.apart)
			source = func() uint64 { return uint64(i%m.apart)*each + m.source()%each }
		}
		for j := range loadEvents {
			e := events.Event{Time: int64(j) * 19_000, Type: events.New, Proto: 6, ID: r.Uint32(), IPv6: m.ipv6}
			e.Orig = events.Tuple{Src: events.Addr{Lo: 0xc6120000 + source()}, Dst: events.Addr{Lo: 0xcb007100 + r.Uint64N(200)}, SrcPort: uint16(r.Uint32()), DstPort: 443}
			if m.ipv6 {
				e.Orig.Src.Hi, e.Orig.Dst.Hi = 0x20010db8<<32, 0x20010db8<<32
			}
			if m.ends && j%2 == 1 {
				e.Type = events.Destroy
				if j%4 != 1 {
					e.Status = events.StatusSeenReply
				}
			}
			if err := w.Append(&e); err != nil {
				b.Fatal(err)
			}
		}
		data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: "default", Epoch: 1, Clean: true})
		if err != nil {
			b.Fatal(err)
		}
		l.bytes[i] = bytes.Clone(data)
		l.base = bytes.Index(data, []byte("base")) + len("base") + 1
	}
	return l
}

// next returns a batch as if it were sent now, and how long after the last.
func (l *load) next(b testing.TB, gap time.Duration) (*events.Batch, int64) {
	data := l.bytes[l.seq%uint64(len(l.bytes))]
	l.seq++
	l.at += int64(gap)
	events.Stamp{Sent: l.at, Clean: true, Seq: l.seq, Total: l.seq * loadEvents}.Apply(data)
	binary.BigEndian.PutUint64(data[l.base:], uint64(l.at-10e6))
	if err := l.dec.Decode(data, &l.batch); err != nil {
		b.Fatal(err)
	}
	return &l.batch, l.at
}

func loadedCounter(tb testing.TB, l *load, firewalls int, cfg Config) (*Counter, []string) {
	tb.Helper()
	if cfg.Windows == nil {
		cfg.Windows = []time.Duration{10 * time.Second, 60 * time.Second}
	}
	c, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	names := make([]string, firewalls)
	for i := range names {
		names[i] = fmt.Sprint("fw-", i)
		whole := events.Batch{Header: events.Header{Realm: "default", Seq: 1, Epoch: 1, Phase: events.SnapshotPart | events.SnapshotBegin | events.SnapshotEnd}}
		if _, err := c.ApplySnapshot(names[i], &whole, day); err != nil {
			tb.Fatal(err)
		}
	}
	for i := range max(2*len(l.bytes), 2*firewalls) {
		apply(tb, c, l, names[i%firewalls])
	}
	return c, names
}

// loadGap between batches of 512: 4 M events/s.
const loadGap = 128 * time.Microsecond

func apply(tb testing.TB, c *Counter, l *load, firewall string) {
	b, stream := l.next(tb, loadGap)
	if _, err := c.Apply(firewall, b, stream); err != nil {
		tb.Fatal(err)
	}
}

// raceEnabled is set by race_test.go.
var raceEnabled bool

// TestApplyDoesNotAllocate: in steady state, with keys that are known and some
// that are over a level, counting allocates nothing.
func TestApplyDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	r := rand.New(rand.NewPCG(1, 1))
	for name, c := range map[string]struct {
		ipv6   bool
		levels []Level
	}{
		"IPv4":           {},
		"IPv6":           {ipv6: true},
		"over its level": {levels: []Level{{Set{Track: ByDst}, Fleet, time.Second, 10}, {Set{Track: ByDst, Metric: Active}, Firewall, 0, 1}}},
	} {
		l := newLoad(t, 40, mix{source: func() uint64 { return r.Uint64N(500) }, ipv6: c.ipv6, ends: true})
		counter, names := loadedCounter(t, l, 2, Config{Windows: []time.Duration{time.Second, 3 * time.Second}, Levels: c.levels})
		apply := func(tb testing.TB, c *Counter, l *load, firewall string) {
			b, stream := l.next(tb, 10*time.Millisecond)
			if _, err := c.Apply(firewall, b, stream); err != nil {
				tb.Fatal(err)
			}
		}
		for i := range 2000 { // until every window has filled and every history has its size
			apply(t, counter, l, names[i%2])
		}
		i := 0
		if n := testing.AllocsPerRun(400, func() {
			apply(t, counter, l, names[i%2])
			i++
		}); n > 0 {
			t.Errorf("%s: %v allocations for a batch of 512 events", name, n)
		}
	}
}

func even(keys uint64) func() uint64 {
	r := rand.New(rand.NewPCG(3, 3))
	return func() uint64 { return r.Uint64N(keys) }
}

func zipf(keys uint64) func() uint64 {
	return rand.NewZipf(rand.New(rand.NewPCG(3, 3)), 1.2, 1, keys-1).Uint64
}

// BenchmarkApply decodes and counts batches by source and destination, on the
// firewall and in the fleet, with active: everything that is always kept.
func BenchmarkApply(b *testing.B) {
	var eight []Level
	windows := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute}
	for _, w := range windows {
		eight = append(eight, Level{Set{}, Fleet, w, 1_000_000_000})
	}
	one := Config{Windows: []time.Duration{10 * time.Second}, Levels: eight[3:4]}
	rules := Config{Windows: windows, Levels: eight}
	match := Config{Windows: one.Windows, Levels: []Level{eight[3], {Set{Match: MatchProtocol(6, 443)}, Fleet, 10 * time.Second, 1_000_000_000}}}
	prefix := Config{Windows: one.Windows, Levels: []Level{eight[3], {Set{IPv4Bits: 24}, Fleet, 10 * time.Second, 1_000_000_000}}}
	for _, c := range []struct {
		name      string
		mix       mix
		firewalls int
		cfg       Config
	}{
		{"even/rules=8", mix{source: even(1_000_000)}, 1, rules},
		{"zipf/rules=8", mix{source: zipf(1_000_000)}, 1, rules},
		{"even/rules=8/ends", mix{source: even(1_000_000), ends: true}, 1, rules},
		{"zipf/rules=8/ends", mix{source: zipf(1_000_000), ends: true}, 1, rules},
		{"even/rules=1", mix{source: even(1_000_000)}, 1, one},
		{"zipf/rules=1", mix{source: zipf(1_000_000)}, 1, one},
		{"zipf/rules=1/ipv6", mix{source: zipf(1_000_000), ipv6: true}, 1, one},
		{"zipf/rules=1/match", mix{source: zipf(1_000_000)}, 1, match},
		{"zipf/rules=1/prefix", mix{source: zipf(1_000_000)}, 1, prefix},
		{"even/rules=1/apart=1", mix{source: even(1_000_000), apart: 1}, 1, one},
		{"even/rules=1/apart=10", mix{source: even(1_000_000), apart: 10}, 10, one},
		{"even/rules=1/apart=100", mix{source: even(1_000_000), apart: 100}, 100, one},
		{"even/rules=1/apart=1000", mix{source: even(1_000_000), apart: 1000}, 1000, one},
		{"zipf/rules=1/shared=2", mix{source: zipf(1_000_000)}, 2, one},
		{"zipf/rules=1/shared=10", mix{source: zipf(1_000_000)}, 10, one},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLoad(b, 4000, c.mix)
			counter, names := loadedCounter(b, l, c.firewalls, c.cfg)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				apply(b, counter, l, names[i%len(names)])
				i++
			}
			b.ReportMetric(float64(b.N*loadEvents)/b.Elapsed().Seconds()/1e6, "Mevents/s")
			s := counter.Stats()
			b.ReportMetric(float64(s.Bytes)/float64(s.Keys), "B/key")
		})
	}
}

// BenchmarkGoMap is what one would write first: a Go map by address, without
// windows, duplicates, epochs or bounds; by source and destination, on the
// firewall and in the fleet.
func BenchmarkGoMap(b *testing.B) {
	for _, c := range []struct {
		name   string
		source func(uint64) func() uint64
	}{{"even", even}, {"zipf", zipf}} {
		b.Run(c.name, func(b *testing.B) {
			l := newLoad(b, 2000, mix{source: c.source(1_000_000), ends: true})
			var maps [4]map[netip.Addr]uint64
			for i := range maps {
				maps[i] = map[netip.Addr]uint64{}
			}
			var e events.Event
			count := func() {
				batch, _ := l.next(b, loadGap)
				for r := batch.Events(); r.Next(&e); {
					src, dst := e.Src(), e.Dst()
					maps[0][src]++
					maps[1][dst]++
					maps[2][src]++
					maps[3][dst]++
				}
			}
			for range 4000 {
				count()
			}
			b.ReportAllocs()
			for b.Loop() {
				count()
			}
			b.ReportMetric(float64(b.N*loadEvents)/b.Elapsed().Seconds()/1e6, "Mevents/s")
		})
	}
}

package count

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// load makes batches of 512 events as a firewall under load sends them: half of
// them NEW and half DESTROY, from many sources to few destinations.
type load struct {
	batches []events.Batch
	bytes   [][]byte
	seq     uint64
	at      int64
}

func newLoad(b testing.TB, batches int, source func() uint64, ipv6 bool) *load {
	b.Helper()
	r := rand.New(rand.NewPCG(7, 7))
	l := &load{at: day, batches: make([]events.Batch, batches), bytes: make([][]byte, batches)}
	var w events.BatchWriter
	var d events.Decoder
	for i := range batches {
		for j := range 512 {
			e := events.Event{Time: int64(j) * 19_000, Type: events.New + events.Type(j%2), Proto: 6, ID: r.Uint32(), IPv6: ipv6}
			e.Orig = events.Tuple{Src: events.Addr{Lo: 0xc6120000 + source()}, Dst: events.Addr{Lo: 0xcb007100 + r.Uint64N(200)}, SrcPort: uint16(r.Uint32()), DstPort: 443}
			if ipv6 {
				e.Orig.Src.Hi, e.Orig.Dst.Hi = 0x20010db8<<32, 0x20010db8<<32
			}
			if e.Type == events.Destroy && j%4 != 1 {
				e.Status = events.StatusSeenReply
			}
			if err := w.Append(&e); err != nil {
				b.Fatal(err)
			}
		}
		data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: "default", Epoch: 1, Clean: true})
		if err != nil {
			b.Fatal(err)
		}
		l.bytes[i] = append([]byte(nil), data...)
		if err := d.Decode(l.bytes[i], &l.batches[i]); err != nil {
			b.Fatal(err)
		}
	}
	return l
}

// next returns a batch as if it were sent now, 10 ms after the last.
func (l *load) next() (*events.Batch, int64) {
	b := &l.batches[l.seq%uint64(len(l.batches))]
	l.seq++
	l.at += 10e6
	b.Seq, b.Total, b.Base, b.Sent = l.seq, l.seq*512, l.at-10e6, l.at
	return b, l.at
}

func loadedCounter(tb testing.TB, l *load, firewalls int, cfg Config) (*Counter, []string) {
	tb.Helper()
	if cfg.Windows == nil {
		cfg.Windows = []time.Duration{10 * time.Second, 60 * time.Second}
	}
	cfg.MaxKeys = 1 << 21
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
	for i := range max(2*len(l.batches), 2*firewalls) {
		apply(tb, c, l, names[i%firewalls])
	}
	return c, names
}

func apply(tb testing.TB, c *Counter, l *load, firewall string) {
	b, stream := l.next()
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
		l := newLoad(t, 40, func() uint64 { return r.Uint64N(500) }, c.ipv6)
		counter, names := loadedCounter(t, l, 2, Config{Windows: []time.Duration{time.Second, 3 * time.Second}, Levels: c.levels})
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

// BenchmarkApply counts decoded batches by source and destination, on the
// firewall and in the fleet, with active: everything that is always kept.
func BenchmarkApply(b *testing.B) {
	var eight []Level
	windows := []time.Duration{time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute}
	for _, w := range windows {
		eight = append(eight, Level{Set{}, Fleet, w, 1_000_000})
	}
	for _, c := range []struct {
		name      string
		source    func(uint64) func() uint64
		ipv6      bool
		firewalls int
		cfg       Config
	}{
		{"even", even, false, 1, Config{}},
		{"zipf", zipf, false, 1, Config{}},
		{"zipf/ipv6", zipf, true, 1, Config{}},
		{"zipf/rules=8", zipf, false, 1, Config{Windows: windows, Levels: eight}},
		{"zipf/firewalls=100", zipf, false, 100, Config{}},
		{"zipf/match", zipf, false, 1, Config{Levels: []Level{{Set{Match: MatchProtocol(6, 443)}, Fleet, 10 * time.Second, 1_000_000}}}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLoad(b, 2000, c.source(1_000_000), c.ipv6)
			counter, names := loadedCounter(b, l, c.firewalls, c.cfg)
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				apply(b, counter, l, names[i%len(names)])
				i++
			}
			b.ReportMetric(float64(b.N*512)/b.Elapsed().Seconds(), "events/s")
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
			l := newLoad(b, 2000, c.source(1_000_000), false)
			var maps [4]map[netip.Addr]uint64
			for i := range maps {
				maps[i] = map[netip.Addr]uint64{}
			}
			var e events.Event
			count := func() {
				batch, _ := l.next()
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
			b.ReportMetric(float64(b.N*512)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

package count

import (
	"fmt"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// load is an endless stream of batches of 512 events, from many sources to few destinations.
type load struct {
	loop  *synth.Loop
	gap   time.Duration // between batches
	dec   events.Decoder
	batch events.Batch
}

const loadEvents = 512

// mix is what a load is made of.
type mix struct {
	sources *synth.Draw
	ipv6    bool
	ends    bool // flows end: half the events are DESTROY
	// apart: so many firewalls take turns, and each has a part of the sources to
	// itself; 0: one firewall.
	apart int
}

func newLoad(tb testing.TB, batches int, gap time.Duration, m mix) *load {
	tb.Helper()
	const sources = 1_000_000
	var loads []*synth.Load
	for i := range max(m.apart, 1) {
		cfg := synth.Config{Firewall: "fw-a", Realm: "default", Sources: m.sources.Share(uint64(i)), Destinations: synth.Even(200, uint64(i)), IPv6: m.ipv6}
		if m.apart > 0 {
			cfg.Count = uint32(sources / m.apart)
			cfg.First = uint32(i) * cfg.Count
		}
		if m.ends {
			cfg.Open = 20_000
		}
		loads = append(loads, synth.NewLoad(cfg))
	}
	loop, err := synth.NewLoop(loads, batches, loadEvents, day, 10e6)
	if err != nil {
		tb.Fatal(err)
	}
	return &load{loop: loop, gap: gap}
}

// apply decodes the next batch and counts it, as of the firewall whose it is or,
// where all is one firewall's, of each in turn.
func (l *load) apply(tb testing.TB, c *Counter, firewalls []string, turn int) {
	data, load, at := l.loop.Next(int64(l.gap))
	if err := l.dec.Decode(data, &l.batch); err != nil {
		tb.Fatal(err)
	}
	name := firewalls[load]
	if turn >= 0 {
		name = firewalls[turn%len(firewalls)]
	}
	if _, err := c.Apply(name, &l.batch, at); err != nil {
		tb.Fatal(err)
	}
}

func loadedCounter(tb testing.TB, l *load, firewalls int, shared bool, cfg Config) (c *Counter, step func()) {
	tb.Helper()
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
	turn := -1
	step = func() {
		if shared {
			turn++
		}
		l.apply(tb, c, names, turn)
	}
	for range max(2*l.loop.Len(), 2*firewalls) {
		step()
	}
	return c, step
}

// raceEnabled is set by race_test.go.
var raceEnabled bool

// TestApplyDoesNotAllocate: in steady state, with keys that are known and some
// that are over a level, counting allocates nothing.
func TestApplyDoesNotAllocate(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for name, c := range map[string]struct {
		ipv6   bool
		levels []Level
	}{
		"IPv4":           {},
		"IPv6":           {ipv6: true},
		"over its level": {levels: []Level{{Set{Track: ByDst}, Fleet, time.Second, 10}, {Set{Track: ByDst, Metric: Active}, Firewall, 0, 1}}},
	} {
		l := newLoad(t, 40, 10*time.Millisecond, mix{sources: synth.Even(500, 1), ipv6: c.ipv6, ends: true})
		_, step := loadedCounter(t, l, 2, true, Config{Windows: []time.Duration{time.Second, 3 * time.Second}, Levels: c.levels})
		for range 2000 { // until every window has filled and every history has its size
			step()
		}
		if n := testing.AllocsPerRun(400, step); n > 0 {
			t.Errorf("%s: %v allocations for a batch of 512 events", name, n)
		}
	}
}

// loadGap between batches of 512: 4 M events/s.
const loadGap = 128 * time.Microsecond

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
	even, zipf := synth.Even(1_000_000, 3), synth.Zipf(1_000_000, 3)
	for _, c := range []struct {
		name   string
		mix    mix
		shared int // firewalls that all see the same addresses
		cfg    Config
	}{
		{"even/rules=8", mix{sources: even}, 1, rules},
		{"zipf/rules=8", mix{sources: zipf}, 1, rules},
		{"even/rules=8/ends", mix{sources: even, ends: true}, 1, rules},
		{"zipf/rules=8/ends", mix{sources: zipf, ends: true}, 1, rules},
		{"even/rules=1", mix{sources: even}, 1, one},
		{"zipf/rules=1", mix{sources: zipf}, 1, one},
		{"zipf/rules=1/ipv6", mix{sources: zipf, ipv6: true}, 1, one},
		{"zipf/rules=1/match", mix{sources: zipf}, 1, match},
		{"zipf/rules=1/prefix", mix{sources: zipf}, 1, prefix},
		{"even/rules=1/apart=1", mix{sources: even, apart: 1}, 0, one},
		{"even/rules=1/apart=10", mix{sources: even, apart: 10}, 0, one},
		{"even/rules=1/apart=100", mix{sources: even, apart: 100}, 0, one},
		{"even/rules=1/apart=1000", mix{sources: even, apart: 1000}, 0, one},
		{"zipf/rules=1/shared=2", mix{sources: zipf}, 2, one},
		{"zipf/rules=1/shared=10", mix{sources: zipf}, 10, one},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := newLoad(b, 8192, loadGap, c.mix)
			counter, step := loadedCounter(b, l, max(c.mix.apart, c.shared), c.shared > 0, c.cfg)
			b.ReportAllocs()
			for b.Loop() {
				step()
			}
			b.ReportMetric(float64(b.N*loadEvents)/b.Elapsed().Seconds()/1e6, "Mevents/s")
			s := counter.Stats()
			b.ReportMetric(float64(s.Bytes)/float64(s.Keys), "B/key")
		})
	}
}

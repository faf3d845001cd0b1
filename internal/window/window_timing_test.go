package window

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

const sec = time.Second

var (
	oneWindow    = []time.Duration{10 * sec}
	eightWindows = []time.Duration{sec, 5 * sec, 10 * sec, 30 * sec, 60 * sec, 300 * sec, 900 * sec, 3600 * sec}
)

func levels(windows []time.Duration, perSecond uint64) (l []Level) {
	for _, w := range windows {
		l = append(l, Level{Window: w, Count: perSecond * uint64(w/sec)})
	}
	return l
}

// A load is an endless stream of events, in batches of 512, 4 M events in a second.
type load struct {
	draw []Key // drawn in advance, so that drawing is not measured
	next int
	now  int64
}

const (
	batchSize = 512
	eventGap  = 250 // ns
)

func newLoad(zipf bool, keys int) *load {
	r := rand.New(rand.NewPCG(1, 2))
	z := rand.NewZipf(r, 1.1, 1, uint64(keys-1))
	draw := make([]Key, 1<<21)
	for i := range draw {
		n := uint64(r.IntN(keys))
		if zipf {
			n = z.Uint64()
		}
		draw[i] = Key{Lo: 0xffff_0a00_0000 + n*2654435761%(1<<24)}
	}
	return &load{draw: draw, now: 1e18}
}

func (l *load) fill(events []Event) {
	for i := range events {
		l.now += eventGap
		events[i] = Event{Key: l.draw[l.next], At: l.now, N: 1, Series: 1}
		l.next = (l.next + 1) % (1 << 21)
	}
}

func BenchmarkAdd(b *testing.B) {
	const keys = 1 << 20
	for _, spread := range []string{"even", "zipf"} {
		for _, windows := range [][]time.Duration{oneWindow, eightWindows} {
			load := newLoad(spread == "zipf", keys)
			table := newTable(b, Config{Windows: windows, Levels: levels(windows, 350), MaxKeys: 2 * keys})
			events, hot := make([]Event, batchSize), make([]Hot, 0, batchSize)
			for range 20_000_000 / batchSize {
				load.fill(events)
				table.Advance(load.now)
				table.AddBatch(events, hot)
			}
			run := func(name string, add func()) {
				b.Run(fmt.Sprintf("%s/windows=%d/%s", spread, len(windows), name), func(b *testing.B) {
					b.ReportAllocs()
					for i := 0; i < b.N; i += batchSize {
						load.fill(events)
						table.Advance(load.now)
						add()
					}
					s := table.Stats()
					b.ReportMetric(float64(s.Bytes)/float64(s.Keys), "B/key")
				})
			}
			run("none", func() {})
			run("batch", func() { hot = table.AddBatch(events, hot[:0]) })
		}
	}
}

// BenchmarkDisorder: each batch is as late as firewalls are among each other, or as
// a ring that is flushed after an outage.
func BenchmarkDisorder(b *testing.B) {
	for _, late := range []time.Duration{0, 20 * time.Millisecond, 30 * time.Second} {
		b.Run(late.String(), func(b *testing.B) {
			load := newLoad(true, 1<<20)
			table := newTable(b, Config{Windows: eightWindows, Levels: levels(eightWindows, 350)})
			events, hot := make([]Event, batchSize), make([]Hot, 0, batchSize)
			n := 0
			step := func() {
				load.fill(events)
				if n++; n%2 == 0 {
					for i := range events {
						events[i].At -= int64(late)
					}
				}
				table.Advance(load.now)
				hot = table.AddBatch(events, hot[:0])
			}
			for range 8_000_000 / batchSize {
				step()
			}
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += batchSize {
				step()
			}
		})
	}
}

// BenchmarkFlood: every event is of a key never seen before, and the table is full.
func BenchmarkFlood(b *testing.B) {
	const keys = 1 << 20
	table := newTable(b, Config{Windows: eightWindows, Levels: levels(eightWindows, 350), MaxKeys: keys})
	r := rand.New(rand.NewPCG(1, 2))
	events, hot := make([]Event, batchSize), make([]Hot, 0, batchSize)
	now := int64(1e18)
	step := func() {
		for i := range events {
			now += 3750 // 16 M in a minute
			events[i] = Event{Key: Key{Lo: r.Uint64()}, At: now, N: 1, Series: 1}
		}
		table.Advance(now)
		hot = table.AddBatch(events, hot[:0])
	}
	for range 2 * keys / batchSize {
		step()
	}
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i += batchSize {
		step()
	}
	s := table.Stats()
	b.ReportMetric(float64(s.Bytes)/float64(s.Keys), "B/key")
}

// BenchmarkTop asks for the largest 20 of a million keys.
func BenchmarkTop(b *testing.B) {
	load := newLoad(false, 1<<20)
	table := newTable(b, Config{Windows: eightWindows})
	events := make([]Event, batchSize)
	for range 12_000_000 / batchSize {
		load.fill(events)
		table.Advance(load.now)
		table.AddBatch(events, nil)
	}
	for _, w := range []time.Duration{sec, 60 * sec} {
		b.Run(w.String(), func(b *testing.B) {
			for b.Loop() {
				table.Top(0, table.At(w, load.now), Filter{}, 20)
			}
		})
	}
}

// BenchmarkChange is how long counting stands still when rules are changed, for a
// million keys that are counted in three windows: with other levels only, and with
// another window.
func BenchmarkChange(b *testing.B) {
	const keys = 1 << 20
	windows := []time.Duration{10 * sec, 30 * sec, 60 * sec}
	for _, other := range [][]time.Duration{windows, {10 * sec, 60 * sec, 300 * sec}} {
		load := newLoad(false, keys)
		table := newTable(b, Config{Windows: windows, Levels: levels(windows, 350), MaxKeys: 2 * keys})
		events, hot := make([]Event, batchSize), make([]Hot, 0, batchSize)
		for range 20_000_000 / batchSize {
			load.fill(events)
			table.Advance(load.now)
			table.AddBatch(events, hot)
		}
		b.Run(fmt.Sprintf("windows=%v", other), func(b *testing.B) {
			for range b.N {
				if err := table.Change(Config{Windows: other, Levels: levels(other, 100)}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

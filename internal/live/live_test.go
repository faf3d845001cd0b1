package live

import (
	"math/rand/v2"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func flow(i uint32, typ events.Type) *events.Event {
	return &events.Event{Type: typ, Proto: 17, ID: i,
		Orig: events.Tuple{Src: events.Addr{Lo: uint64(i % 7)}, Dst: events.Addr{Lo: uint64(i % 11)}, SrcPort: uint16(i), DstPort: uint16(i >> 16)}}
}

// TestEachFlowOnce drives random orders of events and dump rows, as a kernel
// with two sockets may deliver them, and compares the sums that a consumer
// makes from the flags with the truth.
func TestEachFlowOnce(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	table := New()
	truth := map[uint32]bool{}
	held, next := 0, 0 // what a consumer sums for the last epoch and the new one

	apply := func(e *events.Event, dumping bool) {
		table.Apply(e)
		d := 1
		if e.Type == events.Destroy {
			d = -1
		}
		if dumping {
			if e.Flags&events.Unheld == 0 {
				next += d
			}
			if e.Flags&events.UnheldBefore == 0 {
				held += d
			}
		} else if e.Flags&events.Unheld == 0 {
			held += d
		}
	}
	change := func(dumping bool) {
		i := rng.Uint32N(2000)
		typ := events.New
		if truth[i] {
			typ = events.Destroy
		}
		truth[i] = typ == events.New
		if !truth[i] {
			delete(truth, i)
		}
		apply(flow(i, typ), dumping)
	}
	for round := range 50 {
		for range 500 {
			change(false)
		}
		table.Begin()
		next = 0
		// The dump copies rows as they are now; we read them later, mixed with
		// events that happen meanwhile.
		var rows []uint32
		for i := range uint32(2000) {
			if truth[i] {
				rows = append(rows, i)
			}
		}
		rng.Shuffle(len(rows), func(a, b int) { rows[a], rows[b] = rows[b], rows[a] })
		for _, i := range rows {
			for rng.IntN(3) == 0 {
				change(true)
			}
			if table.Existing(flow(i, events.Existing)) {
				next++
			}
		}
		if held != len(truth) {
			t.Fatalf("seed %d round %d: the old epoch counts %d during the dump, the table holds %d", seed, round, held, len(truth))
		}
		table.End()
		held = next
		if held != len(truth) || table.Len() != len(truth) {
			t.Fatalf("seed %d round %d: the new epoch counts %d, the index %d, the table holds %d", seed, round, held, table.Len(), len(truth))
		}
	}
}

func TestUnknownFlowsDoNotCount(t *testing.T) {
	table := New()
	table.Begin()
	table.End()
	e := flow(1, events.Destroy)
	if table.Apply(e); e.Flags&events.Unheld == 0 {
		t.Error("the end of a flow that was never held changes the count")
	}
	e = flow(2, events.New)
	if table.Apply(e); e.Flags != 0 {
		t.Errorf("a new flow has flags %#x", e.Flags)
	}
	again := flow(2, events.New)
	if table.Apply(again); again.Flags&events.Unheld == 0 {
		t.Error("the same flow twice counts twice")
	}
}

func TestSetKeepsAndForgets(t *testing.T) {
	var s set
	const n = 100_000
	value := func(i uint64) uint64 { return mix(i+1, 0x9e3779b97f4a7c15) | 1 } // spread, as fingerprints are
	for i := range uint64(n) {
		s.add(value(i))
	}
	held := s.n // two values may be the same
	if held < n-10 {
		t.Fatalf("%d of %d values are held", held, n)
	}
	for i := range uint64(n) {
		if i%3 != 0 && !s.remove(value(i)) {
			t.Fatalf("%d was lost", i)
		}
	}
	for i := range uint64(n) {
		if s.has(value(i)) != (i%3 == 0) {
			t.Fatalf("%d: wrongly kept or forgotten", i)
		}
	}
	for i := range uint64(n) {
		s.remove(value(i))
	}
	if s.n != 0 || len(s.slots) > 1024 {
		t.Errorf("%d left, %d slots kept", s.n, len(s.slots))
	}
}

func TestApplyDoesNotAllocate(t *testing.T) {
	table := New()
	for i := range uint32(10_000) {
		table.Apply(flow(i, events.New))
	}
	e, d := flow(20_000, events.New), flow(20_000, events.Destroy)
	if n := testing.AllocsPerRun(1000, func() { table.Apply(e); table.Apply(d) }); n != 0 {
		t.Errorf("%v allocations per flow", n)
	}
}

func BenchmarkApply(b *testing.B) {
	table := New()
	const live = 1 << 20
	evs := make([]events.Event, live)
	for i := range evs {
		evs[i] = *flow(uint32(i), events.New)
		table.Apply(&evs[i])
	}
	b.ReportAllocs()
	b.ReportMetric(float64(table.Bytes())/live, "B/flow")
	for i := 0; b.Loop(); i++ {
		e := &evs[i&(live-1)]
		e.Type = events.Destroy
		table.Apply(e)
		e.Type = events.New
		table.Apply(e)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(2*b.N), "ns/event")
	b.ReportMetric(float64(table.Bytes())/live, "B/flow")
}

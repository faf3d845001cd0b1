package live

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func flow(i uint32, typ events.Type) events.Event {
	return events.Event{Type: typ, Proto: 17, ID: i,
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

	apply := func(evs []events.Event, dumping bool) {
		table.ApplyAll(evs)
		for _, e := range evs {
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
	}
	// change is n events, of which one flow may begin and end.
	change := func(n int, dumping bool) {
		var evs []events.Event
		for range n {
			i := rng.Uint32N(2000)
			typ := events.New
			if truth[i] {
				typ = events.Destroy
			}
			truth[i] = typ == events.New
			if !truth[i] {
				delete(truth, i)
			}
			evs = append(evs, flow(i, typ))
		}
		apply(evs, dumping)
	}
	for round := range 50 {
		for range 10 {
			change(rng.IntN(100), false)
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
		for len(rows) > 0 {
			n := min(1+rng.IntN(20), len(rows))
			var some []events.Event
			for _, i := range rows[:n] {
				some = append(some, flow(i, events.Existing))
			}
			rows = rows[n:]
			change(rng.IntN(20), true)
			next += len(table.ExistingAll(some))
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
	evs := []events.Event{flow(1, events.Destroy), flow(2, events.New), flow(2, events.New)}
	table.ApplyAll(evs)
	if evs[0].Flags&events.Unheld == 0 {
		t.Error("the end of a flow that was never held changes the count")
	}
	if evs[1].Flags != 0 {
		t.Errorf("a new flow has flags %#x", evs[1].Flags)
	}
	if evs[2].Flags&events.Unheld == 0 {
		t.Error("the same flow twice counts twice")
	}
}

func TestSetKeepsAndForgets(t *testing.T) {
	var s set
	const n = 100_000
	value := func(i uint64) uint64 { return mix(i+1, 0x9e3779b97f4a7c15) &^ 1 } // spread, as fingerprints are
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
	if kept := s.bytes(); s.n != 0 || kept > len(s.segments)*8*(minHomes+minOverhang) {
		t.Errorf("%d left, %d bytes kept", s.n, kept)
	}
}

// TestDumpDoesNotShrink: flows that come and go at the beginning of a dump do
// not make its set shrink, which is about to hold as many as the one before.
func TestDumpDoesNotShrink(t *testing.T) {
	table := New()
	flow := func(i int, kind events.Type) *events.Event { return &events.Event{Type: kind, ID: uint32(i)} }
	const n = 200_000
	for i := range n {
		table.Apply(flow(i, events.New))
	}
	table.Begin()
	for i := range 10_000 {
		table.Apply(flow(n+i, events.New))
	}
	begun := table.next.bytes()
	for i := range 10_000 {
		table.Apply(flow(n+i, events.Destroy))
	}
	if left := table.next.bytes(); left != begun || begun < 8*n {
		t.Errorf("the set of the dump had %d bytes, and has %d", begun, left)
	}
	table.End()
	for i := range 2000 {
		table.Apply(flow(i, events.New))
		table.Apply(flow(i, events.Destroy))
	}
	if left := table.held.bytes(); left > begun/4 {
		t.Errorf("after the dump the set has %d bytes for nothing", left)
	}
}

// TestSetAgreesWithAMap drives a set through random additions and removals, so
// that runs of slots grow together, reach beyond the last home and fall apart.
func TestSetAgreesWithAMap(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	var s set
	want := map[uint64]bool{}
	for i := range 300_000 {
		// Few homes, all near the end of the table: long runs that reach beyond it.
		f := ^(rng.Uint64N(700) << 41) &^ 1
		if i%1000 < 500 {
			if s.add(f) == want[f] {
				t.Fatalf("seed %d: addition %d says wrongly whether %#x was there", seed, i, f)
			}
			want[f] = true
		} else {
			if s.remove(f) != want[f] {
				t.Fatalf("seed %d: removal %d says wrongly whether %#x was there", seed, i, f)
			}
			delete(want, f)
		}
		if s.n != len(want) {
			t.Fatalf("seed %d: %d values are held, want %d", seed, s.n, len(want))
		}
	}
	for f := range want {
		if !s.has(f) {
			t.Fatalf("seed %d: %#x was lost", seed, f)
		}
	}
}

// TestBytesPerFlow: however many flows there are, growing to that number has
// taken 16 bytes for each at most; a small table takes half a megabyte.
func TestBytesPerFlow(t *testing.T) {
	table := New()
	for i := range uint32(300_000) {
		table.ApplyAll([]events.Event{flow(i, events.New)})
		if n := table.Len(); n >= 32768 && table.Bytes() > 16*n {
			t.Fatalf("%d flows take %d bytes", n, table.Bytes())
		}
	}
}

// chunk is how many events a table is given at a time, as by the reader.
const chunk = 64

func TestApplyDoesNotAllocate(t *testing.T) {
	table := New()
	for i := range uint32(10_000) {
		table.ApplyAll([]events.Event{flow(i, events.New)})
	}
	begin, end := make([]events.Event, chunk), make([]events.Event, chunk)
	for i := range chunk {
		begin[i], end[i] = flow(uint32(20_000+i), events.New), flow(uint32(20_000+i), events.Destroy)
	}
	table.ApplyAll(begin)
	table.ApplyAll(end)
	if n := testing.AllocsPerRun(1000, func() { table.ApplyAll(begin); table.ApplyAll(end) }); n != 0 {
		t.Errorf("%v allocations for %d flows", n, chunk)
	}
}

// BenchmarkApply is a table of a million flows in which flows end and begin in
// no order: nearly every event misses the caches.
func BenchmarkApply(b *testing.B) {
	table := New()
	const live = 1 << 20
	var evs [chunk]events.Event
	fill := func(at int, typ events.Type) {
		for i := range evs {
			evs[i] = flow(uint32(at+i), typ)
		}
	}
	for at := 0; at < live; at += chunk {
		fill(at, events.New)
		table.ApplyAll(evs[:])
	}
	b.ReportAllocs()
	var spent time.Duration
	for i := 0; b.Loop(); i++ {
		// The oldest go, new ones come. What is measured is not their making.
		for _, typ := range []events.Type{events.Destroy, events.New} {
			at := i * chunk
			if typ == events.New {
				at += live
			}
			fill(at, typ)
			start := time.Now()
			table.ApplyAll(evs[:])
			spent += time.Since(start)
		}
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(2*b.N*chunk), "ns/event")
	b.ReportMetric(float64(table.Bytes())/live, "B/flow")
}

package spool

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// batch is a batch of size bytes, all with the value b.
func batch(b byte, size int) []byte { return bytes.Repeat([]byte{b}, size) }

// sequences lists the numbers of what the ring holds, 0 for a batch without one.
func (r *Ring) sequences() []uint64 {
	var out []uint64
	for _, it := range r.items[r.head:] {
		out = append(out, it.seq)
	}
	return out
}

func TestPutDropsTheOldestUnsentOnly(t *testing.T) {
	r := NewRing(100)
	put := func(b byte, size, n, dropped int) {
		t.Helper()
		if got := r.Put(batch(b, size), n); got != dropped {
			t.Fatalf("put %q: %d events dropped, want %d", b, got, dropped)
		}
	}
	put('a', 40, 1, 0)
	put('b', 40, 2, 0)
	a, _ := r.take()
	put('c', 20, 4, 0)
	put('d', 20, 8, 2) // a has a number, b goes
	put('e', 60, 16, 4+8)
	put('f', 61, 32, 32) // only a would have to go, so f does, and e stays
	put('g', 101, 64, 64)
	if used, limit, _ := r.Usage(); used != 100 || limit != 100 {
		t.Errorf("used %d of %d bytes, want 100 of 100", used, limit)
	}
	e, _ := r.take()
	if a.data[0] != 'a' || e.data[0] != 'e' || a.seq != 1 || e.seq != 2 || e.total != 1 {
		t.Errorf("sent %q as %d and %q as %d after %d events; want a as 1, e as 2 after 1 event", a.data[0], a.seq, e.data[0], e.seq, e.total)
	}
	if it, _ := r.take(); it != nil {
		t.Errorf("a third batch came: %q", it.data[0])
	}
}

func TestOfferWaitsForRoom(t *testing.T) {
	r := NewRing(10)
	if !r.Offer(batch('a', 11), 1) {
		t.Error("an empty ring must take any batch, or a snapshot of one large batch never leaves")
	}
	if r.Offer(batch('b', 1), 1) {
		t.Error("a full ring took an offer")
	}
	it, _ := r.take()
	r.ack(it.seq)
	select {
	case <-r.Room():
	default:
		t.Error("an acknowledgement did not signal room")
	}
	if !r.Offer(batch('b', 10), 1) {
		t.Error("there was room")
	}
}

func TestCleanMeansNothingUnacknowledged(t *testing.T) {
	r := NewRing(100)
	for b := range 4 {
		r.Put(batch(byte(b), 1), 1)
	}
	take := func(seq uint64, clean bool) *item {
		t.Helper()
		it, got := r.take()
		if it.seq != seq || got != clean {
			t.Fatalf("took %d clean %t, want %d clean %t", it.seq, got, seq, clean)
		}
		return it
	}
	take(1, true) // not sent: publishing failed
	r.rewind()
	take(1, true).sent = time.Now()
	take(2, false).sent = time.Now()
	r.ack(1)
	take(3, false).sent = time.Now()
	r.ack(2)
	r.ack(3)
	take(4, true).sent = time.Now()
	r.rewind()
	take(4, false) // its first attempt is still un-acknowledged
}

func TestOverdue(t *testing.T) {
	r := NewRing(100)
	r.Put(batch(1, 10), 1)
	r.Put(batch(2, 10), 1)
	if r.overdue(0) {
		t.Error("what was never sent is overdue")
	}
	first, _ := r.take()
	first.sent = time.Now().Add(-time.Minute)
	second, _ := r.take()
	second.sent = time.Now()
	if !r.overdue(time.Second) {
		t.Error("a batch sent a minute ago is not overdue")
	}
	r.ack(1)
	if r.overdue(time.Second) {
		t.Error("a batch sent just now is overdue")
	}
	second.sent = first.sent
	r.rewind()
	if r.overdue(time.Second) {
		t.Error("what is to be sent again is overdue")
	}
}

func TestAckInAnyOrder(t *testing.T) {
	r := NewRing(100)
	for n := range 5 {
		r.Put(batch('x', 1), n+1)
	}
	for range 4 {
		r.take()
	}
	ack := func(seq uint64, events int, ok bool, left ...uint64) {
		t.Helper()
		if n, here := r.ack(seq); n != events || here != ok {
			t.Errorf("ack %d: %d events, %t; want %d, %t", seq, n, here, events, ok)
		}
		if got := r.sequences(); !slices.Equal(got, left) {
			t.Errorf("ack %d left %v, want %v", seq, got, left)
		}
	}
	ack(3, 3, true, 1, 2, 4, 0)
	ack(3, 0, false, 1, 2, 4, 0)
	ack(9, 0, false, 1, 2, 4, 0)
	ack(1, 1, true, 2, 4, 0)
	r.rewind()
	ack(4, 4, true, 2, 0) // a late acknowledgement, after the connection was lost
	if it, _ := r.take(); it.seq != 2 {
		t.Errorf("sent %d again, want 2", it.seq)
	}
	if it, _ := r.take(); it.seq != 5 {
		t.Errorf("then sent %d, want 5", it.seq)
	}
	ack(5, 5, true, 2)
	ack(2, 2, true)
	if !r.Empty() {
		t.Error("everything was acknowledged, yet the ring is not empty")
	}
}

func TestLastForeseesNumbers(t *testing.T) {
	r := NewRing(100)
	last := func(want uint64) {
		t.Helper()
		if got := r.Last(); got != want {
			t.Errorf("Last is %d, want %d", got, want)
		}
	}
	last(0)
	for range 3 {
		r.Put(batch('x', 1), 1)
	}
	last(3)
	r.take()
	r.take()
	last(3)
	r.ack(1)
	r.rewind()
	last(3)
	r.Put(batch('x', 1), 1)
	last(4)
	for range 3 {
		it, _ := r.take()
		r.ack(it.seq)
	}
	last(4)
}

func TestUsageTellsTheAge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(100)
		r.Put(batch('a', 30), 1)
		time.Sleep(3 * time.Second)
		r.Put(batch('b', 20), 1)
		time.Sleep(2 * time.Second)
		if used, _, oldest := r.Usage(); used != 50 || oldest != 5*time.Second {
			t.Errorf("%d bytes, the oldest of %s; want 50, 5s", used, oldest)
		}
		it, _ := r.take()
		r.ack(it.seq)
		if used, _, oldest := r.Usage(); used != 20 || oldest != 2*time.Second {
			t.Errorf("%d bytes, the oldest of %s; want 20, 2s", used, oldest)
		}
	})
}

// model is the ring as it is defined: a plain list, every rule written out.
type model struct {
	items                  []item
	limit                  int
	sent                   int // how many of items were taken since the last rewind
	seq, total             uint64
	putEvents, ackedEvents int
	droppedEvents          int
}

func (m *model) bytes() (n int) {
	for _, it := range m.items {
		n += len(it.data)
	}
	return n
}

func (m *model) put(data []byte, n int) (dropped int) {
	numbered := 0
	for _, it := range m.items {
		if it.seq != 0 {
			numbered += len(it.data)
		}
	}
	if numbered+len(data) > m.limit {
		return n
	}
	for m.bytes()+len(data) > m.limit {
		i := slices.IndexFunc(m.items, func(it item) bool { return it.seq == 0 })
		dropped += m.items[i].events
		m.items = slices.Delete(m.items, i, i+1)
	}
	m.items = append(m.items, item{data: data, events: n})
	return dropped
}

func (m *model) take() *item {
	if m.sent == len(m.items) {
		return nil
	}
	it := &m.items[m.sent]
	m.sent++
	if it.seq == 0 {
		m.seq++
		it.seq, it.total = m.seq, m.total
		m.total += uint64(it.events)
	}
	return it
}

func (m *model) ack(seq uint64) int {
	i := slices.IndexFunc(m.items, func(it item) bool { return it.seq == seq })
	if i < 0 || seq == 0 {
		return 0
	}
	n := m.items[i].events
	m.items = slices.Delete(m.items, i, i+1)
	if i < m.sent {
		m.sent--
	}
	return n
}

// TestBehind: a bus that answers within a quarter of a second keeps up.
func TestBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRing(1 << 20)
		is := func(what string, want bool) {
			t.Helper()
			if got := r.Behind(); got != want {
				t.Errorf("%s: behind is %v", what, got)
			}
		}
		is("empty", false)
		r.Put([]byte("a"), 1)
		r.Put([]byte("b"), 1)
		time.Sleep(slowAck)
		is("after a quarter of a second", false)
		time.Sleep(time.Millisecond)
		is("a moment later", true)
		it, _ := r.take()
		r.ack(it.seq)
		is("with another one waiting as long", true)
		it, _ = r.take()
		r.ack(it.seq)
		is("when all is acknowledged", false)
	})
}

// TestRingAgainstModel does the same random operations on the ring and on its
// model and compares all that can be seen, contents included: recycled memory
// must not show through.
func TestRingAgainstModel(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		r, m := NewRing(2000), &model{limit: 2000}
		var log []string
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, after %v: %s", seed, log[max(0, len(log)-12):], fmt.Sprintf(format, args...))
		}
		// Phases in which the bus takes little make the ring overflow.
		for step := range 600 {
			busy := 3
			if step/100%2 == 1 {
				busy = 7
			}
			switch op := rnd.IntN(10); {
			case op < busy:
				data, n := batch(byte(step), 1+rnd.IntN(300)), 1+rnd.IntN(9)
				log = append(log, fmt.Sprintf("put %d", len(data)))
				got, want := r.Put(data, n), m.put(slices.Clone(data), n)
				clear(data) // the ring has copied it
				m.putEvents, m.droppedEvents = m.putEvents+n, m.droppedEvents+got
				if got != want {
					fail("dropped %d events, want %d", got, want)
				}
			case op < 8:
				log = append(log, "take")
				it, clean := r.take()
				first := m.sent == 0
				want := m.take()
				if (it == nil) != (want == nil) {
					fail("took %v, want %v", it, want)
				}
				if it == nil {
					break
				}
				if it.seq != want.seq || it.total != want.total || it.events != want.events || !bytes.Equal(it.data, want.data) {
					fail("took %d after %d events of %d bytes, want %d after %d of %d", it.seq, it.total, len(it.data), want.seq, want.total, len(want.data))
				}
				if clean != (first && want.sent.IsZero()) {
					fail("clean is %t", clean)
				}
				it.sent, want.sent = time.Now(), time.Now()
			case op < 9 && m.seq > 0:
				seq := m.seq - min(m.seq, rnd.Uint64N(8))
				log = append(log, fmt.Sprintf("ack %d", seq))
				got, _ := r.ack(seq)
				if want := m.ack(seq); got != want {
					fail("acknowledged %d events, want %d", got, want)
				}
				m.ackedEvents += got
			case rnd.IntN(5) == 0:
				log = append(log, "rewind")
				r.rewind()
				m.sent = 0
			}
			waiting := 0
			var seqs []uint64
			for _, it := range m.items {
				seqs = append(seqs, it.seq)
				waiting += it.events
			}
			if got := r.sequences(); !slices.Equal(got, seqs) {
				fail("holds %v, want %v", got, seqs)
			}
			if used, _, _ := r.Usage(); used != m.bytes() || used > 2000 {
				fail("used %d bytes, want %d", used, m.bytes())
			}
			if r.Empty() != (len(m.items) == 0) {
				fail("empty is %t", r.Empty())
			}
			if m.putEvents != m.ackedEvents+m.droppedEvents+waiting {
				fail("%d events put, %d acknowledged, %d dropped and %d waiting", m.putEvents, m.ackedEvents, m.droppedEvents, waiting)
			}
		}
	}
}

// TestSteadyStreamDoesNotAllocate is the producer's hot path.
func TestSteadyStreamDoesNotAllocate(t *testing.T) {
	r := NewRing(1 << 20)
	data := batch('x', 10_000)
	var taken []uint64
	step := func() {
		for range 8 {
			r.Put(data, 400)
		}
		taken = taken[:0]
		for it, _ := r.take(); it != nil; it, _ = r.take() {
			taken = append(taken, it.seq)
		}
		for _, seq := range taken {
			r.ack(seq)
		}
	}
	step()
	if n := testing.AllocsPerRun(200, step); n != 0 {
		t.Errorf("%v allocations for 8 batches", n)
	}
}

// BenchmarkDrain acknowledges a long queue, as after an outage under light
// traffic: the time per batch must not grow with the queue.
func BenchmarkDrain(b *testing.B) {
	for _, queue := range []int{1_000, 100_000} {
		b.Run(fmt.Sprint(queue), func(b *testing.B) {
			b.ReportAllocs()
			data := batch('x', 300)
			for b.Loop() {
				b.StopTimer()
				r := NewRing(1 << 30)
				for range queue {
					r.Put(data, 10)
				}
				b.StartTimer()
				for it, _ := r.take(); it != nil; it, _ = r.take() {
					r.ack(it.seq)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*queue), "ns/batch")
		})
	}
}

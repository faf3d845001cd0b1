package count

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// sending is one batch on its way, in true time.
type sending struct {
	events []int64 // when each flow began
	sent   int64
	stored int64
	clean  bool
}

// readings counts the batches of one firewall, whose clock shows clock(t) at the
// true time t, and returns the value of the one source in a window of 10 s as
// it was right after each batch, with the truth then.
type reading struct{ at, value, truth int64 }

func readings(t *testing.T, batches []sending, clock func(int64) int64) []reading {
	t.Helper()
	rec := newReceiver(t, Config{})
	slices.SortStableFunc(batches, func(a, b sending) int { return int(a.stored - b.stored) })
	var w events.BatchWriter
	var all []int64
	for _, b := range batches {
		all = append(all, b.events...)
	}
	slices.Sort(all)
	const window = 10 * time.Second
	set, place := Set{Metric: Opened}, Place{Realm: "default", Firewall: "fw-a"}
	var out []reading
	total := uint64(0)
	for i, b := range batches {
		var e events.Event
		for _, at := range b.events {
			e = events.Event{Type: events.New, Proto: 6, Time: clock(at), Orig: events.Tuple{Src: events.Addr{Lo: 0xc0000207}, DstPort: 443}}
			if err := w.Append(&e); err != nil {
				t.Fatal(err)
			}
		}
		h := events.Header{Firewall: "fw-a", Realm: "default", Seq: uint64(i + 1), Total: total, Sent: clock(b.sent), Clean: b.clean}
		total += uint64(len(b.events))
		data, err := w.Encode(&h)
		if err != nil {
			t.Fatal(err)
		}
		rec.deliver(message{firewall: "fw-a", data: data, stream: b.stored})
		now := rec.c.Now()
		value, _ := rec.c.Value(set, Firewall, place, prefixOf(maskKey(e.Orig.Src, false, 32, 0), &set), window)
		from, _ := slices.BinarySearch(all, now-int64(window)+1)
		to, _ := slices.BinarySearch(all, now+1)
		out = append(out, reading{now, int64(value), int64(to - from)})
	}
	return out
}

const (
	perSecond = 600
	linger    = 10 * int64(time.Millisecond)
	transport = 300 * int64(time.Microsecond)
)

// steady is one source that opens flows evenly for a while, in batches that
// nothing delays.
func steady(r *rand.Rand, start int64, duration time.Duration) (out []sending) {
	for at := start; at < start+int64(duration); at += linger {
		b := sending{sent: at + linger, stored: at + linger + transport + r.Int64N(transport), clean: true}
		for range perSecond * linger / int64(time.Second) {
			b.events = append(b.events, at+r.Int64N(linger))
		}
		slices.Sort(b.events)
		out = append(out, b)
	}
	return out
}

// check compares readings with the truth. A count is below it by a slot at
// most, and by what has not arrived; above it only by what happened in the
// shortest way to the stream, which nobody can know, and in jitter.
func check(t *testing.T, readings []reading, lag func(at int64) int64, jitter int64) {
	t.Helper()
	const slot = int64(10 * time.Second / 20)
	allowance := func(d int64) int64 { return d*perSecond/int64(time.Second) + 2*perSecond*linger/int64(time.Second) }
	bad := 0
	for _, r := range readings {
		if r.value > r.truth+allowance(jitter) || r.value < r.truth-allowance(slot+jitter+lag(r.at)) {
			if bad++; bad <= 5 {
				t.Errorf("at %s: %d counted, truth is %d", time.Unix(0, r.at).UTC().Format("15:04:05.000"), r.value, r.truth)
			}
		}
	}
	if bad > 5 {
		t.Errorf("and %d more of %d readings", bad-5, len(readings))
	}
}

// firewallClock is a monotonic clock that began somewhere.
func firewallClock(start int64) func(int64) int64 {
	return func(at int64) int64 { return at - start + 77_000_000_123_456 }
}

func noLag(int64) int64 { return 0 }

var day = time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC).UnixNano()

func TestClockSteady(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	check(t, readings(t, steady(r, day, 30*time.Second), firewallClock(day)), noLag, 2*transport)
}

// TestClockOutage: for 5 s there is no bus; the batches wait in the producer's
// ring and are sent, one after the other, when it is back.
func TestClockOutage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	batches := steady(r, day, 40*time.Second)
	down, up := day+15*int64(time.Second), day+20*int64(time.Second)
	n := int64(0)
	for i := range batches {
		b := &batches[i]
		if b.sent >= down && b.sent < up {
			n++
			b.clean = n == 1
			b.sent = up + n*50_000
			b.stored = b.sent + transport + n*20_000
		}
	}
	check(t, readings(t, batches, firewallClock(day)), arriving(up, int64(5*time.Second)), 2*transport)
}

// arriving allows what is being flushed in the second after up to be missing.
func arriving(up, most int64) func(int64) int64 {
	return func(at int64) int64 {
		if at >= up && at < up+int64(time.Second) {
			return most
		}
		return 0
	}
}

// TestClockServerPaused: the server is stopped for 5 s while it holds its
// connections: what was sent meanwhile, at its own time, is stored when it goes
// on. The naive clock, the delay of each batch, counts all of it at once.
func TestClockServerPaused(t *testing.T) {
	for phase := range int64(cleanBatches) { // the one clean batch that was held up is any of the eight
		r := rand.New(rand.NewPCG(1, 3))
		batches := steady(r, day, 26*time.Second)
		stop := day + 11*int64(time.Second) + phase*linger
		cont := stop + 5*int64(time.Second)
		first := true
		n := int64(0)
		for i := range batches {
			b := &batches[i]
			if b.stored >= stop && b.stored < cont {
				n++
				// The first of them was clean when it was sent.
				b.clean, first = first, false
				b.stored = cont + n*30_000
			}
		}
		check(t, readings(t, batches, firewallClock(day)), arriving(cont, int64(5*time.Second)), 2*transport)
	}
}

// TestClockGuestPaused: the firewall, a virtual machine, stands still for 5 s
// and its clock with it. Events come out 5 s early for eight batches at most.
func TestClockGuestPaused(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 4))
	pause, pausedFor := day+15*int64(time.Second), int64(5*time.Second)
	batches := steady(r, day, 15*time.Second)
	batches = append(batches, steady(r, pause+pausedFor, 25*time.Second)...)
	clock := func(at int64) int64 {
		if at >= pause+pausedFor {
			at -= pausedFor
		}
		return firewallClock(day)(at)
	}
	readings := readings(t, batches, clock)
	misplaced := int64(cleanBatches) * linger
	check(t, readings, noLag, 2*transport+misplaced)
	// And it does not bend the counts for the rest of the run.
	after := slices.DeleteFunc(readings, func(r reading) bool { return r.at < pause+pausedFor+int64(16*time.Second) })
	check(t, after, noLag, 2*transport)
}

// TestClockDrift: the firewall's clock runs 200 ppm fast or slow for three
// minutes, 36 ms in all: a hundred times what the counts may be off.
func TestClockDrift(t *testing.T) {
	for _, ppm := range []int64{200, -200} {
		r := rand.New(rand.NewPCG(1, 5))
		clock := func(at int64) int64 { return firewallClock(day)(at + (at-day)*ppm/1e6) }
		readings := readings(t, steady(r, day, 3*time.Minute), clock)
		// Over the eight batches that set the clock it drifts by 16 µs.
		check(t, readings, noLag, 3*transport)
	}
}

// TestClockLateStart: the first batches of a boot waited out an outage; until
// one is clean the smallest delay seen counts, which is the best there is.
func TestClockLateStart(t *testing.T) {
	k := newClock()
	for _, d := range []int64{5000, 3000, 4000} {
		k.observe(1000, 1000+d, false)
	}
	if got := k.offset(); got != 3000 {
		t.Errorf("offset without a clean batch is %d, want 3000", got)
	}
	k.observe(1000, 4500, true)
	if got := k.offset(); got != 3500 {
		t.Errorf("offset with one clean batch is %d, want its 3500", got)
	}
	for range cleanBatches {
		k.observe(0, 9000, true)
	}
	if got := k.offset(); got != 9000 {
		t.Errorf("offset after eight more is %d, want 9000: the old one is forgotten", got)
	}
	k.observe(math.MinInt64, math.MaxInt64, true) // foreign numbers: any result, no panic
}

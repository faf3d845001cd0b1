package count

import (
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// become changes a counter to another configuration.
func (r *receiver) become(cfg Config) {
	r.t.Helper()
	other, err := New(cfg)
	if err == nil {
		err = r.c.Become(other)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// TestBecome changes what is counted while it is counted: what stays goes on, what is
// new begins, partial and short until it has filled, and what goes is gone.
func TestBecome(t *testing.T) {
	const sec = time.Second
	opened := func(match Match, bits uint8) Set {
		return Set{Track: BySrc, Metric: Opened, Match: match, IPv4Bits: bits}
	}
	https, plain := MatchPorts(443), Match{}
	watch := func(set Set, w time.Duration, n uint64) Level { return Level{Set: set, Window: w, Count: n} }
	rec := newReceiver(t, Config{Windows: []time.Duration{10 * sec}, Levels: []Level{watch(opened(plain, 0), 10*sec, 100)}})
	at := day
	seq := uint64(0)
	open := func(n int) []Crossing {
		t.Helper()
		seq++
		evs := make([]events.Event, n)
		for i := range evs {
			evs[i] = flowEvent(events.New, 1, 0)
			evs[i].Time = at
		}
		return rec.live(events.Header{Seq: seq, Epoch: 1, Sent: at, Clean: true}, at, evs...)
	}
	value := func(set Set, w time.Duration, want int) {
		t.Helper()
		p := source(1)
		if set.IPv4Bits != 0 {
			p, _ = p.Addr().Prefix(int(set.IPv4Bits))
		}
		got, known := rec.c.Value(set, Fleet, realmDefault, p, w)
		if want == -1 && known || want >= 0 && (!known || int(got) != want) {
			t.Errorf("%+v in %v: %d, known %v, want %d", set, w, got, known, want)
		}
	}
	partial := func(set Set, w time.Duration, want bool) {
		t.Helper()
		if got := rec.c.PartialSet(set, w); got != want {
			t.Errorf("%+v in %v: partial %v, want %v", set, w, got, want)
		}
	}
	short := func(want bool) {
		t.Helper()
		if a := rec.account(); a.Short != want || !a.ActiveKnown {
			t.Errorf("account is %+v, want short %v", a, want)
		}
	}
	open(0)
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: whole, After: 1}, at, flowEvent(events.Existing, 1, 0))
	open(50)
	at += int64(20 * sec)
	open(50)
	rec.active(1, 101)
	short(false)

	// Another threshold on what is counted already: the next event is over it.
	rec.become(Config{Windows: []time.Duration{10 * sec}, Levels: []Level{watch(opened(plain, 0), 10*sec, 40)}})
	if got := rec.c.Review(); len(got) != 1 || got[0].Value != 50 {
		t.Errorf("a review finds %+v, want one of 50", got)
	}
	if got := open(1); len(got) != 1 || got[0].Value != 51 || got[0].Level != 0 {
		t.Errorf("crossed %+v, want level 0 with 51", got)
	}
	partial(opened(plain, 0), 10*sec, false)

	// A window, a match, a prefix and an active count that were not kept before.
	wide, held := opened(plain, 24), Set{Track: BySrc, Metric: Active, Match: https}
	rec.become(Config{Windows: []time.Duration{10 * sec, 15 * sec}, Levels: []Level{
		watch(opened(https, 0), 10*sec, 20), watch(wide, 15*sec, 1000), {Set: held, Count: 1000},
	}})
	value(opened(plain, 0), 10*sec, 51)
	partial(opened(plain, 0), 10*sec, false)
	partial(opened(plain, 0), 15*sec, true)
	partial(opened(https, 0), 10*sec, true)
	value(opened(https, 0), 10*sec, 0)
	rec.active(1, 102)
	value(held, 0, 0)
	short(true)
	if got := open(19); len(got) != 0 {
		t.Errorf("crossed %+v, want nothing: 19 of 20 were seen", got)
	}
	value(held, 0, 19)
	if got := open(1); len(got) != 1 || got[0].Value != 20 {
		t.Errorf("crossed %+v, want one of 20", got)
	}
	value(opened(plain, 0), 15*sec, 71)
	value(wide, 15*sec, 20)
	value(held, 0, 20)
	rec.active(1, 122)

	// It has filled, and a dump has come.
	at += int64(11 * sec)
	open(1)
	partial(opened(https, 0), 10*sec, false)
	partial(wide, 15*sec, true)
	seq++
	rec.live(events.Header{Seq: 2, Epoch: 2, Phase: whole, After: seq}, at, flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 1, 0))
	rec.live(events.Header{Seq: seq, Epoch: 2, Sent: at, Clean: true}, at)
	short(false)
	value(held, 0, 2)
	rec.active(1, 2)

	// And back: what only the other rules needed is gone.
	rec.become(Config{Windows: []time.Duration{10 * sec}})
	value(opened(https, 0), 10*sec, -1)
	value(opened(plain, 0), 15*sec, -1)
	value(opened(plain, 0), 10*sec, 1)
	rec.active(1, 2)
	if rec.c.Stats().Keys == 0 {
		t.Error("nothing is held")
	}
}

// TestBecomeInADump: a dump that is under way when a set begins cannot fill it.
func TestBecomeInADump(t *testing.T) {
	rec := newReceiver(t, Config{Windows: []time.Duration{10 * time.Second}})
	rec.live(events.Header{Seq: 1, Epoch: 0}, day)
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: begin, After: 1}, day, flowEvent(events.Existing, 1, 0))
	held := Set{Track: ByDst, Metric: Active, Match: MatchPorts(443)}
	rec.become(Config{Windows: []time.Duration{10 * time.Second}, Levels: []Level{{Set: held, Count: 10}}})
	rec.live(events.Header{Seq: 2, Epoch: 1, Phase: end, After: 1}, day, flowEvent(events.Existing, 2, 0))
	rec.live(events.Header{Seq: 2, Epoch: 1}, day)
	if a := rec.account(); !a.ActiveKnown || !a.Short {
		t.Errorf("account is %+v, want it short", a)
	}
	rec.live(events.Header{Seq: 3, Epoch: 2, Phase: whole, After: 2}, day, flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 2, 0))
	rec.live(events.Header{Seq: 3, Epoch: 2}, day)
	if a := rec.account(); a.Short {
		t.Errorf("account is %+v after a whole dump", a)
	}
	rec.active(1, 1)
	rec.active(2, 1)
}

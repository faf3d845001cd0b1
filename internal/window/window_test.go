package window

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func key(i int) Key { return Key{Hi: 0x20010db8 << 32, Lo: uint64(i), Tag: uint16(i % 3)} }

func newTable(t testing.TB, c Config) *Table {
	t.Helper()
	table, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	table.Join(0)
	return table
}

// plain adds n events of member 0 to the first series.
func (t *Table) plain(k Key, at int64, n uint32) (hot bool) {
	return len(t.AddBatch([]Event{{Key: k, At: at, N: n, Series: 1}}, nil)) > 0
}

func TestConfigRefused(t *testing.T) {
	sec := time.Second
	f := func(c Config, want string) {
		t.Helper()
		_, err := New(c)
		if err == nil || err.Error() != want {
			t.Errorf("New(%+v): %v, want %q", c, err, want)
		}
	}
	f(Config{}, "window table: no windows")
	f(Config{Windows: []time.Duration{-sec}}, "window table: window -1s: must be 1s to 1h0m0s, a multiple of 20ms")
	f(Config{Windows: []time.Duration{2 * time.Hour}}, "window table: window 2h0m0s: must be 1s to 1h0m0s, a multiple of 20ms")
	f(Config{Windows: []time.Duration{sec + 1}}, "window table: window 1.000000001s: must be 1s to 1h0m0s, a multiple of 20ms")
	f(Config{Windows: []time.Duration{sec}, MaxKeys: -1}, "window table: max keys -1: must be 1 to 268435456")
	f(Config{Windows: []time.Duration{sec}, Levels: []Level{{Window: 2 * sec, Count: 3}}}, "window table: level 3 within 2s: no such window")
	f(Config{Windows: []time.Duration{sec}, Levels: []Level{{Window: sec}}}, "window table: level 0 within 1s: must be at least 1")
	f(Config{Windows: []time.Duration{sec}, Levels: []Level{{Series: 3, Window: sec, Count: 1}}}, "window table: level 1 within 1s: no series 3")
	var many []time.Duration
	for i := range 33 {
		many = append(many, time.Duration(i+1)*sec)
	}
	f(Config{Windows: many}, "window table: 33 windows: at most 32")
}

// TestOracle drives random streams, with any windows and any disorder, and compares
// each count with the oracle's.
func TestOracle(t *testing.T) {
	seeds := []uint64{625744821832} // windows of which the longest does not reach furthest
	for range 40 {
		seeds = append(seeds, rand.Uint64N(1<<40))
	}
	for _, seed := range seeds {
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { testOracle(t, seed) }) {
			t.Fatalf("failed with seed %d", seed)
		}
	}
}

func testOracle(t *testing.T, seed uint64) {
	s := newScene(seed)
	table := newTable(t, s.config)
	table.Join(Member(s.members - 1))
	truth := newOracle()
	longest := slices.Max(s.config.Windows)
	late := uint64(0)
	for range 1500 {
		s.now += s.Int64N(s.step)
		if s.IntN(400) == 0 {
			s.now += s.Int64N(2 * int64(longest))
		}
		if s.advance {
			table.Advance(s.now)
		}
		if table.started && s.IntN(400) == 0 {
			table.rebase() // as happens by itself in two billion ticks
			table.pass()
		}
		if s.IntN(100) == 0 {
			s.census(t, table, truth)
		}
		for range 1 + s.IntN(4) {
			e := s.event()
			before := table.Stats().TooLate
			hot := table.AddBatch([]Event{e}, nil)
			if got := table.Stats().TooLate - before; got != 0 {
				late += got
				if got != uint64(e.N) || floorDiv(e.At, int64(longest)/20) > floorDiv(s.now, int64(longest)/20)-20 {
					t.Fatalf("seed %d: event at now%+d ignored (%d of %d)", seed, e.At-s.now, got, e.N)
				}
				truth.add(e, false)
			} else {
				truth.add(e, e.Series != 0)
				s.checkHot(t, truth, e, hot)
			}
		}
		s.check(t, table, truth)
	}
	for _, w := range s.config.Windows {
		s.checkTop(t, table, truth, w)
	}
	for m := range Member(s.members) {
		table.Clear(m, 0)
		table.Clear(m, 1)
	}
	s.now += int64(longest)*3 + int64(2*maxRound)
	for range 8 {
		s.now += int64(maxRound)
		table.Advance(s.now)
	}
	if got := table.Stats(); got.Keys != 0 || got.Shares != 0 || got.Evicted != 0 || got.TooLate != late || got.TooEarly != 0 {
		t.Fatalf("seed %d: when all has expired: %+v, want no keys, %d too late", seed, got, late)
	}
	for m := range Member(s.members) {
		if n := table.Lines(m); n != 0 {
			t.Fatalf("seed %d: %d lines are still member %d's", seed, n, m)
		}
	}
}

// TestBatch compares one large batch with many of one event each, with several
// members and lines that move. At the limit, what goes for what depends on the
// order in which keys and shares are added; but not what becomes of heavy keys.
func TestBatch(t *testing.T) {
	for _, limit := range []int{200, 10_000} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) { testBatch(t, limit) })
	}
}

func testBatch(t *testing.T, limit int) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	c := Config{Windows: []time.Duration{time.Second, 7 * time.Second}, Levels: []Level{{Window: time.Second, Count: 5}, {Members: true, Window: time.Second, Count: 4}}, MaxKeys: limit}
	one, all := newTable(t, c), newTable(t, c)
	one.Join(2)
	all.Join(2)
	now := int64(0)
	for range 300 {
		now += r.Int64N(int64(time.Second))
		one.Advance(now)
		all.Advance(now)
		events := make([]Event, r.IntN(100))
		for i := range events {
			events[i] = Event{Key: key(r.IntN(20)), At: now - r.Int64N(1e9), N: 1 + r.Uint32N(2), Member: Member(r.IntN(3)), Series: 1 + uint8(r.IntN(7)), Gauge: [2]int8{int8(r.IntN(4) - 1), int8(r.IntN(2))}}
			if r.IntN(2) == 0 {
				events[i].Key, events[i].Member = key(r.IntN(5000)), 2
			}
		}
		// Which event a hot key is named by depends on how many went in at a time;
		// that it is hot does not.
		type hot struct {
			k Key
			m Member
			Hot
		}
		want, got := map[hot]bool{}, map[hot]bool{}
		note := func(set map[hot]bool, e *Event, h Hot) {
			if limit == 200 && e.Key.Lo >= 20 {
				return
			}
			for _, total := range []bool{true, false} {
				if total && h.Total {
					set[hot{e.Key, 0, Hot{Series: h.Series, Total: true}}] = true
				} else if !total && h.Member {
					set[hot{e.Key, e.Member, Hot{Series: h.Series, Member: true}}] = true
				}
			}
		}
		for i := range events {
			for _, h := range one.AddBatch(events[i:i+1], nil) {
				note(want, &events[i], h)
			}
		}
		for _, h := range all.AddBatch(events, nil) {
			note(got, &events[h.Event], h)
		}
		if !maps.Equal(got, want) {
			t.Fatalf("seed %d: hot %v, want %v", seed, got, want)
		}
		rows := 10_000
		if limit == 200 {
			rows = 15
		}
		for _, f := range []Filter{{}, {Members: true, Member: 1}} {
			for s := range NumSeries {
				if limit == 200 && s > 0 {
					continue // who has how many of them is not in the order in which they are evicted
				}
				if got, want := all.Top(s, all.At(7*time.Second, now), f, rows), one.Top(s, one.At(7*time.Second, now), f, rows); !slices.Equal(got, want) {
					t.Fatalf("seed %d: counts of series %d %v, want %v", seed, s, got, want)
				}
			}
			if got, want := all.TopGauge(f, rows), one.TopGauge(f, rows); limit != 200 && !slices.Equal(got, want) {
				t.Fatalf("seed %d: gauges %v, want %v", seed, got, want)
			}
		}
	}
	if len(all.TopGauge(Filter{}, 1)) == 0 {
		t.Errorf("seed %d: no key shows anything", seed)
	}
	for _, s := range []Stats{one.Stats(), all.Stats()} {
		if (s.Evicted > 0) != (limit == 200) || s.Shares == 0 {
			t.Fatalf("seed %d: %+v, want some shares, and evicted only at the limit", seed, s)
		}
	}
}

// TestUnadvanced: a caller that never calls Advance gets the same counts, though
// the history of a busy key grows.
func TestUnadvanced(t *testing.T) {
	windows := []time.Duration{time.Second, 3 * time.Second, time.Hour}
	table := newTable(t, Config{Windows: windows})
	truth := newOracle()
	now := int64(7)
	for range 20_000 {
		now += 333 * int64(time.Millisecond)
		e := Event{Key: key(1), At: now, N: 900, Series: 7}
		table.AddBatch([]Event{e}, nil)
		truth.add(e, true)
	}
	for _, w := range windows {
		for s := range NumSeries {
			if got, want := table.Count(key(1), s, table.At(w, now)), truth.count(key(1), anyone, s, w, now); got != want {
				t.Errorf("count in %v: %d, want %d", w, got, want)
			}
		}
	}
}

// TestRange: times at the ends of what can be represented, and a leap that renumbers all cells.
func TestRange(t *testing.T) {
	table := newTable(t, Config{Windows: []time.Duration{time.Second, time.Second + 20*time.Millisecond}})
	tick := table.grid.tick
	if tick != int64(time.Millisecond) {
		t.Fatalf("tick %d: the test wants the finest", tick)
	}
	now := int64(1e18)
	table.Advance(now)
	table.plain(key(0), now+1<<40*tick, 3)
	if got := table.Stats(); got.TooEarly != 3 {
		t.Fatalf("an event in 35 years: %+v, want it refused", got)
	}
	count := func() uint64 { return table.Count(key(1), 0, table.At(time.Second, now)) }
	for range 50 { // 49 days are 2^32 ticks
		now += 24 * int64(time.Hour)
		table.Advance(now)
		table.plain(key(1), now, 1)
		table.plain(key(2), now+int64(time.Second)/2, 1)
		now += int64(time.Second) / 2
		if got := count(); got != 1 {
			t.Fatalf("count after %v days: %d, want 1", (now-1e18)/24/int64(time.Hour), got)
		}
	}
	// In the middle of a leap: what is in the window survives the renumbering.
	table.rebase()
	table.pass()
	if got := count(); got != 1 {
		t.Fatalf("count after renumbering: %d, want 1", got)
	}
}

// TestLongLeap: nothing is left in the windows after a leap of more ticks than a
// cell's number has.
func TestLongLeap(t *testing.T) {
	for ms := range int64(3000) {
		table := newTable(t, Config{Windows: []time.Duration{time.Second}})
		now := int64(1e18)
		table.Advance(now)
		table.plain(key(1), now, 1)
		now += (1<<32 + ms) * table.grid.tick
		table.Advance(now)
		if got := table.Count(key(1), 0, table.At(time.Second, now)); got != 0 {
			t.Fatalf("count after a leap of 2^32+%d ticks: %d, want 0", ms, got)
		}
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	table := newTable(t, Config{Windows: []time.Duration{time.Second, 10 * time.Second, time.Minute}, Levels: []Level{{Window: time.Second, Count: 50}}})
	table.Join(2)
	r := rand.New(rand.NewPCG(1, 1))
	now := int64(1e18)
	events, hot := make([]Event, 200), make([]Hot, 0, 400)
	step := func() {
		now += int64(10 * time.Millisecond)
		table.Advance(now)
		for i := range events {
			k := r.IntN(1 + r.IntN(1000))
			events[i] = Event{Key: key(k), At: now - r.Int64N(int64(20*time.Millisecond)), N: 1, Series: 1 << r.IntN(3), Gauge: [2]int8{int8(r.IntN(3)) - 1, 0}}
			if k%5 == 0 {
				events[i].Member = Member(r.IntN(3))
			}
		}
		hot = table.AddBatch(events, hot[:0])
	}
	for range 10_000 {
		step()
	}
	if n := testing.AllocsPerRun(2000, step); n != 0 {
		t.Errorf("%v allocations in 200 events, want none", n)
	}
}

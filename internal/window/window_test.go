package window

import (
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// An oracle keeps every event, and counts by the definition in doc.go.
type oracle struct {
	events map[Key][]event
}

type event struct {
	at int64
	n  uint32
}

func (o *oracle) add(k Key, at int64, n uint32) {
	o.events[k] = append(o.events[k], event{at, n})
}

func (o *oracle) count(k Key, w time.Duration, now int64) (sum uint64) {
	slot := int64(w) / 20
	newest := floorDiv(now, slot)
	for _, e := range o.events[k] {
		if s := floorDiv(e.at, slot); s > newest-20 && s <= newest {
			sum += uint64(e.n)
		}
	}
	return sum
}

// within counts the events in (now-w, now] and those in all but the oldest slot's length of it.
func (o *oracle) within(k Key, w time.Duration, now int64) (most, least uint64) {
	for _, e := range o.events[k] {
		if e.at > now-int64(w) && e.at <= now {
			most += uint64(e.n)
		}
		if e.at > now-int64(w)+int64(w)/20 && e.at <= now {
			least += uint64(e.n)
		}
	}
	return most, least
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

func key(i int) Key { return Key{Hi: 0x20010db8 << 32, Lo: uint64(i), Tag: uint32(i % 3)} }

func newTable(t testing.TB, c Config) *Table {
	t.Helper()
	table, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return table
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
	f(Config{Windows: []time.Duration{sec}, Levels: []Level{{2 * sec, 3}}}, "window table: level 3 within 2s: no such window")
	f(Config{Windows: []time.Duration{sec}, Levels: []Level{{sec, 0}}}, "window table: level 0 within 1s: must be at least 1")
	var many []time.Duration
	for i := range 33 {
		many = append(many, time.Duration(i+1)*sec)
	}
	f(Config{Windows: many}, "window table: 33 windows: at most 32")
}

// A scene is a random stream of events and the questions asked about it.
type scene struct {
	*rand.Rand
	config  Config
	now     int64
	disfar  int64 // ns: how late an event can be
	step    int64 // ns: how far now moves at most
	keys    int
	advance bool // whether the caller calls Advance
}

func newScene(seed uint64) scene {
	s := scene{Rand: rand.New(rand.NewPCG(seed, 1))}
	for range 1 + s.IntN(6) {
		var w time.Duration
		switch s.IntN(3) {
		case 0:
			w = []time.Duration{time.Second, 10 * time.Second, time.Minute, time.Hour}[s.IntN(4)]
		case 1:
			w = time.Duration(1+s.IntN(120)) * time.Second
		default:
			w = time.Second + time.Duration(s.IntN(3000))*20*time.Millisecond
		}
		s.config.Windows = append(s.config.Windows, w)
		if s.IntN(3) > 0 {
			s.config.Levels = append(s.config.Levels, Level{w, uint64(1 + s.IntN(300))})
		}
	}
	longest := int64(slices.Max(s.config.Windows))
	s.now = s.Int64N(1<<61) - 1<<60
	s.step = 1 + s.Int64N(max(longest/[]int64{5, 50, 500, 5000}[s.IntN(4)], 2))
	s.disfar = 1 + s.Int64N([]int64{1e6, 1e9, longest + longest/3}[s.IntN(3)])
	s.keys = 1 + s.IntN(20)
	s.advance = s.IntN(4) > 0
	return s
}

// TestOracle drives random streams, with any windows and any disorder, and compares each count with the oracle's.
func TestOracle(t *testing.T) {
	seeds := []uint64{625744821832} // windows of which the longest does not reach furthest
	for range 100 {
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
	truth := oracle{events: map[Key][]event{}}
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
		for range 1 + s.IntN(4) {
			k := key(s.IntN(1 + s.IntN(s.keys)))
			at := s.now
			if s.IntN(3) == 0 {
				at -= s.Int64N(s.disfar)
			}
			n := uint32(1)
			if s.IntN(8) == 0 {
				n = 1 + s.Uint32N(40)
			}
			before := table.Stats().TooLate
			var hot bool
			if s.IntN(2) == 0 {
				hot = table.Add(k, at, n)
			} else {
				hot = len(table.AddBatch([]Event{{k, at, n}}, nil)) == 1
			}
			if got := table.Stats().TooLate - before; got != 0 {
				late += got
				if got != uint64(n) || floorDiv(at, int64(longest)/20) > floorDiv(s.now, int64(longest)/20)-20 {
					t.Fatalf("seed %d: event at now%+d ignored (%d of %d)", seed, at-s.now, got, n)
				}
				if hot {
					t.Fatalf("seed %d: an ignored event is hot", seed)
				}
				continue
			}
			truth.add(k, at, n)
			for _, l := range s.config.Levels {
				if c := truth.count(k, l.Window, s.now); !hot && c >= l.Count {
					t.Fatalf("seed %d: not hot, with %d in %v (level %d)", seed, c, l.Window, l.Count)
				}
			}
		}
		k := key(s.IntN(s.keys))
		w := s.config.Windows[s.IntN(len(s.config.Windows))]
		got := table.Count(k, w, s.now)
		if want := truth.count(k, w, s.now); got != want {
			t.Fatalf("seed %d: windows %v: count of %v in %v: %d, want %d", seed, s.config.Windows, k, w, got, want)
		}
		if most, least := truth.within(k, w, s.now); got > most || got < least {
			t.Fatalf("seed %d: count %d in %v is not within %d to %d", seed, got, w, least, most)
		}
	}
	for _, w := range s.config.Windows {
		var want []Entry
		for k := range truth.events {
			if n := truth.count(k, w, s.now); n > 0 && k.Tag != 1 {
				want = append(want, Entry{k, n})
			}
		}
		slices.SortFunc(want, func(a, b Entry) int {
			return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Key.Lo, b.Key.Lo))
		})
		want = want[:min(len(want), 5)]
		if got := table.Top(w, s.now, 5, func(k Key) bool { return k.Tag != 1 }); !slices.Equal(got, want) {
			t.Fatalf("seed %d: top in %v: %v, want %v", seed, w, got, want)
		}
	}
	s.now += int64(longest)*3 + int64(2*maxRound)
	for range 4 {
		s.now += int64(maxRound)
		table.Advance(s.now)
	}
	if got := table.Stats(); got.Keys != 0 || got.Evicted != 0 || got.TooLate != late || got.TooEarly != 0 {
		t.Fatalf("seed %d: when all has expired: %+v, want no keys, %d too late", seed, got, late)
	}
}

// TestBatch compares AddBatch with Add, with few keys and many new ones, at the limit, so that lines move and go within a batch.
func TestBatch(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	c := Config{Windows: []time.Duration{time.Second, 7 * time.Second}, Levels: []Level{{time.Second, 5}}, MaxKeys: 200}
	one, all := newTable(t, c), newTable(t, c)
	all.index.seed = one.index.seed
	now := int64(0)
	for range 300 {
		now += r.Int64N(int64(time.Second))
		one.Advance(now)
		all.Advance(now)
		events := make([]Event, r.IntN(100))
		var want []int
		for i := range events {
			events[i] = Event{key(r.IntN(20)), now - r.Int64N(1e9), 1 + r.Uint32N(2)}
			if r.IntN(2) == 0 {
				events[i].Key = key(r.IntN(5000))
			}
			if one.Add(events[i].Key, events[i].At, events[i].N) {
				want = append(want, i)
			}
		}
		if got := all.AddBatch(events, nil); !slices.Equal(got, want) {
			t.Fatalf("seed %d: hot %v, want %v", seed, got, want)
		}
		if got, want := all.Top(7*time.Second, now, 1000, nil), one.Top(7*time.Second, now, 1000, nil); !slices.Equal(got, want) {
			t.Fatalf("seed %d: counts %v, want %v", seed, got, want)
		}
	}
	if one.Stats() != all.Stats() || one.Stats().Evicted == 0 || len(one.levels) == 0 {
		t.Fatalf("seed %d: %+v, want %+v, with some evicted", seed, all.Stats(), one.Stats())
	}
}

// TestUnadvanced: a caller that never calls Advance gets the same counts, though the history of a busy key grows.
func TestUnadvanced(t *testing.T) {
	windows := []time.Duration{time.Second, 3 * time.Second, time.Hour}
	table := newTable(t, Config{Windows: windows})
	truth := oracle{events: map[Key][]event{}}
	now := int64(7)
	for range 20_000 {
		now += 333 * int64(time.Millisecond)
		table.Add(key(1), now, 900)
		truth.add(key(1), now, 900)
	}
	for _, w := range windows {
		if got, want := table.Count(key(1), w, now), truth.count(key(1), w, now); got != want {
			t.Errorf("count in %v: %d, want %d", w, got, want)
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
	table.Add(key(0), now+1<<40*tick, 3)
	if got := table.Stats(); got.TooEarly != 3 || got.Keys != 0 {
		t.Fatalf("an event in 35 years: %+v, want it refused", got)
	}
	for range 50 { // 49 days are 2^32 ticks
		now += 24 * int64(time.Hour)
		table.Advance(now)
		table.Add(key(1), now, 1)
		table.Add(key(2), now+int64(time.Second)/2, 1)
		now += int64(time.Second) / 2
		if got := table.Count(key(1), time.Second, now); got != 1 {
			t.Fatalf("count after %v days: %d, want 1", (now-1e18)/24/int64(time.Hour), got)
		}
	}
	// In the middle of a leap: what is in the window survives the renumbering.
	table.rebase()
	table.pass()
	if got := table.Count(key(1), time.Second, now); got != 1 {
		t.Fatalf("count after renumbering: %d, want 1", got)
	}
}

func TestAddDoesNotAllocate(t *testing.T) {
	table := newTable(t, Config{Windows: []time.Duration{time.Second, 10 * time.Second, time.Minute}, Levels: []Level{{time.Second, 50}}})
	r := rand.New(rand.NewPCG(1, 1))
	now := int64(1e18)
	var keys []Key
	for i := range 1000 {
		keys = append(keys, key(i))
	}
	events, hot := make([]Event, 100), make([]int, 0, 100)
	step := func() {
		now += int64(10 * time.Millisecond)
		table.Advance(now)
		for i := range events {
			events[i] = Event{keys[r.IntN(1+r.IntN(len(keys)))], now - r.Int64N(int64(20*time.Millisecond)), 1}
			table.Add(events[i].Key, events[i].At, 1)
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

// TestRemove: what is removed is gone, what is kept keeps its counts; Each and Top agree.
func TestRemove(t *testing.T) {
	windows := []time.Duration{time.Second, 10 * time.Second}
	table := newTable(t, Config{Windows: windows})
	r := rand.New(rand.NewPCG(1, 1))
	now := int64(1e18)
	want := map[Key]uint64{}
	for range 60_000 {
		now += 100_000
		table.Advance(now)
		k := key(r.IntN(6000))
		table.Add(k, now, 1)
		if k.Tag != 2 {
			want[k]++
		}
	}
	before := table.Stats()
	table.Remove(func(k Key) bool { return k.Tag != 2 })
	if s := table.Stats(); s.Keys != len(want) || s.Bytes > before.Bytes {
		t.Errorf("%+v, want %d keys and no more bytes than %d", s, len(want), before.Bytes)
	}
	got := map[Key]uint64{}
	table.Each(windows[1], now, func(k Key, n uint64) bool { got[k] = n; return true })
	if !maps.Equal(got, want) {
		t.Errorf("%d counts, want %d, and the same", len(got), len(want))
	}
	for _, e := range table.Top(windows[1], now, 10, nil) {
		if want[e.Key] != e.Count || table.Count(e.Key, windows[1], now) != e.Count {
			t.Errorf("top: %v, want %d", e, want[e.Key])
		}
	}
	seen := 0
	table.Each(windows[0], now, func(Key, uint64) bool { seen++; return seen < 3 })
	if seen != 3 {
		t.Errorf("Each went on to %d keys, was told to stop at 3", seen)
	}
	table.Remove(func(Key) bool { return false })
	if s := table.Stats(); s.Keys != 0 || len(table.Top(windows[1], now, 10, nil)) != 0 {
		t.Errorf("all removed: %+v", s)
	}
}

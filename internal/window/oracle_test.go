package window

import (
	"cmp"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// An oracle keeps every event, and counts by the definition in doc.go.
type oracle struct {
	events map[Key][]Event
	gauges map[Key]map[Member][2]int32
	shown  map[Member]uint8
}

func newOracle() *oracle {
	return &oracle{map[Key][]Event{}, map[Key]map[Member][2]int32{}, map[Member]uint8{}}
}

func (o *oracle) add(e Event, counts bool) {
	if counts {
		o.events[e.Key] = append(o.events[e.Key], e)
	}
	g := o.gauges[e.Key]
	if g == nil {
		g = map[Member][2]int32{}
		o.gauges[e.Key] = g
	}
	v := g[e.Member]
	v[0] += int32(e.Gauge[0])
	v[1] += int32(e.Gauge[1])
	g[e.Member] = v
}

// count returns a key's events, of one member or, with anyone, of all.
func (o *oracle) count(k Key, m Member, s Series, w time.Duration, now int64) (sum uint64) {
	slot := int64(w) / 20
	newest := floorDiv(now, slot)
	for _, e := range o.events[k] {
		if at := floorDiv(e.At, slot); at > newest-20 && at <= newest && o.is(e, m, s) {
			sum += uint64(e.N)
		}
	}
	return sum
}

// slots are the events of a key in each slot of a window.
func (o *oracle) slots(k Key, m Member, s Series, w time.Duration, now int64) (out [20]uint64) {
	slot := int64(w) / 20
	oldest := floorDiv(now, slot) - 19
	for _, e := range o.events[k] {
		if i := floorDiv(e.At, slot) - oldest; i >= 0 && i < 20 && o.is(e, m, s) {
			out[i] += uint64(e.N)
		}
	}
	return out
}

func (o *oracle) is(e Event, m Member, s Series) bool {
	return (m == anyone || e.Member == m) && e.Series&s.Bit() != 0
}

// within counts the events in (now-w, now] and those in all but the oldest slot's length of it.
func (o *oracle) within(k Key, m Member, s Series, w time.Duration, now int64) (most, least uint64) {
	for _, e := range o.events[k] {
		if e.At > now-int64(w) && e.At <= now && o.is(e, m, s) {
			most += uint64(e.N)
			if e.At > now-int64(w)+int64(w)/20 {
				least += uint64(e.N)
			}
		}
	}
	return most, least
}

func (o *oracle) gauge(k Key, m Member) (sum int32) {
	for of, v := range o.gauges[k] {
		if m == anyone || m == of {
			sum += v[o.shown[of]]
		}
	}
	return sum
}

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// A scene is a random stream of events and the questions asked about it.
type scene struct {
	*rand.Rand
	config  Config
	now     int64
	disfar  int64 // ns: how late an event can be
	step    int64 // ns: how far now moves at most
	keys    int
	members int
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
		for series := range NumSeries {
			for _, members := range []bool{false, true} {
				if s.IntN(3) > 0 {
					s.config.Levels = append(s.config.Levels, Level{series, members, w, uint64(1 + s.IntN(300))})
				}
			}
		}
	}
	s.config.GaugeTotal, s.config.GaugeMember = s.Uint32N(20), s.Uint32N(20)
	longest := int64(slices.Max(s.config.Windows))
	s.now = s.Int64N(1<<61) - 1<<60
	s.step = 1 + s.Int64N(max(longest/[]int64{5, 50, 500, 5000}[s.IntN(4)], 2))
	s.disfar = 1 + s.Int64N([]int64{1e6, 1e9, longest + longest/3}[s.IntN(3)])
	s.keys = 1 + s.IntN(20)
	s.members = 1 + s.IntN(4)
	s.advance = s.IntN(4) > 0
	return s
}

// event draws one.
func (s *scene) event() Event {
	e := Event{Key: key(s.IntN(1 + s.IntN(s.keys))), At: s.now, N: 1, Member: Member(s.IntN(1 + s.IntN(s.members))), Series: uint8(s.IntN(1 << NumSeries))}
	if s.IntN(3) == 0 {
		e.At -= s.Int64N(s.disfar)
	}
	if s.IntN(8) == 0 {
		e.N = 1 + s.Uint32N(40)
	}
	for i := range e.Gauge {
		e.Gauge[i] = int8(s.IntN(3) - 1)
	}
	return e
}

// census shows a member's other gauges, and empties those that were shown.
func (s *scene) census(t *testing.T, table *Table, truth *oracle) {
	m := Member(s.IntN(s.members))
	was := truth.shown[m]
	truth.shown[m] = 1 - was
	reported := map[Key]Hot{}
	table.Show(m, 1-was, func(k Key, h Hot) { reported[k] = h })
	for k, g := range truth.gauges {
		v, total := g[m][1-was], truth.gauge(k, anyone)
		member := s.config.GaugeMember > 0 && v >= int32(s.config.GaugeMember)
		all := s.config.GaugeTotal > 0 && v > 0 && total >= int32(s.config.GaugeTotal)
		if h := reported[k]; member && !h.Member || all && !h.Total {
			t.Fatalf("member %d shows %d of %v, in total %d, and reports %+v (levels %d, %d)", m, v, k, total, h, s.config.GaugeMember, s.config.GaugeTotal)
		}
	}
	table.Clear(m, was)
	for _, g := range truth.gauges {
		v := g[m]
		v[was] = 0
		g[m] = v
	}
}

// checkHot expects what an event brought to a level to be reported.
func (s *scene) checkHot(t *testing.T, truth *oracle, e Event, hot []Hot) {
	t.Helper()
	is := func(series Series, members bool) bool {
		return slices.ContainsFunc(hot, func(h Hot) bool {
			return h.Event == 0 && h.Series == series && (members && h.Member || !members && h.Total)
		})
	}
	for _, l := range s.config.Levels {
		of := anyone
		if l.Members {
			of = e.Member
		}
		if c := truth.count(e.Key, of, l.Series, l.Window, s.now); e.Series&l.Series.Bit() != 0 && c >= l.Count && !is(l.Series, l.Members) {
			t.Fatalf("%+v: not hot, with %d (level %+v): %+v", e, c, l, hot)
		}
	}
	if e.Gauge[truth.shown[e.Member]] <= 0 {
		return
	}
	for _, level := range []struct {
		n       uint32
		of      Member
		members bool
	}{{s.config.GaugeTotal, anyone, false}, {s.config.GaugeMember, e.Member, true}} {
		if v := truth.gauge(e.Key, level.of); level.n > 0 && v >= int32(level.n) && !is(NumSeries, level.members) {
			t.Fatalf("%+v: not hot, holding %d (level %+v): %+v", e, v, level, hot)
		}
	}
}

// check compares the counts of one key.
func (s *scene) check(t *testing.T, table *Table, truth *oracle) {
	t.Helper()
	k, series := key(s.IntN(s.keys)), Series(s.IntN(int(NumSeries)))
	w := s.config.Windows[s.IntN(len(s.config.Windows))]
	q := table.At(w, s.now)
	got := table.Count(k, series, q)
	if want := truth.count(k, anyone, series, w, s.now); got != want {
		t.Fatalf("windows %v: count of %v in %v: %d, want %d", s.config.Windows, k, w, got, want)
	}
	if most, least := truth.within(k, anyone, series, w, s.now); got > most || got < least {
		t.Fatalf("count %d in %v is not within %d to %d", got, w, least, most)
	}
	if got, want := table.Gauge(k), truth.gauge(k, anyone); got != want {
		t.Fatalf("gauge of %v: %d, want %d", k, got, want)
	}
	m := Member(s.IntN(s.members))
	if got, want := table.MemberCount(k, m, series, q), truth.count(k, m, series, w, s.now); got != want {
		t.Fatalf("count of %v and member %d in %v: %d, want %d", k, m, w, got, want)
	}
	if got, want := table.Slots(k, series, q), truth.slots(k, anyone, series, w, s.now); got != want {
		t.Fatalf("windows %v: slots of %v in %v: %d, want %d", s.config.Windows, k, w, got, want)
	}
	if got, want := table.MemberSlots(k, m, series, q), truth.slots(k, m, series, w, s.now); got != want {
		t.Fatalf("windows %v: slots of %v and member %d in %v: %d, want %d", s.config.Windows, k, m, w, got, want)
	}
	if got, want := table.MemberGauge(k, m), truth.gauge(k, m); got != want {
		t.Fatalf("gauge of %v and member %d: %d, want %d", k, m, got, want)
	}
	table.Shares(k, series, q, func(m Member, n uint64) {
		if want := truth.count(k, m, series, w, s.now); n != want {
			t.Fatalf("share of %v and member %d in %v: %d, want %d", k, m, w, n, want)
		}
		got -= n
	})
	if got != 0 {
		t.Fatalf("shares of %v in %v: %d are missing", k, w, got)
	}
	held := table.Gauge(k)
	table.GaugeShares(k, func(m Member, n int32) {
		if want := truth.gauge(k, m); n != want {
			t.Fatalf("gauge of %v and member %d: %d, want %d", k, m, n, want)
		}
		held -= n
	})
	if held != 0 {
		t.Fatalf("gauges of %v: %d are missing", k, held)
	}
}

// checkTop compares the largest counts in a window.
func (s *scene) checkTop(t *testing.T, table *Table, truth *oracle, w time.Duration) {
	t.Helper()
	q := table.At(w, s.now)
	for of := range Member(s.members + 1) {
		f := Filter{Keep: func(tag uint16) bool { return tag != 1 }, Members: int(of) < s.members, Member: of}
		m := of
		if !f.Members {
			m = anyone
		}
		for series := range NumSeries {
			var want []Entry
			for i := range s.keys {
				if n := truth.count(key(i), m, series, w, s.now); n > 0 && key(i).Tag != 1 {
					want = append(want, Entry{key(i), n})
				}
			}
			if got := table.Top(series, q, f, 5); !slices.Equal(got, largest(want)) {
				t.Fatalf("top of %d, series %d in %v: %v, want %v", m, series, w, got, largest(want))
			}
		}
		var want []Entry
		for i := range s.keys {
			if n := truth.gauge(key(i), m); n > 0 && key(i).Tag != 1 {
				want = append(want, Entry{key(i), uint64(n)})
			}
		}
		if got := table.TopGauge(f, 5); !slices.Equal(got, largest(want)) {
			t.Fatalf("top gauges of %d: %v, want %v", m, got, largest(want))
		}
	}
}

func largest(e []Entry) []Entry {
	slices.SortFunc(e, func(a, b Entry) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Key.Lo, b.Key.Lo))
	})
	return e[:min(len(e), 5)]
}

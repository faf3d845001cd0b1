package window

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A Query is a window as it stands at a time. It is valid until the table is next changed.
type Query struct{ first, end uint32 } // cells; the zero Query has none

// At returns a window at now. The window must be a registered one: another is a
// mistake in the program, and panics. A time before the last Advance is taken as
// that.
func (t *Table) At(window time.Duration, now int64) Query {
	i := slices.Index(t.windows, window)
	if i < 0 {
		panic(fmt.Sprintf("window: %v is not registered", window))
	}
	if !t.started {
		return Query{}
	}
	first, end := t.grid.bounds(i, max(now, t.now))
	return Query{first, end}
}

// Count returns the events of a key, of all members.
func (t *Table) Count(k Key, s Series, q Query) uint64 {
	if number, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0)); ok {
		return t.read(t.keys.at(number), s, q)
	}
	return 0
}

// MemberCount returns the events of a key that are a member's.
func (t *Table) MemberCount(k Key, m Member, s Series, q Query) uint64 {
	if p, ok := t.share(k, m); ok {
		return t.read(p, s, q)
	}
	return 0
}

// Slots returns the events of a key in each slot of a window, oldest first: together
// they are its Count.
func (t *Table) Slots(k Key, s Series, q Query) [NumSlots]uint64 {
	if number, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0)); ok {
		return t.divide(t.keys.at(number), s, q)
	}
	return [NumSlots]uint64{}
}

// MemberSlots is the same of a member.
func (t *Table) MemberSlots(k Key, m Member, s Series, q Query) [NumSlots]uint64 {
	if p, ok := t.share(k, m); ok {
		return t.divide(p, s, q)
	}
	return [NumSlots]uint64{}
}

// divide puts the events of a line within the window into its slots. No cell reaches
// over an edge of them: as long as the window reaches back to it, it is kept apart.
func (t *Table) divide(p place, s Series, q Query) (out [NumSlots]uint64) {
	r, ok := p.series(s)
	if !ok || q.end == q.first {
		return out
	}
	width := (q.end - q.first) / NumSlots
	put := func(c cell) {
		if c.at >= q.first && c.at < q.end {
			out[min((c.at-q.first)/width, NumSlots-1)] += uint64(c.count)
		}
	}
	put(cell{r.last, r.count})
	for w := t.walk(r); ; {
		c, ok := w.next()
		if !ok || c.at < q.first {
			return out
		}
		put(c)
	}
}

// Gauge returns what all members together show for a key. It is negative where a
// member's beginning came later than its end.
func (t *Table) Gauge(k Key) int32 {
	if number, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0)); ok {
		return t.held(t.keys.at(number))
	}
	return 0
}

// MemberGauge returns what one member shows for a key.
func (t *Table) MemberGauge(k Key, m Member) int32 {
	if p, ok := t.share(k, m); ok {
		return t.held(p)
	}
	return 0
}

// held is what a line shows.
func (t *Table) held(p place) int32 {
	if owner := p.line().owner; owner != several {
		m := &t.members[owner]
		return p.gauge().value(m, m.shown)
	}
	return p.gauge().v[0]
}

// read returns a line's events of a series within the window.
func (t *Table) read(p place, s Series, q Query) uint64 {
	r, ok := p.series(s)
	if !ok {
		return 0
	}
	return t.sum(r, q)
}

// sum adds up the cells of a window.
func (t *Table) sum(r record, q Query) (sum uint64) {
	if r.last < q.first {
		return 0
	}
	if r.last < q.end {
		sum = uint64(r.count)
	}
	sum, at := t.grid.strides.sum(r.beside[:r.used], r.last, q.first, q.end, sum)
	if r.class != 0 && at >= q.first {
		sum, _ = t.grid.strides.sum(t.arena.bytes(r.class, r.chunk)[:r.filled], at, q.first, q.end, sum)
	}
	return sum
}

// An Entry is a key and its count.
type Entry struct {
	Key   Key
	Count uint64
}

// A Filter says whose counts Top compares.
type Filter struct {
	// Keep is asked about tags; nil wants all.
	Keep func(tag uint16) bool
	// Members: the counts of this Member alone, instead of the totals.
	Members bool
	Member  Member
	// Want is asked about keys whose count is large enough; nil wants all.
	Want func(Key) bool
}

// Top returns the largest counts of a series: at most limit, largest first, equal ones by key.
func (t *Table) Top(s Series, q Query, f Filter, limit int) []Entry {
	return t.top(f, limit, func(p place) uint64 {
		r, ok := p.series(s)
		if !ok || r.last < q.first {
			return 0
		}
		return t.sum(r, q)
	})
}

// TopGauge does the same with what is shown.
func (t *Table) TopGauge(f Filter, limit int) []Entry {
	return t.top(f, limit, func(p place) uint64 { return uint64(max(t.held(p), 0)) })
}

// Reach calls fn with each key whose total in a window is at least that, in one
// pass over the table; or, with members, with each key and member whose count is.
func (t *Table) Reach(s Series, q Query, least uint64, members bool, fn func(Key, Member)) {
	t.reach(least, members, fn, func(p place) uint64 { return t.read(p, s, q) })
}

// ReachGauge does the same with what is shown.
func (t *Table) ReachGauge(least uint64, members bool, fn func(Key, Member)) {
	t.reach(least, members, fn, func(p place) uint64 { return uint64(max(t.held(p), 0)) })
}

func (t *Table) reach(least uint64, members bool, fn func(Key, Member), value func(place) uint64) {
	stores := []*store{&t.keys}
	if members {
		stores = append(stores, &t.shares)
	}
	for _, s := range stores {
		for number := range uint32(s.n) {
			p := s.at(number)
			l := p.line()
			if members && l.owner == several {
				continue
			}
			if value(p) >= least {
				fn(l.key(), l.owner)
			}
		}
	}
}

func (t *Table) top(f Filter, limit int, value func(place) uint64) []Entry {
	if limit <= 0 {
		return nil
	}
	h := heap{limit: limit, least: 1}
	stores := []*store{&t.keys}
	if f.Members {
		stores = append(stores, &t.shares)
	}
	for _, s := range stores {
		for number := range uint32(s.n) {
			p := s.at(number)
			l := p.line()
			if f.Members && l.owner != f.Member || f.Keep != nil && !f.Keep(l.tag) {
				continue
			}
			if n := value(p); n >= h.least && (f.Want == nil || f.Want(l.key())) {
				h.add(Entry{l.key(), n})
			}
		}
	}
	slices.SortFunc(h.entries, compare)
	return h.entries
}

// A heap keeps the largest entries, the least of them at its root once it is full.
type heap struct {
	entries []Entry
	limit   int
	least   uint64 // what is worth adding
}

func (h *heap) add(e Entry) {
	switch {
	case len(h.entries) < h.limit:
		if h.entries = append(h.entries, e); len(h.entries) < h.limit {
			return
		}
		slices.SortFunc(h.entries, func(a, b Entry) int { return compare(b, a) }) // sorted is a heap
	case compare(e, h.entries[0]) < 0:
		h.entries[0] = e
		h.sift()
	}
	h.least = h.entries[0].Count
}

// sift moves the root to where it belongs.
func (h *heap) sift() {
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(h.entries); child++ {
			if compare(h.entries[child], h.entries[least]) > 0 {
				least = child
			}
		}
		if least == i {
			return
		}
		h.entries[i], h.entries[least] = h.entries[least], h.entries[i]
		i = least
	}
}

// compare orders entries as Top returns them.
func compare(a, b Entry) int {
	return cmp.Or(
		cmp.Compare(b.Count, a.Count),
		cmp.Compare(a.Key.Hi, b.Key.Hi), cmp.Compare(a.Key.Lo, b.Key.Lo), cmp.Compare(a.Key.Tag, b.Key.Tag),
	)
}

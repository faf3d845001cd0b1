package window

// A Member is who an event comes from, as a small number.
type Member uint16

// MaxMembers is how many members a table can have: they are numbered from 0.
const MaxMembers = 1<<16 - 2

const (
	several Member = MaxMembers + iota // the owner of a key with more than one member
	anyone                             // in a search: whoever it is
)

// A member has two gauges for each key: one that is shown, and one that is being
// prepared to be shown in its stead (a new census while the last one is still in
// use). A gauge is emptied for all keys at once by giving it a new generation: what
// is of an older one is 0.
type member struct {
	gen   [2]uint16
	shown uint8
	short [2]bool // a key of it was evicted that had something in this gauge
	lines int     // keys and shares that are its
}

// A gauge is what a key holds. Of a total (the line's owner is several) only v[0]
// is used: the sum of what its members show.
type gauge struct {
	v      [2]int32
	gen    [2]uint16
	shares uint16 // lines of members; of a total only
	_      uint16
}

// value is one of a member's two, 0 when it is of an older generation.
func (g *gauge) value(m *member, which uint8) int32 {
	if g.gen[which] != m.gen[which] {
		return 0
	}
	return g.v[which]
}

// Join makes a member known. It must be before its first event.
func (t *Table) Join(m Member) {
	for len(t.members) <= int(m) {
		t.members = append(t.members, member{})
	}
}

// Lines is how many keys and shares are a member's.
func (t *Table) Lines(m Member) int {
	if int(m) >= len(t.members) {
		return 0
	}
	return t.members[m].lines
}

// Short says that what a member shows is incomplete: keys had to go for others, with what they held.
func (t *Table) Short(m Member) bool {
	if int(m) >= len(t.members) {
		return false
	}
	one := &t.members[m]
	return one.short[one.shown]
}

// own changes how many lines are a member's.
func (t *Table) own(m Member, by int) {
	if m == several {
		return
	}
	one := &t.members[m]
	was := one.lines
	one.lines += by
	switch {
	case was == 0:
		t.active++
	case one.lines == 0:
		t.active--
	}
}

// change adds to the gauges of a member's line, and returns what is shown.
func (t *Table) change(g *gauge, of Member, by [2]int32) int32 {
	m := &t.members[of]
	for i, d := range by {
		if d == 0 {
			continue
		}
		if g.gen[i] != m.gen[i] {
			g.gen[i], g.v[i] = m.gen[i], 0
		}
		g.v[i] += d
	}
	return g.value(m, m.shown)
}

func (t *Table) gaugeHot(held int32, scope int) bool {
	return t.gauges[0] > 0 && held >= t.gauges[0] && scope != each || t.gauges[1] > 0 && held >= t.gauges[1] && scope != total
}

// Clear empties one of a member's two gauges for all keys.
func (t *Table) Clear(m Member, which uint8) {
	one := &t.members[m]
	if which == one.shown {
		t.adjust(m, func(g *gauge) int32 { return -g.value(one, which) })
	}
	one.gen[which]++
	one.short[which] = false
}

// Show makes one of a member's two gauges the one that is shown, and calls fn with
// each key that may thereby have reached a level.
func (t *Table) Show(m Member, which uint8, fn func(Key, Hot)) {
	one := &t.members[m]
	if which == one.shown {
		return
	}
	before := one.shown
	t.adjust(m, func(g *gauge) int32 { return g.value(one, which) - g.value(one, before) })
	one.shown = which
	if t.gauges == [2]int32{} {
		return
	}
	for _, s := range []*store{&t.keys, &t.shares} {
		for number := range uint32(s.n) {
			p := s.at(number)
			if p.line().owner != m {
				continue
			}
			held, k := p.gauge().value(one, which), p.line().key()
			h := Hot{Series: NumSeries, Member: t.gaugeHot(held, each), Total: s == &t.keys && t.gaugeHot(held, total)}
			if s == &t.shares && held > 0 {
				if n, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0)); ok {
					h.Total = t.gaugeHot(t.keys.at(n).gauge().v[0], total)
				}
			}
			if h.Total || h.Member {
				fn(k, h)
			}
		}
	}
}

// adjust changes the totals of all keys that a member shares with others.
func (t *Table) adjust(m Member, by func(*gauge) int32) {
	for number := range uint32(t.shares.n) {
		p := t.shares.at(number)
		if p.line().owner != m {
			continue
		}
		if d := by(p.gauge()); d != 0 {
			k := p.line().key()
			if n, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0)); ok {
				t.keys.at(n).gauge().v[0] += d
			}
		}
	}
}

// meet is called when a second member comes to a key: the line becomes the total,
// and what it holds the share of its owner too. Where the owner's part has expired
// the newcomer simply takes the line over.
func (t *Table) meet(p place, newcomer Member) {
	l, g := p.line(), p.gauge()
	if t.idle(p) {
		t.own(l.owner, -1)
		t.own(newcomer, 1)
		l.owner, *g = newcomer, gauge{}
		return
	}
	owner := &t.members[l.owner]
	k := l.key()
	hash := t.shares.hash(&k, l.owner)
	number, ok := t.shares.find(&k, l.owner, hash)
	if !ok { // which it never should be
		number = t.insert(&t.shares, &k, l.owner, hash)
	}
	share := t.shares.at(number)
	for s := range NumSeries {
		if from, ok := p.series(s); ok {
			if s == 0 || from.last != 0 {
				t.copy(share.grown(s), from)
			}
		}
	}
	*share.gauge() = *g
	shown := g.value(owner, owner.shown)
	t.own(l.owner, -1)
	l.owner = several
	*g = gauge{v: [2]int32{shown, 0}, shares: 1}
}

// copy makes an empty history equal to another.
func (t *Table) copy(to, from record) {
	*to.history = *from.history
	to.class, to.chunk, to.filled = 0, 0, 0
	copy(to.beside, from.beside[:from.used])
	if from.class != 0 {
		t.arena.alloc(to, t.arena.size(from.class))
		to.filled = uint16(copy(t.arena.bytes(to.class, to.chunk), t.arena.bytes(from.class, from.chunk)[:from.filled]))
	}
}

// announce says that a key gets one more share, and reports whether there is such a key.
func (t *Table) announce(k *Key) bool {
	number, ok := t.keys.find(k, anyone, t.keys.hash(k, 0))
	if !ok || t.keys.line(number).owner != several {
		return false
	}
	t.keys.at(number).gauge().shares++
	return true
}

// idle reports whether a line has nothing that counts any more. The total of a key
// that has shares left is not idle.
func (t *Table) idle(p place) bool {
	l, g := p.line(), p.gauge()
	if l.last >= t.oldest {
		return false
	}
	if l.owner == several {
		if g.shares > 0 {
			return false
		}
	} else if m := &t.members[l.owner]; g.value(m, 0) != 0 || g.value(m, 1) != 0 {
		return false
	}
	if p.tails != nil {
		for i := range p.tails[p.i] {
			if p.tails[p.i][i].last >= t.oldest {
				return false
			}
		}
	}
	return true
}

// drop takes a line out, with all that it holds: a total with its shares, a share out of its total.
func (t *Table) drop(s *store, number uint32) {
	p := s.at(number)
	k, owner, g := p.line().key(), p.line().owner, *p.gauge()
	for i := range NumSeries {
		if r, ok := p.series(i); ok {
			t.arena.free(r)
		}
	}
	s.remove(number)
	t.own(owner, -1)
	switch {
	case s == &t.shares:
		if n, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0)); ok {
			total, m := t.keys.at(n).gauge(), &t.members[owner]
			total.v[0] -= g.value(m, m.shown)
			total.shares--
		}
	case owner == several && g.shares > 0:
		for m := range t.members {
			if n, ok := t.shares.find(&k, Member(m), t.shares.hash(&k, Member(m))); ok {
				t.forgo(t.shares.at(n))
				t.drop(&t.shares, n) // its key is gone already
				if g.shares--; g.shares == 0 {
					break
				}
			}
		}
	}
}

// forgo notes that what a line holds in its gauges is lost.
func (t *Table) forgo(p place) {
	if owner := p.line().owner; owner != several {
		m := &t.members[owner]
		for i := range m.short {
			m.short[i] = m.short[i] || p.gauge().value(m, uint8(i)) != 0
		}
	}
}

// Shares calls fn with each member that has events of a key within the window at now.
func (t *Table) Shares(k Key, s Series, q Query, fn func(Member, uint64)) {
	t.each(k, func(m Member, p place) {
		if n := t.read(p, s, q); n > 0 {
			fn(m, n)
		}
	})
}

// GaugeShares calls fn with what each member shows for a key.
func (t *Table) GaugeShares(k Key, fn func(Member, int32)) {
	t.each(k, func(m Member, p place) {
		one := &t.members[m]
		if v := p.gauge().value(one, one.shown); v != 0 {
			fn(m, v)
		}
	})
}

// each calls fn with each member's line of a key.
func (t *Table) each(k Key, fn func(Member, place)) {
	number, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0))
	if !ok {
		return
	}
	p := t.keys.at(number)
	if owner := p.line().owner; owner != several {
		fn(owner, p)
		return
	}
	left := p.gauge().shares
	for m := 0; m < len(t.members) && left > 0; m++ {
		if n, ok := t.shares.find(&k, Member(m), t.shares.hash(&k, Member(m))); ok {
			fn(Member(m), t.shares.at(n))
			left--
		}
	}
}

// share returns a member's line of a key.
func (t *Table) share(k Key, m Member) (p place, ok bool) {
	if int(m) >= len(t.members) {
		return p, false
	}
	number, ok := t.keys.find(&k, anyone, t.keys.hash(&k, 0))
	if !ok {
		return p, false
	}
	if p = t.keys.at(number); p.line().owner == m {
		return p, true
	}
	if p.line().owner != several {
		return p, false
	}
	if number, ok = t.shares.find(&k, m, t.shares.hash(&k, m)); ok {
		p = t.shares.at(number)
	}
	return p, ok
}

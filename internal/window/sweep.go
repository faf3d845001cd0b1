package window

import (
	"math"
	"slices"
	"time"
)

const (
	// A round through all lines takes a quarter of the longest window, within these bounds.
	minRound = 2 * time.Second
	maxRound = time.Minute
	// maxVisits bounds the lines visited in one call: some 100 µs. What is due
	// beyond is left to the next.
	maxVisits = 1 << 15
	// settleCost is how many visits settling a history counts for.
	settleCost = 64
)

// Advance says that it is now: counts move on, expired keys are reclaimed a few at
// a time. It is cheap, and meant to be called with every batch of events, before
// they are added. A time before the last one is taken as the last one.
func (t *Table) Advance(now int64) {
	if !t.started {
		t.start(now)
		return
	}
	if now <= t.now {
		return
	}
	t.now = now
	if now >= t.turn {
		t.pass()
	}
	t.tidy()
}

func (t *Table) start(now int64) {
	t.started = true
	t.now, t.swept = now, now
	t.grid.rebase(now)
	t.pass()
}

// pass computes what depends on the slots in which now lies.
func (t *Table) pass() {
	if cells, ok := t.grid.ticks(t.now); !ok || cells > math.MaxUint32/2 {
		t.rebase()
	}
	t.turn = math.MaxInt64
	t.unborn = math.MaxUint32
	for i, slot := range t.grid.slot {
		first, end := t.grid.bounds(i, t.now)
		t.first[i] = first
		t.unborn = min(t.unborn, end)
		t.turn = min(t.turn, floor(t.now, slot)+slot)
	}
	// Not always the longest window's: one that is hardly shorter may have lost
	// less of its oldest slot.
	t.oldest = slices.Min(t.first)
}

// rebase renumbers all cells. It happens once in two billion ticks (a tick is 1 ms to some minutes).
func (t *Table) rebase() {
	old := t.grid.base
	t.grid.rebase(t.now)
	shift := (uint64(t.grid.base) - uint64(old)) / uint64(t.grid.tick)
	for _, s := range []*store{&t.keys, &t.shares} {
		for number := range uint32(s.n) {
			p := s.at(number)
			for i := range NumSeries {
				r, ok := p.series(i)
				switch {
				case !ok:
				case uint64(r.last) < shift:
					t.clear(r)
					r.last = 0
				default:
					r.last -= uint32(shift) // all older cells are relative to it
				}
			}
		}
	}
	t.edged = 0
}

// edges returns the edges at which histories must stay split from now on, see grid.edges.
func (t *Table) edges() []uint32 {
	if t.edged != t.unborn {
		t.edge = t.grid.edges(t.edge[:0], t.now)
		t.edged = t.unborn
	}
	return t.edge
}

// tidy visits the lines that are due.
func (t *Table) tidy() {
	round := min(max(t.grid.longest()/4, int64(minRound)), int64(maxRound))
	waited := min(t.now-t.swept, round)
	lines := t.keys.n + t.shares.n
	due := float64(lines) * float64(waited) / float64(round)
	if due < 1 && waited < round {
		return
	}
	// Who has not been counted for a round is idle, and his history can be merged:
	// he does not do it himself.
	idle, _ := t.grid.ticks(t.now - round)
	// Keys and shares in proportion to their numbers, shares first: a total goes
	// when its shares have gone.
	t.balance += int(due) * t.shares.n
	shares := t.balance / max(lines, 1)
	t.balance -= shares * lines
	budget := maxVisits
	visits := t.visits(&t.shares, min(shares, int(due)), idle, &budget)
	visits += t.visits(&t.keys, int(due)-visits, idle, &budget)
	if t.keys.n == 0 {
		t.arena.trim()
		t.swept = t.now
		return
	}
	// What was due and not visited is left to the next call.
	t.swept = t.now - int64((1-float64(visits)/due)*float64(waited))
}

// visits looks at the next n lines of a store, as far as the budget goes, and returns how many it did.
func (t *Table) visits(s *store, n int, idle uint32, budget *int) (done int) {
	for done < n && s.n > 0 && *budget > 0 {
		if s.sweep >= uint32(s.n) {
			s.sweep = 0
			t.arena.trim()
		}
		*budget -= t.visit(s, idle)
		done++
	}
	return done
}

// visit looks at the next line of a store, and returns what that cost.
func (t *Table) visit(s *store, idle uint32) (cost int) {
	p := s.at(s.sweep)
	if t.idle(p) {
		t.drop(s, s.sweep)
		return 1
	}
	cost = 1
	if l := p.line(); l.owner != several {
		g, m := p.gauge(), &t.members[l.owner]
		for i := range g.gen { // generations come again after 65,536
			g.v[i], g.gen[i] = g.value(m, uint8(i)), m.gen[i]
		}
	}
	for i := range NumSeries {
		if r, ok := p.series(i); ok && r.class != 0 && (r.last < idle || t.arena.sparse(r)) {
			t.settle(r)
			cost += settleCost
		}
	}
	s.sweep++
	return cost
}

// settle gives an idle history as few bytes as can be, in the lowest chunk that fits.
func (t *Table) settle(r record) {
	t.merge(r, cell{}, t.edges(), t.unborn)
	t.pack(r.last)
	t.arena.free(r)
	if len(t.packed) <= len(r.beside) {
		r.used = uint8(copy(r.beside, t.packed))
		return
	}
	t.arena.alloc(r, len(t.packed))
	r.filled = uint16(copy(t.arena.bytes(r.class, r.chunk), t.packed))
	r.used = 0
}

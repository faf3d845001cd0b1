package window

import (
	"math"
	"slices"
	"time"
)

// A sweep is the round through all lines that reclaims what has expired, a part at each Advance.
type sweep struct {
	at   uint32 // the next line
	last int64  // ns: the time up to which the lines due have been visited
}

const (
	// A round takes a quarter of the longest window, within these bounds.
	minRound = 2 * time.Second
	maxRound = time.Minute
	// maxVisits bounds the lines visited in one call: some 100 µs. What is due beyond is left to the next.
	maxVisits = 1 << 15
	// settleCost is how many visits settling a history counts for.
	settleCost = 64
)

// Advance says that it is now: counts move on, expired keys are reclaimed a few at a time. It is cheap, and meant to be called with every batch of events, before
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
	t.now, t.sweep.last = now, now
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
	// Not always the longest window's: one that is hardly shorter may have lost less of its oldest slot.
	t.oldest = slices.Min(t.first)
}

// rebase renumbers all cells. It happens once in two billion ticks (a tick is 1 ms to some minutes).
func (t *Table) rebase() {
	old := t.grid.base
	t.grid.rebase(t.now)
	shift := (uint64(t.grid.base) - uint64(old)) / uint64(t.grid.tick)
	for number := uint32(0); number < uint32(t.keys); {
		l := t.line(number)
		if uint64(l.last) < shift {
			t.remove(number)
			continue
		}
		l.last -= uint32(shift) // all others are relative to it
		number++
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
	waited := min(t.now-t.sweep.last, round)
	due := float64(t.keys) * float64(waited) / float64(round)
	if due < 1 && waited < round {
		return
	}
	// Who has not been counted for a round is idle, and his history can be merged: he does not do it himself.
	idle, _ := t.grid.ticks(t.now - round)
	visits, cost := 0, 0
	for ; visits < int(due) && cost < maxVisits && t.keys > 0; visits, cost = visits+1, cost+1 {
		if t.sweep.at >= uint32(t.keys) {
			t.sweep.at = 0
			t.arena.trim()
		}
		l := t.line(t.sweep.at)
		if l.last < t.oldest {
			t.remove(t.sweep.at)
			continue
		}
		if l.class != 0 && (l.last < idle || t.arena.sparse(l)) {
			t.settle(l)
			cost += settleCost
		}
		t.sweep.at++
	}
	if t.keys == 0 {
		t.arena.trim()
		t.sweep.last = t.now
		return
	}
	// What was due and not visited is left to the next call.
	t.sweep.last = t.now - int64((1-float64(visits)/due)*float64(waited))
}

// settle gives an idle key a history as short as can be, in the lowest chunk that fits.
func (t *Table) settle(l *line) {
	t.merge(l, cell{}, t.edges(), t.unborn)
	t.pack(l.last)
	t.arena.free(l)
	if len(t.packed) <= lineBytes {
		l.used = uint8(copy(l.packed[:], t.packed))
		return
	}
	t.arena.alloc(l, len(t.packed))
	l.filled = uint16(copy(t.arena.bytes(l.class, l.chunk), t.packed))
	l.used = 0
}

// Remove takes out all keys that keep does not want.
func (t *Table) Remove(keep func(Key) bool) {
	for number := uint32(0); number < uint32(t.keys); {
		if keep(t.line(number).key()) {
			number++
		} else {
			t.remove(number)
		}
	}
	t.arena.trim()
}

// evict is the state of the search for keys to evict: a hand that goes round the lines. A new key takes the place of the one it evicts, so the
// hand comes to the oldest first.
type evict struct {
	hand  uint32
	light uint64 // who has more stays
	steps int    // until light is estimated anew
}

const (
	// The lightest 1/lightShare of a sample may go. So the hand finds one in about as many steps.
	lightShare = 8
	sampleSize = 1024
)

// victim returns the line to be given to another key.
func (t *Table) victim() uint32 {
	if t.evict.hand >= uint32(t.keys) {
		t.evict.hand = 0
	}
	smallest, at := uint64(math.MaxUint64), uint32(0)
	for range t.keys {
		if t.evict.steps == 0 {
			t.evict.light = t.lightest()
			t.evict.steps = max(t.keys/4, 1)
		}
		t.evict.steps--
		number := t.evict.hand
		if t.evict.hand++; t.evict.hand >= uint32(t.keys) {
			t.evict.hand = 0
		}
		weight := t.weight(t.line(number), t.evict.light)
		if weight <= t.evict.light {
			return number
		}
		if weight < smallest {
			smallest, at = weight, number
		}
	}
	return at
}

// lightest returns the weight that an eighth of the keys do not exceed, by a sample taken evenly from the table.
func (t *Table) lightest() uint64 {
	var sample [sampleSize]uint64
	n := min(sampleSize, t.keys)
	for i := range n {
		sample[i] = t.weight(t.line(uint32(i*t.keys/n)), math.MaxUint64)
	}
	slices.Sort(sample[:n])
	return sample[n/lightShare]
}

// weight returns a key's count in the longest window; no more than is needed to see that it exceeds enough.
func (t *Table) weight(l *line, enough uint64) (sum uint64) {
	c, ok := cell{l.last, l.count}, true
	for w := t.walk(l); ok && c.at >= t.oldest; c, ok = w.next() {
		if sum += uint64(c.count); sum > enough {
			break
		}
	}
	return sum
}

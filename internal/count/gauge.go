package count

import (
	"cmp"
	"math/bits"
	"slices"

	"github.com/ctfleet/ctfleet/internal/window"
)

// A gauge holds how many flows each key has now. It cannot forget the small
// ones, as a window can: a key leaves when it holds none. So it is bounded by
// what the firewalls' tables hold, and beyond a limit it refuses new keys and
// says so.
//
// On a firewall each key has two numbers, one for the epoch that is shown and
// one for the epoch that is being completed (see epochs); which is which is the
// firewall's to know. In a realm only the first is used: the sum of what its
// firewalls show.
//
// Numbers are signed: a DESTROY may come before its NEW when they travel on two
// subjects.
//
// It is an open-addressing hash table with linear probing and backward-shift
// deletion, two keys to a cache line.
type gauge struct {
	slots []held // a power of two
	n     int
	limit int // keys, 0: none
	seed  *[2]uint64
	over  uint64 // changes refused at the limit
}

type held struct {
	hi, lo uint64
	v      [2]int32
	tag    uint32
	used   bool
}

// change is what one event does to a key.
type change struct {
	key window.Key
	d   [2]int32
}

const minHeld = 16

func (h *held) key() window.Key { return window.Key{Hi: h.hi, Lo: h.lo, Tag: h.tag} }

func (g *gauge) home(k window.Key) int {
	// The seed is secret: whoever chooses the addresses cannot choose the collisions.
	hi, lo := bits.Mul64(k.Hi^g.seed[0], k.Lo^g.seed[1])
	hi, lo = bits.Mul64(hi^lo^uint64(k.Tag), g.seed[1]|1)
	return int(hi^lo) & (len(g.slots) - 1)
}

// find returns the slot of k, or the free one where it belongs.
func (g *gauge) find(k window.Key) (i int, ok bool) {
	for i = g.home(k); g.slots[i].used; i = (i + 1) & (len(g.slots) - 1) {
		if h := &g.slots[i]; h.lo == k.Lo && h.hi == k.Hi && h.tag == k.Tag {
			return i, true
		}
	}
	return i, false
}

// get returns the numbers of k, as they are: perhaps negative.
func (g *gauge) get(k window.Key) [2]int32 {
	if g == nil || g.n == 0 {
		return [2]int32{}
	}
	i, ok := g.find(k)
	if !ok {
		return [2]int32{}
	}
	return g.slots[i].v
}

// add changes the numbers of k and returns them. ok is false when k is new and
// there is no room for it: nothing was changed then.
func (g *gauge) add(k window.Key, d [2]int32) (v [2]int32, ok bool) {
	if d == ([2]int32{}) {
		return g.get(k), true
	}
	full := g.limit > 0 && g.n >= g.limit
	if !full && g.n >= len(g.slots)*3/4 {
		g.resize(max(minHeld, 2*len(g.slots)))
	}
	i, known := g.find(k)
	h := &g.slots[i]
	if !known {
		if full {
			g.over++
			return v, false
		}
		*h = held{hi: k.Hi, lo: k.Lo, tag: k.Tag, used: true}
		g.n++
	}
	h.v[0] += d[0]
	h.v[1] += d[1]
	v = h.v
	if v == ([2]int32{}) {
		g.remove(i)
	}
	return v, true
}

// remove frees slot i and moves back those behind it that it kept from their
// home.
func (g *gauge) remove(i int) {
	mask := len(g.slots) - 1
	for j := (i + 1) & mask; g.slots[j].used; j = (j + 1) & mask {
		if (j-g.home(g.slots[j].key()))&mask >= (j-i)&mask {
			g.slots[i] = g.slots[j]
			i = j
		}
	}
	g.slots[i] = held{}
	g.n--
	if len(g.slots) > minHeld && g.n < len(g.slots)/8 {
		g.resize(len(g.slots) / 4)
	}
}

func (g *gauge) resize(size int) {
	old := g.slots
	g.slots = make([]held, size)
	for i := range old {
		if old[i].used {
			j, _ := g.find(old[i].key())
			g.slots[j] = old[i]
		}
	}
}

// each calls fn with every key; fn must not change the gauge.
func (g *gauge) each(fn func(window.Key, [2]int32)) {
	if g == nil {
		return
	}
	for i := range g.slots {
		if h := &g.slots[i]; h.used {
			fn(h.key(), h.v)
		}
	}
}

// clear sets one of the two numbers of every key to 0, and lets go of the keys
// and the memory that are no longer needed.
func (g *gauge) clear(which int) {
	g.n, g.over = 0, 0
	for i := range g.slots {
		h := &g.slots[i]
		h.v[which] = 0
		if h.used = h.v != ([2]int32{}); h.used {
			g.n++
		}
	}
	size := minHeld
	for g.n >= size/2 {
		size *= 2
	}
	g.resize(size)
}

// top returns the largest of one of the two numbers, largest first, equal ones
// by key; only what is above 0.
func (g *gauge) top(which, limit int) []window.Entry {
	var all []window.Entry
	least := int32(0) // of the limit largest so far: less is not among them
	g.each(func(k window.Key, v [2]int32) {
		if v[which] <= 0 || v[which] < least {
			return
		}
		all = append(all, window.Entry{Key: k, Count: uint64(v[which])})
		if len(all) >= 4*limit+64 {
			slices.SortFunc(all, compareEntries)
			all = all[:limit]
			least = int32(all[limit-1].Count)
		}
	})
	slices.SortFunc(all, compareEntries)
	return all[:min(limit, len(all))]
}

func compareEntries(a, b window.Entry) int {
	return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Key.Hi, b.Key.Hi),
		cmp.Compare(a.Key.Lo, b.Key.Lo), cmp.Compare(a.Key.Tag, b.Key.Tag))
}

// bytes is the memory that the slots take.
func (g *gauge) bytes() int { return 32 * len(g.slots) }

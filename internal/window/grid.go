package window

import (
	"cmp"
	"math"
	"slices"
)

// NumSlots is the number of slots in a window: what a count can miss at the old end is one of them.
const NumSlots = 20

// A grid turns times into cells. A cell is the time between two neighbouring slot
// edges, whatever windows these edges belong to; it is named by its lower edge, in
// ticks since the base. A tick is the largest unit of which all slots are
// multiples.
type grid struct {
	slot    []int64 // ns, of each window, shortest first
	tick    int64   // ns
	base    int64   // ns: where cell 0 begins, a multiple of tick
	strides strides

	// The cells looked up last. The division that finds a cell is by then behind
	// us: events come roughly in order.
	shift uint
	near  [64]span
}

// A span is a cell with its extent in time. The zero span holds no time.
type span struct {
	from int64  // ns
	size uint64 // ns
	cell uint32
}

func newGrid(windows []int64) grid {
	g := grid{}
	for _, w := range windows {
		g.slot = append(g.slot, w/NumSlots)
		g.tick = gcd(g.tick, w/NumSlots)
	}
	n := 0
	for _, slot := range g.slot {
		if stride := slot / g.tick; stride > nearCodes && n < strideCodes {
			g.strides[n] = uint32(stride)
			n++
		}
	}
	for int64(2)<<g.shift <= g.slot[0] {
		g.shift++
	}
	return g
}

// longest returns the length of the longest window in ns.
func (g *grid) longest() int64 { return g.slot[len(g.slot)-1] * NumSlots }

// rebase moves the base so that now and everything that its windows reach lie in range.
func (g *grid) rebase(now int64) {
	g.base = floor(now, g.tick) - 2*floor(g.longest(), g.tick)
	g.near = [len(g.near)]span{}
}

// cell returns the cell that holds the time at; not ok where no cell can name it
// (before the base, or billions of ticks after it).
func (g *grid) cell(at int64) (cell uint32, ok bool) {
	s := &g.near[uint64(at)>>g.shift%uint64(len(g.near))]
	if uint64(at)-uint64(s.from) < s.size {
		return s.cell, true
	}
	return g.find(at, s)
}

func (g *grid) find(at int64, s *span) (cell uint32, ok bool) {
	if at < g.base {
		return 0, false
	}
	from, to := int64(math.MinInt64), int64(math.MaxInt64)
	for _, slot := range g.slot {
		edge := floor(at, slot)
		from, to = max(from, edge), min(to, edge+slot)
	}
	cell, ok = g.ticks(from)
	if ok {
		*s = span{from: from, size: uint64(to - from), cell: cell}
	}
	return cell, ok
}

// ticks returns a time as ticks since the base, 0 if it lies before; not ok beyond the range.
func (g *grid) ticks(at int64) (uint32, bool) {
	if at < g.base {
		return 0, true
	}
	n := (uint64(at) - uint64(g.base)) / uint64(g.tick)
	return uint32(n), n <= math.MaxUint32
}

// time returns the lower edge of a cell in ns.
func (g *grid) time(cell uint32) int64 { return g.base + int64(cell)*g.tick }

// bounds returns the first cell of window i at now, and the first after it.
func (g *grid) bounds(i int, now int64) (first, end uint32) {
	edge := floor(now, g.slot[i])
	first, _ = g.ticks(edge - (NumSlots-1)*g.slot[i])
	end, ok := g.ticks(edge + g.slot[i])
	if !ok {
		end = math.MaxUint32
	}
	return first, end
}

// edges appends to dst, newest first, the cells at which a history must stay split
// at any time from now on: every slot edge of every window that lies within that
// window. Whatever lies before the last of them is of no use to any window.
func (g *grid) edges(dst []uint32, now int64) []uint32 {
	for _, slot := range g.slot {
		newest := floor(now, slot)
		for i := range int64(NumSlots) {
			if edge, ok := g.ticks(newest - i*slot); ok {
				dst = append(dst, edge)
			}
		}
	}
	slices.SortFunc(dst, func(a, b uint32) int { return cmp.Compare(b, a) })
	return slices.Compact(dst)
}

// floor returns the largest multiple of unit that is not after t.
func floor(t, unit int64) int64 {
	r := t % unit
	if r < 0 {
		r += unit
	}
	return t - r
}

func gcd(a, b int64) int64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

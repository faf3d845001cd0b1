package window

import (
	"math"
	"slices"
)

// A history is the newest cell of a series and the state of the older ones, which
// are packed into bytes: the oldest in the chunk, if there is one, then those that
// stand beside the history. The bytes are read backwards, newest cell first,
// because every question is about the recent past and can stop early; and because
// then a cell is coded relative to the next newer one, a full line is moved to the
// end of its chunk by a plain copy.
//
// The zero history is empty: its newest cell lies before any that a window reaches.
type history struct {
	last   uint32 // the newest cell
	count  uint32 // its events
	slack  uint32 // so many events less one can follow before a level can be reached; 0: one was reached when last began
	chunk  uint32 // where in its class
	class  uint8  // the chunk's size class; 0: no chunk
	used   uint8  // bytes packed beside it
	filled uint16 // bytes of the chunk
}

// A record is a history with the room beside it.
type record struct {
	*history
	beside []byte
}

const (
	// keepFree is how much of the room beside it a rebuilt history leaves free, or
	// it moves to a chunk: the next cells would each rebuild it again.
	keepFree = 3
	// cellBytes is the most that one cell takes.
	cellBytes = 11
)

// A cell is a part of a history: its place on the grid and its events.
type cell struct {
	at    uint32
	count uint32
}

// strides are distances between cells that have a code of their own: the slots of
// the longer windows, in ticks. What has been merged lies mostly one slot apart.
// Unused ones are 0.
type strides [strideCodes]uint32

const (
	nearCodes   = 8 // distances 1 to 8
	strideCodes = 15 - nearCodes
	farCode     = 15
)

// append packs one cell. The byte that is read first has the code of the distance
// to the next newer cell in its high half: 0 to 7 for a distance of 1 to 8, 8 to 14
// for a stride, 15 for a number that follows (that is: stands before it). In its
// low half is the count less one, or 15 where the count, less 16, follows after
// that. So a cell of a busy key usually takes a byte or two. Distance and count are
// at least 1.
func (s *strides) append(dst []byte, distance, count uint32) []byte {
	head := byte(15)
	if count > 15 {
		dst = appendBackward(dst, count-16)
	} else {
		head = byte(count - 1)
	}
	if distance <= nearCodes {
		return append(dst, head|byte(distance-1)<<4)
	}
	for i, stride := range s {
		if distance == stride {
			return append(dst, head|byte(nearCodes+i)<<4)
		}
	}
	dst = appendBackward(dst, distance)
	return append(dst, head|farCode<<4)
}

// appendBackward appends a number in groups of seven bits, such that it can be read
// from its end: the lowest group stands last, and every group but the highest has
// its top bit set.
func appendBackward(dst []byte, v uint32) []byte {
	more := byte(0)
	for shift := 28; shift > 0; shift -= 7 {
		if v>>shift != 0 {
			dst = append(dst, byte(v>>shift)&0x7f|more)
			more = 0x80
		}
	}
	return append(dst, byte(v)&0x7f|more)
}

// A walk goes through a key's history, newest cell first.
type walk struct {
	at      uint32
	bytes   []byte // what is left of packed, then of the chunk
	chunk   []byte
	strides *strides
}

// walk starts at the cell before the newest, which stands in the history itself.
func (t *Table) walk(r record) walk {
	w := walk{at: r.last, bytes: r.beside[:r.used], strides: &t.grid.strides}
	if r.class != 0 {
		w.chunk = t.arena.bytes(r.class, r.chunk)[:r.filled]
	}
	return w
}

func (w *walk) next() (c cell, ok bool) {
	if len(w.bytes) == 0 {
		if len(w.chunk) == 0 {
			return cell{}, false
		}
		w.bytes, w.chunk = w.chunk, nil
	}
	c, w.bytes = w.strides.last(w.bytes, w.at)
	w.at = c.at
	return c, true
}

// last unpacks the last cell, which precedes the cell newer, and returns what stands before it.
func (s *strides) last(bytes []byte, newer uint32) (c cell, rest []byte) {
	head := bytes[len(bytes)-1]
	rest = bytes[:len(bytes)-1]
	distance, count := uint32(head>>4)+1, uint32(head&15)+1
	if distance > nearCodes {
		if distance > farCode {
			distance, rest = number(rest)
		} else {
			distance = s[distance-nearCodes-1]
		}
	}
	if count > 15 {
		var more uint32
		more, rest = number(rest)
		count += more
	}
	return cell{newer - distance, count}, rest
}

// sum adds to sum the counts of the cells from first to before end, which precede
// the cell newer. It returns the oldest cell it saw. It does what last does, in one
// loop: Top goes through the whole table with it.
func (s *strides) sum(bytes []byte, newer, first, end uint32, sum uint64) (uint64, uint32) {
	at := newer
	for len(bytes) > 0 {
		head := bytes[len(bytes)-1]
		if code := head >> 4; code < nearCodes && head&15 < 15 {
			bytes = bytes[:len(bytes)-1]
			at -= uint32(code) + 1
			if at < first {
				break
			}
			if at < end {
				sum += uint64(head&15) + 1
			}
			continue
		}
		var c cell
		c, bytes = s.last(bytes, at)
		if at = c.at; at < first {
			break
		}
		if at < end {
			sum += uint64(c.count)
		}
	}
	return sum, at
}

// number reads back what appendBackward wrote.
func number(bytes []byte) (v uint32, rest []byte) {
	for shift := 0; len(bytes) > 0; shift += 7 {
		b := bytes[len(bytes)-1]
		bytes = bytes[:len(bytes)-1]
		v |= uint32(b&0x7f) << shift
		if b < 0x80 {
			break
		}
	}
	return v, bytes
}

// open starts a new newest cell.
func (t *Table) open(r record, at, n uint32, levels *levelSet) {
	if r.last < t.oldest { // nothing of the history is of use any more
		t.clear(r)
		r.last, r.count, r.slack = at, n, levels.slack
		return
	}
	var room [cellBytes]byte
	packed := t.grid.strides.append(room[:0], at-r.last, r.count)
	if int(r.used)+len(packed) > len(r.beside) {
		t.spill(r, len(packed))
	}
	r.used += uint8(copy(r.beside[r.used:], packed))
	r.last, r.count = at, n
}

// spill makes room for need bytes in a full history: by moving it to the end of the
// chunk, or else by rebuilding the history.
func (t *Table) spill(r record, need int) {
	if r.class != 0 {
		chunk := t.arena.bytes(r.class, r.chunk)
		if int(r.filled)+int(r.used) <= len(chunk) {
			r.filled += uint16(copy(chunk[r.filled:], r.beside[:r.used]))
			r.used = 0
			return
		}
	}
	t.rebuild(r, cell{}, need)
}

// lateCells is how many cells back late looks before it rebuilds the history.
const lateCells = 8

// late counts events in a cell older than the newest. Most late events are late by
// a little: it unpacks the cells newer than theirs, and packs these again behind
// it.
func (t *Table) late(r record, at, n uint32) {
	strides := &t.grid.strides
	bytes := r.beside[:r.used]
	if r.used == 0 && r.class != 0 {
		bytes = t.arena.bytes(r.class, r.chunk)[:r.filled]
	}
	var passed [lateCells]cell
	k, newer, rest := 0, r.last, bytes
	var buf [(lateCells + 2) * cellBytes]byte
	out := buf[:0]
	for ; len(rest) > 0; k++ {
		c, older := strides.last(rest, newer)
		if c.at == at && uint64(c.count)+uint64(n) <= 15 {
			rest[len(rest)-1] += byte(n)
			return
		}
		if c.at == at {
			out, rest = strides.append(out, newer-at, add(c.count, n)), older
		}
		if c.at <= at {
			break
		}
		if k == lateCells {
			t.rebuild(r, cell{at, n}, 0)
			return
		}
		passed[k], newer, rest = c, c.at, older
	}
	if len(out) == 0 {
		if len(rest) == 0 && r.class != 0 && r.used != 0 {
			t.rebuild(r, cell{at, n}, 0) // its place is in the chunk
			return
		}
		if len(rest) > 0 {
			c, older := strides.last(rest, newer)
			out, rest = strides.append(out, at-c.at, c.count), older
		}
		out = strides.append(out, newer-at, n)
	}
	for i := k - 1; i >= 0; i-- {
		newer = r.last
		if i > 0 {
			newer = passed[i-1].at
		}
		out = strides.append(out, newer-passed[i].at, passed[i].count)
	}
	size := len(rest) + len(out)
	switch {
	case size > cap(bytes):
		t.rebuild(r, cell{at, n}, 0)
	case r.used == 0 && r.class != 0:
		r.filled = uint16(size)
		copy(t.arena.bytes(r.class, r.chunk)[len(rest):], out)
	default:
		r.used = uint8(size)
		copy(r.beside[len(rest):], out)
	}
}

// rebuild writes the history anew: without the cells that no window reaches any
// more, with those merged that no window needs apart, and with the events of extra
// (if its count is not 0), whose cell is older than the newest. Then there is room
// for need bytes.
func (t *Table) rebuild(r record, extra cell, need int) {
	t.merge(r, extra, t.edges(), t.unborn)
	t.pack(r.last)
	if len(t.packed) > sizes[len(sizes)-1]-lineBytes {
		// Thousands of cells after now: the caller does not advance the table, or a
		// clock is far ahead. Take the key's newest event as now.
		now := t.grid.time(r.last)
		t.merge(r, extra, t.grid.edges(nil, now), r.last)
		t.pack(r.last)
	}
	if len(t.packed)+need <= len(r.beside)-keepFree {
		t.arena.free(r)
		r.used = uint8(copy(r.beside, t.packed))
		return
	}
	t.fit(r, len(t.packed))
	r.filled = uint16(copy(t.arena.bytes(r.class, r.chunk), t.packed))
	r.used = 0
}

// merge collects the cells of a history in t.cells, newest first. All between two
// edges become one, named by the lower edge. Edges are those of grid.edges; cells
// from unborn on are newer, and stay as they are.
func (t *Table) merge(r record, extra cell, edges []uint32, unborn uint32) {
	t.cells = t.cells[:0]
	for w := t.walk(r); ; {
		c, ok := w.next()
		if extra.count != 0 && (!ok || c.at <= extra.at) {
			edges, _ = t.put(extra, edges, unborn)
			extra.count = 0
		}
		if !ok {
			return
		}
		if edges, ok = t.put(c, edges, unborn); !ok {
			return
		}
	}
}

// put adds a cell to t.cells, which hold newer ones, and returns the edges that are
// left for older ones; not useful where no window reaches it.
func (t *Table) put(c cell, edges []uint32, unborn uint32) (left []uint32, useful bool) {
	for len(edges) > 0 && edges[0] > c.at {
		edges = edges[1:]
	}
	if len(edges) == 0 {
		return edges, false
	}
	if c.at < unborn {
		c.at = edges[0]
	}
	if n := len(t.cells); n > 0 && t.cells[n-1].at == c.at {
		t.cells[n-1].count = add(t.cells[n-1].count, c.count)
	} else {
		t.cells = append(t.cells, c)
	}
	return edges, true
}

// pack packs t.cells into t.packed. They precede the cell newest.
func (t *Table) pack(newest uint32) {
	t.packed = t.packed[:0]
	for i, c := range slices.Backward(t.cells) {
		newer := newest
		if i > 0 {
			newer = t.cells[i-1].at
		}
		t.packed = t.grid.strides.append(t.packed, newer-c.at, c.count)
	}
}

// fit gives the line a chunk that has room for a history of n bytes and for some
// time to come, and is not much too large.
func (t *Table) fit(r record, n int) {
	want := n + max(n/4, lineBytes+lineBytes/2)
	if r.class != 0 {
		if size := t.arena.size(r.class); size >= n+lineBytes && size <= 2*want {
			return
		}
		t.arena.free(r)
	}
	t.arena.alloc(r, want)
}

// clear forgets the history of a line, not its newest cell.
func (t *Table) clear(r record) {
	t.arena.free(r)
	r.used = 0
}

func add(a, b uint32) uint32 {
	if sum := a + b; sum >= a {
		return sum
	}
	return math.MaxUint32
}

package window

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// An Entry is a key and its count.
type Entry struct {
	Key   Key
	Count uint64
}

// Windows returns the windows that can be asked for, shortest first.
func (t *Table) Windows() []time.Duration { return slices.Clone(t.windows) }

// Count returns the events of a key within the window at now. The window must be a registered one: another is a mistake in the program, and panics. A
// time before the last Advance is taken as that.
func (t *Table) Count(k Key, window time.Duration, now int64) uint64 {
	first, end, ok := t.bounds(window, now)
	if !ok {
		return 0
	}
	number, ok := t.find(k, t.index.hash(k))
	if !ok {
		return 0
	}
	return t.sum(t.line(number), first, end)
}

// Each calls fn with every key that has events within the window at now, in no order, until it returns false. fn must not change the table.
func (t *Table) Each(window time.Duration, now int64, fn func(Key, uint64) bool) {
	first, end, ok := t.bounds(window, now)
	if !ok {
		return
	}
	for number := range uint32(t.keys) {
		l := t.line(number)
		if l.last < first {
			continue
		}
		if n := t.sum(l, first, end); n > 0 && !fn(l.key(), n) {
			return
		}
	}
}

// Top returns the largest counts within the window at now among the keys that keep wants (all, if it is nil): at most limit, largest first, equal ones by key.
func (t *Table) Top(window time.Duration, now int64, limit int, keep func(Key) bool) []Entry {
	if limit <= 0 {
		return nil
	}
	first, end, ok := t.bounds(window, now)
	if !ok {
		return nil
	}
	var top []Entry    // when it has limit entries: a heap, the least at its root
	least := uint64(1) // what is worth a look
	for number := range uint32(t.keys) {
		l := t.line(number)
		if l.last < first {
			continue
		}
		n := t.sum(l, first, end)
		if n < least {
			continue
		}
		e := Entry{l.key(), n}
		switch {
		case keep != nil && !keep(e.Key):
			continue
		case len(top) < limit:
			if top = append(top, e); len(top) < limit {
				continue
			}
			slices.SortFunc(top, func(a, b Entry) int { return compare(b, a) }) // sorted is a heap
		case compare(e, top[0]) < 0:
			top[0] = e
			sift(top)
		}
		least = top[0].Count
	}
	slices.SortFunc(top, compare)
	return top
}

// compare orders entries as Top returns them.
func compare(a, b Entry) int {
	return cmp.Or(
		cmp.Compare(b.Count, a.Count),
		cmp.Compare(a.Key.Hi, b.Key.Hi), cmp.Compare(a.Key.Lo, b.Key.Lo), cmp.Compare(a.Key.Tag, b.Key.Tag),
	)
}

// sift moves the root of a heap to where it belongs.
func sift(heap []Entry) {
	for i := 0; ; {
		least := i
		for child := 2*i + 1; child <= 2*i+2 && child < len(heap); child++ {
			if compare(heap[child], heap[least]) > 0 {
				least = child
			}
		}
		if least == i {
			return
		}
		heap[i], heap[least] = heap[least], heap[i]
		i = least
	}
}

// bounds returns the cells of a window at now; not ok while the table knows of no time.
func (t *Table) bounds(window time.Duration, now int64) (first, end uint32, ok bool) {
	i := slices.Index(t.windows, window)
	if i < 0 {
		panic(fmt.Sprintf("window: %v is not registered", window))
	}
	if !t.started {
		return 0, 0, false
	}
	first, end = t.grid.bounds(i, max(now, t.now))
	return first, end, true
}

// sum adds up the cells from first to before end.
func (t *Table) sum(l *line, first, end uint32) (sum uint64) {
	if l.last < first {
		return 0
	}
	if l.last < end {
		sum = uint64(l.count)
	}
	sum, at := t.grid.strides.sum(l.packed[:l.used], l.last, first, end, sum)
	if l.class != 0 && at >= first {
		sum, _ = t.grid.strides.sum(t.arena.bytes(l.class, l.chunk)[:l.filled], at, first, end, sum)
	}
	return sum
}

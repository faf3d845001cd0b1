package window

import (
	"slices"
)

// Change gives the table other windows and levels, and keeps what it holds: MaxKeys
// of c is not used. It goes through all lines once, and all histories where the
// windows differ, so it takes time in proportion to what the table holds.
//
// The count within a window that was kept before is what it was. One within a window
// that is new is never more than the truth, and less until that window has passed:
// older cells were merged without regard to it, and stand at their older edge; and
// what only it reaches is gone.
func (t *Table) Change(c Config) error {
	c.MaxKeys = t.keys.limit
	n, err := New(c)
	if err != nil {
		return err
	}
	old := t.grid
	same := slices.Equal(t.windows, n.windows)
	t.windows, t.levels, t.gauges = n.windows, n.levels, n.gauges
	if !same {
		t.grid, t.first = n.grid, n.first
	}
	if !t.started {
		return nil
	}
	if !same {
		t.grid.rebase(t.now)
		t.pass()
		t.edged = 0
	}
	var cells []cell
	for _, s := range []*store{&t.keys, &t.shares} {
		for number := range uint32(s.n) {
			p := s.at(number)
			scope := both
			switch {
			case s == &t.shares:
				scope = each
			case p.line().owner == several:
				scope = total
			}
			for i := range NumSeries {
				r, ok := p.series(i)
				if !ok {
					continue
				}
				if !same {
					cells = t.regrid(r, &old, cells[:0])
				}
				if r.count > 0 {
					t.judge(r, &t.levels[i][scope])
				}
			}
		}
		s.evict.steps = 0 // what is light is another number now
	}
	return nil
}

// regrid writes a history that was made on the grid old anew. It returns scratch.
func (t *Table) regrid(r record, old *grid, cells []cell) []cell {
	// Unpacked first: the chunk is given back before another is taken.
	if r.count > 0 {
		cells = append(cells, cell{r.last, r.count})
		w := t.walk(r)
		w.strides = &old.strides
		for c, ok := w.next(); ok; c, ok = w.next() {
			cells = append(cells, c)
		}
	}
	t.clear(r)
	*r.history = history{}
	edges := t.edges()
	t.cells = t.cells[:0]
	for _, c := range cells {
		at, ok := t.grid.cell(old.time(c.at))
		if !ok {
			continue // far ahead, or older than anything that counts
		}
		useful := false
		if edges, useful = t.put(cell{at, c.count}, edges, t.unborn); !useful {
			break
		}
	}
	if len(t.cells) == 0 {
		return cells
	}
	newest := t.cells[0]
	t.cells = t.cells[1:]
	r.last, r.count = newest.at, newest.count
	t.pack(r.last)
	switch {
	case len(t.packed) <= len(r.beside)-keepFree:
		r.used = uint8(copy(r.beside, t.packed))
	case len(t.packed) > sizes[len(sizes)-1]-lineBytes:
		// Thousands of cells after now, as in rebuild: only the newest counts.
	default:
		t.fit(r, len(t.packed))
		r.filled = uint16(copy(t.arena.bytes(r.class, r.chunk), t.packed))
	}
	return cells
}

// Lack says that a member shows less of each key than there is, as when keys had to go
// for others: for a table that begins when others have counted for long. So it is until
// the set is emptied.
func (t *Table) Lack(m Member, which uint8) { t.members[m].short[which] = true }

// Begin sets which of a member's gauges is shown, in a table without any keys.
func (t *Table) Begin(m Member, which uint8) { t.members[m].shown = which }

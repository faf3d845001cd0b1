// Package live keeps the identity of each live flow of one table, and
// reconciles a dump with the events that arrive while it runs.
//
// Consumers only add and subtract. What makes their sums right is that each
// epoch contains each flow once: a dump begins an epoch with an empty set; a
// flow enters it through whichever comes first, its NEW event or its row in the
// dump, and leaves it through its DESTROY. The kernel promises no order between
// a dump and the event socket, so a DESTROY may be read before the row that the
// dump had already copied: while a dump runs, ended flows leave a tombstone,
// and a row that finds its tombstone is no flow.
//
// The set holds 64-bit fingerprints of (tuple, zone, protocol, id) under a
// random key, 8 bytes each, and not the tuples. Two of a million live flows
// share one with a probability of 5 in 10^8; the damage would be one flow
// miscounted until the next dump.
package live

import (
	"math/bits"
	"math/rand/v2"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Table is the set of live flows. It is not safe for concurrent use.
type Table struct {
	key     [2]uint64
	held    set // the epoch that is complete, or was the last one that was
	next    set // the epoch whose dump is running
	ended   set // flows that ended since the dump began
	dumping bool

	prints []uint64 // of the events at hand
	sink   uint64
}

// New returns an empty table.
func New() *Table { return &Table{key: [2]uint64{rand.Uint64(), rand.Uint64() | 1}} }

// Len is the number of flows held: in the epoch of the last complete dump, or
// before the first one in that which is being built.
func (t *Table) Len() int { return max(t.held.n, t.next.n) }

// Begin starts a new, empty epoch: the caller dumps the table now. A dump that
// was running is given up.
func (t *Table) Begin() {
	t.next, t.ended, t.dumping = set{}, set{}, true
	t.next.expect(t.held.n) // it will hold about as many
}

// End makes the new epoch the one that counts.
func (t *Table) End() {
	t.held, t.next, t.ended, t.dumping = t.next, set{}, set{}, false
	t.held.release()
}

// Apply takes an event into account and sets its flags.
func (t *Table) Apply(e *events.Event) { t.apply(e, t.fingerprint(e)) }

// ApplyAll is Apply for many events, in their order.
func (t *Table) ApplyAll(evs []events.Event) {
	prints := t.prepare(evs, true)
	for i := range evs {
		t.apply(&evs[i], prints[i])
	}
}

// prepare returns the fingerprints of events, or rows of a dump, whose turn comes
// next. The slots that they belong to are read on the way: in a large table each
// is a miss of the caches, and here the processor waits for many at once instead
// of for one after the other. Rows are not looked for in the epoch before.
func (t *Table) prepare(evs []events.Event, before bool) []uint64 {
	t.prints = t.prints[:0]
	for i := range evs {
		t.prints = append(t.prints, t.fingerprint(&evs[i]))
	}
	if before {
		t.sink |= t.held.touch(t.prints)
	}
	if t.dumping {
		t.sink |= t.next.touch(t.prints) | t.ended.touch(t.prints)
	}
	return t.prints
}

func (t *Table) apply(e *events.Event, f uint64) {
	e.Flags = 0
	if e.Type == events.Destroy {
		if !t.held.remove(f) {
			e.Flags |= events.UnheldBefore
		}
		if t.dumping {
			t.ended.add(f)
			if !t.next.remove(f) {
				e.Flags |= events.Unheld
			}
		}
	} else {
		if !t.held.add(f) {
			e.Flags |= events.UnheldBefore
		}
		if t.dumping {
			t.ended.remove(f)
			if !t.next.add(f) {
				e.Flags |= events.Unheld
			}
		}
	}
	if !t.dumping && e.Flags != 0 {
		// A consumer may not have seen the end of the dump yet and still show
		// the epoch before: what this epoch does not hold, that one does not.
		e.Flags |= events.Unheld
	}
}

// Existing takes a row of the dump and reports whether the flow is to be
// announced: it is neither in the epoch already nor ended since.
func (t *Table) Existing(e *events.Event) bool { return t.existing(t.fingerprint(e)) }

func (t *Table) existing(f uint64) bool { return !t.ended.has(f) && t.next.add(f) }

// ExistingAll is Existing for many rows. It returns those to be announced, in
// the same memory.
func (t *Table) ExistingAll(rows []events.Event) []events.Event {
	announce := rows[:0]
	for i, f := range t.prepare(rows, false) {
		if t.existing(f) {
			announce = append(announce, rows[i])
		}
	}
	return announce
}

// Bytes is what the sets take.
func (t *Table) Bytes() int { return t.held.bytes() + t.next.bytes() + t.ended.bytes() }

// fingerprint is never all ones, which marks an empty slot.
func (t *Table) fingerprint(e *events.Event) uint64 {
	o := &e.Orig
	h := t.key[0]
	h = mix(h^o.Src.Lo, t.key[1]^o.Dst.Lo)
	if e.IPv6 {
		h = mix(h^o.Src.Hi, t.key[1]^o.Dst.Hi)
	}
	h = mix(h^uint64(o.SrcPort)<<48^uint64(o.DstPort)<<32^uint64(e.ID), t.key[1]^uint64(e.Zone)<<16^uint64(e.Proto)<<8^1)
	return h &^ 1
}

// mix folds the 128-bit product of two words, as wyhash does.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

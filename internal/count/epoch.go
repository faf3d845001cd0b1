package count

import (
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// An epoch is one life of a firewall's active set. Each snapshot begins one; it
// holds every flow once, and is shown from the moment it is complete here.
//
// The producer knows the identity of each flow and says of every event whether
// it changes the set of its own epoch (unless Unheld) and of the one before
// (unless UnheldBefore). So the two that may be needed at a time, the one that
// is shown and the one that is being completed, are kept by adding and
// subtracting, in whatever order live batches and snapshot batches arrive.
//
// Epochs are ordered: by boot, then by the producer's number. 0 is none.
type epoch uint64

func epochOf(b *boot, n uint32) epoch {
	if n == 0 {
		return 0 // sent before the first snapshot began
	}
	return epoch(b.order)<<32 | epoch(n)
}

func (e epoch) number() uint32 { return uint32(e) }
func (e epoch) boot() uint32   { return uint32(e >> 32) }

// patience is how long a complete snapshot waits for live batches that are
// missing before its end. Then it is shown without them, as approximate.
const patience = 5 * time.Second

// overdue is when a snapshot that is still not complete must have lost a batch
// on its way: a dump of a million entries takes a few seconds.
const overdue = 30 * time.Second

// snapshot is what is known of one epoch's dump.
type snapshot struct {
	epoch epoch
	boot  *boot
	since int64 // stream time of the first sign of it

	begin, end           uint64 // sequences of its first and last batch; 0: not yet here
	parts                uint64 // batches that are here
	beginAfter, endAfter uint64 // the live sequences that these follow
	ended                int64  // stream time of the last batch
	firstLive            uint64 // lowest live sequence heard of this epoch, 0: none
	lostBefore           uint64 // the producer's losses when it began
	aborted              bool
}

// from is the live sequence after which everything must have been heard, for
// the epoch to be exact. The first snapshot batch names it; but where it left
// late, after live batches of its epoch, the batch before the first of those is
// asked for too, as it may be of the epoch.
func (s *snapshot) from() uint64 {
	if s.firstLive == 0 || s.firstLive > s.beginAfter {
		return s.beginAfter
	}
	return max(s.firstLive, 2) - 2
}

// hearLive notes a live batch of this epoch.
func (s *snapshot) hearLive(seq uint64) {
	if s.firstLive == 0 || seq < s.firstLive {
		s.firstLive = seq
	}
}

// whole reports whether all its batches are here, and all live batches that
// its end follows.
func (s *snapshot) whole(now int64) bool {
	if s.epoch == 0 || s.aborted || s.begin == 0 || s.end < s.begin || s.parts != s.end-s.begin+1 {
		return false
	}
	live := &s.boot.live
	if live.complete(s.from(), s.endAfter) {
		return true
	}
	// A listener that came later than the dump began cannot know what it
	// missed: only the next dump can be trusted.
	late := live.highest == 0 || live.lowest > s.from()+1
	return !late && live.highest >= s.endAfter && now-s.ended > int64(patience)
}

// exact reports whether every live batch since its beginning was applied and
// the producer lost nothing.
func (s *snapshot) exact() bool {
	live := &s.boot.live
	return s.boot.lost <= s.lostBefore && live.complete(s.from(), live.highest)
}

// epochs are the two epochs of one firewall.
type epochs struct {
	shown   snapshot
	pending snapshot
	// slot is the index in the gauges' numbers of the one that is shown; the
	// other index is the pending one's.
	slot   uint8
	aborts uint32 // how many epochs after the one shown are known to have been given up
	dirty  bool   // the pending slot has been written to
}

// effect says which sets an event changes.
type effect struct {
	shown, pending           bool
	shownFlag, pendingFlag   events.Flags // an event with this flag does not, after all
	shownIndex, pendingIndex uint8
}

// deltas returns what an event does to the two numbers of its key.
func (f *effect) deltas(typ events.Type, flags events.Flags) (d [2]int8) {
	by := int8(1)
	if typ == events.Destroy {
		by = -1
	}
	if f.shown && flags&f.shownFlag == 0 {
		d[f.shownIndex] = by
	}
	if f.pending && flags&f.pendingFlag == 0 {
		d[f.pendingIndex] = by
	}
	return d
}

// effect returns what a live batch's events do, or nothing when they belong to
// no set that is kept.
func (s *epochs) effect(id epoch) effect {
	f := effect{shownIndex: s.slot, pendingIndex: 1 - s.slot, shownFlag: events.UnheldBefore, pendingFlag: events.Unheld}
	sameBoot := s.shown.epoch != 0 && s.shown.epoch.boot() == id.boot()
	switch {
	case id == 0 || id < s.shown.epoch:
	case id == s.shown.epoch:
		f.shown, f.shownFlag = true, events.Unheld
	case id == s.pending.epoch:
		f.shown = sameBoot
		f.pending = !s.pending.aborted
	case id < s.pending.epoch:
		f.shown = sameBoot
	}
	return f
}

// skipped reports whether the producer completed an epoch that was never
// complete here. What later events say of "the epoch before" is about that one,
// not the one shown.
func (s *epochs) skipped() bool {
	if s.pending.epoch == 0 || s.shown.epoch == 0 {
		return false
	}
	between := s.pending.epoch.number() - s.shown.epoch.number() - 1
	gone := s.aborts
	if s.pending.aborted {
		gone--
	}
	return between > gone
}

// approximate reports whether what is shown may differ from the table, newest
// being the boot heard last.
func (s *epochs) approximate(newest *boot, now int64) bool {
	switch {
	case s.shown.epoch == 0:
		return false
	case newest != nil && s.shown.boot.order < newest.order:
		return true // its producer was started again
	case s.pending.epoch != 0 && !s.pending.aborted && now-s.pending.since > int64(overdue):
		return true // as skipped, without a later epoch that says so
	}
	return s.skipped() || !s.shown.exact()
}

// meet makes id the pending epoch when it is newer than those known.
func (c *Counter) meet(f *firewall, b *boot, id epoch, stream int64) {
	s := &f.epochs
	if id <= s.shown.epoch || id <= s.pending.epoch {
		return
	}
	c.clearPending(f)
	s.pending = snapshot{epoch: id, boot: b, since: stream}
}

// abort notes that the producer gave up an epoch.
func (c *Counter) abort(f *firewall, id epoch) {
	s := &f.epochs
	if s.shown.epoch != 0 && id > s.shown.epoch && id.boot() == s.shown.epoch.boot() {
		s.aborts++
	}
	if id == s.pending.epoch {
		c.clearPending(f)
		s.pending.aborted = true
	}
}

// clearPending empties the sets that a snapshot had begun to fill.
func (c *Counter) clearPending(f *firewall) {
	s := &f.epochs
	if !s.dirty {
		return
	}
	for _, at := range f.inTurn {
		c.change(at, 1-s.slot, opClear)
	}
	f.held[1-s.slot], s.dirty = 0, false
}

// settle shows the pending epoch when it has become whole. at is when what
// thereby crosses a level is said to have done so.
func (c *Counter) settle(f *firewall, at int64) {
	s := &f.epochs
	if !s.pending.whole(c.now) {
		return
	}
	old, now := s.slot, 1-s.slot
	for _, one := range f.inTurn {
		c.jobs = append(c.jobs, job{now: c.now, at: at, op: opShow, member: one.member, slot: now})
		c.change(one, old, opClear)
	}
	f.held[old] = 0
	s.slot, s.shown, s.pending = now, s.pending, snapshot{}
	s.aborts, s.dirty = 0, false
}

package count

import (
	"math"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// maxBoots is how many runs of one producer are remembered: the current one,
// those whose last batches may still be on their way, and rivals.
const maxBoots = 8

// boot is one run of one producer, as far as it was heard.
type boot struct {
	id    events.Boot
	order uint32 // 1, 2, 3 … in the order in which boots were first heard
	clock clock

	live, snapshots sequence

	// The loss account. Total numbers the events of the boot, so the numbers
	// below the lowest and above the highest that were heard are known, and
	// what is missing between them is what was not applied.
	from, to uint64 // lowest Total, highest Total+Count
	applied  uint64 // events in batches that were applied
	lost     uint64 // highest Lost
	missing  uint64 // as it stood after the last batch
	lastLoss int64  // stream time when lost grew
	lastMiss int64  // stream time when missing grew

	// Send times of its live batches on the stream's clock.
	first, last int64
}

func newBoot(id events.Boot, order uint32) *boot {
	return &boot{id: id, order: order, clock: newClock(), from: math.MaxUint64, first: math.MaxInt64}
}

// hear takes a live batch that is not a duplicate into account.
func (b *boot) hear(batch *events.Batch, stream int64) {
	n := uint64(batch.Count)
	b.from = min(b.from, batch.Total)
	b.to = max(b.to, batch.Total+n)
	b.applied += n
	missing := uint64(0)
	if span := b.to - b.from; b.to > b.from && span > b.applied {
		missing = span - b.applied
	}
	if missing > b.missing {
		b.lastMiss = stream
	}
	b.missing = missing
	b.lose(batch.Lost, stream)

	sent := min(batch.Sent+b.clock.offset(), stream)
	b.first, b.last = min(b.first, sent), max(b.last, sent)
}

// lose takes the producer's own account of its losses.
func (b *boot) lose(lost uint64, stream int64) {
	if lost > b.lost {
		b.lost, b.lastLoss = lost, stream
	}
}

const (
	// Two runs that were both sending for longer than this are two producers
	// with one name. A restart does not overlap with what it replaces, or for
	// a moment; a batch of the old run that was held up overlaps when it
	// arrives, not when it was sent.
	rivalOverlap = time.Second
	// rivalMemory is how long after one of them fell silent this is shown.
	rivalMemory = time.Minute
)

// rivals reports whether two of the boots send at the same time.
func rivals(boots []*boot, now int64) bool {
	for i, a := range boots {
		for _, b := range boots[:i] {
			until := min(a.last, b.last)
			if until-max(a.first, b.first) > int64(rivalOverlap) && now-until < int64(rivalMemory) {
				return true
			}
		}
	}
	return false
}

// seenWindow is how far behind the newest a batch may come and still be told
// from a duplicate.
const seenWindow = 4096

// sequence tells new batches from duplicates and knows up to where nothing is
// missing. Batches are numbered from 1 per boot and subject; a listener that
// came late begins with the first it hears.
type sequence struct {
	lowest, highest uint64 // heard; 0: none
	upto            uint64 // everything from lowest to here was heard, or given up
	gaveUp          uint64 // the highest number that was given up, 0: none
	bits            [seenWindow / 64]uint64
}

type verdict uint8

const (
	fresh verdict = iota
	duplicate
	tooOld
)

func (s *sequence) has(seq uint64) bool { return s.bits[seq/64%uint64(len(s.bits))]&(1<<(seq%64)) != 0 }
func (s *sequence) set(seq uint64)      { s.bits[seq/64%uint64(len(s.bits))] |= 1 << (seq % 64) }

// hear notes that seq has come.
func (s *sequence) hear(seq uint64) verdict {
	switch {
	case s.highest == 0:
		s.lowest, s.highest, s.upto = seq, seq, seq
		s.set(seq)
		return fresh
	case seq > s.highest:
		if seq-s.highest >= seenWindow {
			clear(s.bits[:])
		} else {
			for n := s.highest + 1; n < seq; n++ {
				s.bits[n/64%uint64(len(s.bits))] &^= 1 << (n % 64)
			}
		}
		s.highest = seq
		s.set(seq)
	case s.highest-seq >= seenWindow:
		return tooOld
	case s.has(seq):
		return duplicate
	default:
		s.set(seq)
		if seq < s.lowest {
			s.before(seq)
			return fresh
		}
	}
	s.advance()
	return fresh
}

// complete reports whether everything after from, up to and with to, was heard.
func (s *sequence) complete(from, to uint64) bool {
	if from >= to {
		return true
	}
	if s.lowest == 0 || s.lowest > from+1 || s.highest < to || s.gaveUp > from {
		return false
	}
	if s.highest > seenWindow {
		from = max(from, s.highest-seenWindow) // what lies before was not given up: it was heard
	}
	for n := max(from, min(s.upto, to)) + 1; n <= to; n++ {
		if !s.has(n) {
			return false
		}
	}
	return true
}

// before moves the beginning down to seq; what lies between may still come.
func (s *sequence) before(seq uint64) {
	was := s.lowest
	s.lowest = seq
	if seq+1 != was {
		s.upto = seq
		s.advance()
	}
}

// advance moves upto over what has come, and over what can no longer come
// because its place in the window was given to others.
func (s *sequence) advance() {
	if s.highest > seenWindow && s.highest-seenWindow > s.upto {
		s.upto = s.highest - seenWindow
		s.gaveUp = s.upto
	}
	for s.upto < s.highest && s.has(s.upto+1) {
		s.upto++
	}
}

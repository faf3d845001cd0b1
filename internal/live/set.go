package live

import "math/bits"

// set is a hash set of fingerprints in segments: by their highest bits each
// belongs to one. A set of ten million grows in steps of milliseconds, where one
// array would hold up everybody for half a second.
type set struct {
	segments [1 << segmentBits]segment
	n        int
}

const segmentBits = 6

func (s *set) of(f uint64) *segment { return &s.segments[f>>(64-segmentBits)] }

// touch reads the slot that each fingerprint belongs to. The caller keeps the
// result: a read whose value nobody wants may be left out.
func (s *set) touch(prints []uint64) (any uint64) {
	for _, f := range prints {
		if g := s.of(f); g.n > 0 {
			any |= g.slots[g.home(f)]
		}
	}
	return any
}

// expect has each segment begin with room for its part of n fingerprints, and
// keep it, whatever comes and goes until release.
func (s *set) expect(n int) {
	for i := range s.segments {
		s.segments[i].least = uint64(n) / uint64(len(s.segments)) * 3 / 2
	}
}

// release lets segments shrink to what they hold.
func (s *set) release() { s.expect(0) }

func (s *set) has(f uint64) bool { return s.of(f).has(f) }

// add reports whether f was not there.
func (s *set) add(f uint64) bool {
	if !s.of(f).add(f) {
		return false
	}
	s.n++
	return true
}

// remove reports whether f was there.
func (s *set) remove(f uint64) bool {
	if !s.of(f).remove(f) {
		return false
	}
	s.n--
	return true
}

// bytes is what all slots take.
func (s *set) bytes() (n int) {
	for i := range s.segments {
		n += 8 * len(s.segments[i].slots)
	}
	return n
}

// segment is a sorted array with gaps: a fingerprint belongs to the slot that
// lies where it lies among all of the segment, and stands there or a little
// behind, in the order of all. So a search is one comparison per slot, whether it
// finds or not; a segment that is read from its beginning to its end fills
// another one in that order too; and any number of slots will do. While it grows
// it is between 57 and 75 percent full: 10.7 to 14 bytes for each fingerprint, and
// the room behind on top, which is felt in small ones only.
type segment struct {
	slots    []uint64 // homes, and behind them room for what the last ones push out
	homes    uint64
	overhang uint64 // of the slots; the last is always empty
	least    uint64 // homes that it shall have
	n        int
}

const (
	empty       = ^uint64(0) // greater than every fingerprint: a search ends there
	minHomes    = 64
	minOverhang = 16 // the key is random, so nobody can make a run that long
)

// home is where f belongs: the first slot that it may stand in.
func (s *segment) home(f uint64) int {
	hi, _ := bits.Mul64(f<<segmentBits, s.homes)
	return int(hi)
}

// find returns where f stands, or would.
func (s *segment) find(f uint64) (i int, ok bool) {
	slots := s.slots
	for i = s.home(f); slots[i] < f; i++ {
	}
	return i, slots[i] == f
}

func (s *segment) has(f uint64) bool {
	if s.n == 0 {
		return false
	}
	_, ok := s.find(f)
	return ok
}

// add reports whether f was not there.
func (s *segment) add(f uint64) bool {
	if uint64(s.n) >= s.homes/4*3 {
		s.resize(max(minHomes, s.least, s.homes+s.homes*5/16))
	}
	i, ok := s.find(f)
	if ok {
		return false
	}
	s.insert(i, f)
	s.n++
	if s.slots[len(s.slots)-1] != empty {
		s.resize(s.homes)
	}
	return true
}

// insert puts f into slot i and moves what stands there up to the next gap.
func (s *segment) insert(i int, f uint64) {
	slots := s.slots[i:]
	for i := range slots {
		slots[i], f = f, slots[i]
		if f == empty {
			return
		}
	}
}

// remove reports whether f was there.
func (s *segment) remove(f uint64) bool {
	if s.n == 0 {
		return false
	}
	i, ok := s.find(f)
	if !ok {
		return false
	}
	// Those behind move down, up to a gap or to one that is at home.
	slots := s.slots
	for i+1 < len(slots) && slots[i+1] != empty && s.home(slots[i+1]) <= i {
		slots[i] = slots[i+1]
		i++
	}
	slots[i] = empty
	s.n--
	if least := max(minHomes, s.least); s.homes > least && uint64(s.n) < s.homes/4 {
		s.resize(max(least, s.homes/2))
	}
	return true
}

func (s *segment) resize(homes uint64) {
	old := s.slots
	s.homes, s.overhang = homes, max(s.overhang, minOverhang)
	for !s.fill(old) {
		s.overhang *= 2
	}
}

// fill makes new slots and puts the old ones' fingerprints into them: in order,
// so each stands behind the one before or at home. It reports false when they
// reach the last slot.
func (s *segment) fill(old []uint64) bool {
	s.slots = make([]uint64, s.homes+s.overhang)
	for i := range s.slots {
		s.slots[i] = empty
	}
	at := 0
	for _, f := range old {
		if f != empty {
			if at = max(at, s.home(f)); at >= len(s.slots)-1 {
				return false
			}
			s.slots[at] = f
			at++
		}
	}
	return true
}

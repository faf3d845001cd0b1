package window

import "unsafe"

// A store is a dense set of lines with an index.
//
// The line is what every event of the first series touches. The parts beside it
// stand in arrays of their own, so that they cost nothing where they are not used,
// and are fetched at the same time as the line where they are.
type store struct {
	index  index
	blocks []*block
	n      int // lines in use: the first n
	limit  int
	// byMember: a key has a line for each of its members, and both make the hash.
	byMember bool

	sweep uint32 // the next line to be visited, see sweep.go
	evict evict
}

// blockLines lines are a block of 80 KiB, or 144 with tails.
const blockLines = 1024

type block struct {
	lines  [blockLines]line
	gauges [blockLines]gauge
	tails  *[blockLines]tail // nil until one of its lines needs one
}

// A line is all that the table keeps of a quiet key's first series, in one cache line of 64 bytes.
type line struct {
	hi, lo uint64
	tag    uint16
	owner  Member // whose it is, or several: then it is a total
	history
	packed [lineBytes]byte
}

// A tail holds the other series, in one cache line.
type tail [NumSeries - 1]struct {
	history
	packed [tailBytes]byte
}

const (
	lineBytes = 24
	tailBytes = 12
)

func (l *line) key() Key { return Key{Hi: l.hi, Lo: l.lo, Tag: l.tag} }

func (l *line) is(k *Key) bool { return l.lo == k.Lo && l.hi == k.Hi && l.tag == k.Tag }

// A place is a line and what stands beside it.
type place struct {
	*block
	i uint32
}

func (s *store) at(number uint32) place {
	return place{s.blocks[number/blockLines], number % blockLines}
}

func (p place) line() *line   { return &p.lines[p.i] }
func (p place) gauge() *gauge { return &p.gauges[p.i] }

// series returns a history, which is empty where it was never used; ok is false
// where there is none yet.
func (p place) series(s Series) (r record, ok bool) {
	if s == 0 {
		l := p.line()
		return record{&l.history, l.packed[:]}, true
	}
	if p.tails == nil {
		return record{}, false
	}
	t := &p.tails[p.i][s-1]
	return record{&t.history, t.packed[:]}, true
}

// grown returns a history, and makes room for it where there is none yet.
func (p place) grown(s Series) record {
	if s > 0 && p.tails == nil {
		p.tails = new([blockLines]tail)
	}
	r, _ := p.series(s)
	return r
}

func newStore(limit int, byMember bool) store {
	return store{index: newIndex(limit), limit: limit, byMember: byMember}
}

func (s *store) line(number uint32) *line {
	return &s.blocks[number/blockLines].lines[number%blockLines]
}

// hash is the hash of a key, or of a key and its member where the store has a line for each.
func (s *store) hash(k *Key, by Member) uint64 {
	if s.byMember {
		return s.index.hash(k, uint64(by)+1)
	}
	return s.index.hash(k, 0)
}

func (s *store) hashOf(l *line) uint64 {
	k := l.key()
	return s.hash(&k, l.owner)
}

// find returns the line of a key, of any owner or of this one.
func (s *store) find(k *Key, by Member, hash uint64) (number uint32, ok bool) {
	shard := s.index.shard(hash)
	if len(shard.slots) == 0 {
		return 0, false
	}
	want := uint32(hash)
	for i := shard.home(uint64(want)); ; {
		slot := shard.slots[i]
		if slot == 0 {
			return 0, false
		}
		if uint32(slot>>32) == want {
			if l := s.line(uint32(slot) - 1); l.is(k) && (by == anyone || l.owner == by) {
				return uint32(slot) - 1, true
			}
		}
		if i++; i == len(shard.slots) {
			i = 0
		}
	}
}

// append adds an empty line of a key that the store does not have. There must be room.
func (s *store) append(k *Key, owner Member, hash uint64) (number uint32) {
	number = uint32(s.n)
	s.n++
	if s.n > len(s.blocks)*blockLines {
		s.blocks = append(s.blocks, new(block))
	}
	s.fitIndex()
	s.put(number, k, owner, hash)
	return number
}

func (s *store) put(number uint32, k *Key, owner Member, hash uint64) {
	*s.line(number) = line{hi: k.Hi, lo: k.Lo, tag: k.Tag, owner: owner}
	s.index.put(hash, number)
}

// remove takes a line out; the last line takes its place. What the line held in the
// arena must have been freed.
func (s *store) remove(number uint32) {
	s.index.remove(s.hashOf(s.line(number)), number)
	s.n--
	last := uint32(s.n)
	p, q := s.at(number), s.at(last)
	if number != last {
		s.index.move(s.hashOf(q.line()), last, number)
		*p.line(), *p.gauge() = *q.line(), *q.gauge()
		if q.tails != nil {
			if p.tails == nil {
				p.tails = new([blockLines]tail)
			}
			p.tails[p.i] = q.tails[q.i]
		} else if p.tails != nil {
			p.tails[p.i] = tail{}
		}
	}
	*q.line(), *q.gauge() = line{}, gauge{}
	if q.tails != nil {
		q.tails[q.i] = tail{}
	}
	// One block more than needed stays, so that a key that comes and goes does not
	// cost a block each time.
	if spare := s.n/blockLines + 2; spare < len(s.blocks) {
		clear(s.blocks[spare:])
		s.blocks = s.blocks[:spare]
	}
	if s.n == 0 {
		s.blocks = nil
	}
	s.fitIndex()
}

// fitIndex cuts the index in as many shards as a full store needs once a single one
// gets too large, or makes it one again.
func (s *store) fitIndex() {
	switch x := &s.index; {
	case x.bits == 0 && s.n > keysPerShard && x.fullBits > 0:
		s.reindex(x.fullBits)
	case x.bits > 0 && s.n < keysPerShard/4:
		s.reindex(0)
	}
}

// reindex cuts the index into 1<<bits shards.
func (s *store) reindex(bits int) {
	x := &s.index
	old := x.shards
	x.bits, x.shards, x.slots = bits, make([]shard, 1<<bits), 0
	for _, shard := range old {
		for _, slot := range shard.slots {
			if slot != 0 {
				number := uint32(slot) - 1
				x.put(s.hashOf(s.line(number)), number)
			}
		}
	}
}

func (s *store) bytes() int {
	n := s.index.bytes()
	for _, b := range s.blocks {
		n += int(unsafe.Sizeof(*b))
		if b.tails != nil {
			n += int(unsafe.Sizeof(*b.tails))
		}
	}
	return n
}

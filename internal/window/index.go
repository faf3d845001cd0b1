package window

import (
	"math/bits"
	"math/rand/v2"
	"unsafe"
)

// The index finds the line of a key. It is a hash table with linear probing. With
// many keys it is cut into shards by the high bits of the hash, so that growing one
// copies a few thousand slots at most.
//
// A slot is 32 bits of the hash and the number of the line plus one; 0 is free. A
// shard has any number of slots, and the hash is scaled to it by a multiplication:
// it can grow by half instead of doubling.
type index struct {
	shards   []shard // 1<<bits
	bits     int
	fullBits int // for a full table
	seed     [3]uint64
	slots    int // of all shards
}

type shard struct {
	slots []uint64
	used  int
}

const (
	minSlots = 8
	// keysPerShard is for a full table. It bounds the pause when a shard grows (some 20 µs).
	keysPerShard = 4096
)

func newIndex(maxKeys int) index {
	x := index{seed: [3]uint64{rand.Uint64(), rand.Uint64(), rand.Uint64() | 1}}
	for maxKeys>>x.fullBits > keysPerShard {
		x.fullBits++
	}
	x.shards = make([]shard, 1)
	return x
}

func (x *index) bytes() int { return x.slots*8 + len(x.shards)*int(unsafe.Sizeof(shard{})) }

// hash is two rounds of multiply and fold, over a key and whatever else tells lines
// apart. The seed is drawn for each index: whoever chooses the addresses cannot
// choose the collisions.
func (x *index) hash(k *Key, by uint64) uint64 {
	hi, lo := bits.Mul64(k.Hi^x.seed[0], k.Lo^x.seed[1])
	by |= uint64(k.Tag) << 32
	hi, lo = bits.Mul64(hi^lo^by<<8, x.seed[2]^by)
	return hi ^ lo
}

func (x *index) shard(hash uint64) *shard { return &x.shards[hash>>1>>(63-x.bits)] }

// home is where the search for a slot begins.
func (s *shard) home(slotHash uint64) int {
	return int(slotHash * uint64(len(s.slots)) >> 32)
}

// put adds the number of a line that is not in the index.
func (x *index) put(hash uint64, number uint32) {
	s := x.shard(hash)
	if s.used >= len(s.slots)*3/4 {
		x.resize(s, max(minSlots, len(s.slots)+len(s.slots)/2))
	}
	s.insert(uint64(uint32(hash))<<32 | uint64(number+1))
	s.used++
}

func (s *shard) insert(slot uint64) {
	i := s.home(slot >> 32)
	for s.slots[i] != 0 {
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	s.slots[i] = slot
}

func (x *index) resize(s *shard, n int) {
	old := s.slots
	s.slots = make([]uint64, n)
	x.slots += n - len(old)
	for _, slot := range old {
		if slot != 0 {
			s.insert(slot)
		}
	}
}

// locate returns the slot that names a line.
func (s *shard) locate(hash uint64, number uint32) int {
	want := uint64(uint32(hash))<<32 | uint64(number+1)
	i := s.home(want >> 32)
	for s.slots[i] != want {
		if i++; i == len(s.slots) {
			i = 0
		}
	}
	return i
}

// move changes the number of a line.
func (x *index) move(hash uint64, from, to uint32) {
	s := x.shard(hash)
	s.slots[s.locate(hash, from)] = uint64(uint32(hash))<<32 | uint64(to+1)
}

// remove takes a line out, and moves back the slots behind it that it kept from their home.
func (x *index) remove(hash uint64, number uint32) {
	s := x.shard(hash)
	n := len(s.slots)
	hole := s.locate(hash, number)
	for i := hole; ; {
		if i++; i == n {
			i = 0
		}
		slot := s.slots[i]
		if slot == 0 {
			break
		}
		// It may fill the hole unless its home lies behind the hole, seen in the
		// direction of the search.
		if behind(s.home(slot>>32), i, n) >= behind(hole, i, n) {
			s.slots[hole] = slot
			hole = i
		}
	}
	s.slots[hole] = 0
	s.used--
	if n > minSlots && s.used < n/4 {
		x.resize(s, max(minSlots, n/2))
	}
}

// behind returns how far a search goes from a to b in a ring of n.
func behind(a, b, n int) int {
	if a <= b {
		return b - a
	}
	return b - a + n
}

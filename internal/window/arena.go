package window

import "math/bits"

// The arena keeps the histories that do not fit beside them, in chunks of a few
// sizes. Chunks of one size stand in blocks of chunksPerBlock; the lowest block
// that has room is used first, so the highest run empty and are given back.
type arena struct {
	classes [len(sizes) + 1]class // classes[0] is none
	held    int                   // bytes of all blocks
}

const chunksPerBlock = 256

// sizes are the sizes of chunks in bytes. The largest holds the longest history
// there can be (maxWindows, each cell at its longest).
var sizes = [...]int{32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288}

type class struct {
	blocks []slab
	room   []uint64 // a bit per block: it has a free chunk
	live   int      // chunks in use
	spare  int      // blocks that hold memory and no chunk in use
}

type slab struct {
	mem  []byte // may be nil while none of its chunks is in use
	used [chunksPerBlock / 64]uint64
	live int
}

func (a *arena) size(class uint8) int { return sizes[class-1] }

// bytes returns the whole chunk.
func (a *arena) bytes(class uint8, chunk uint32) []byte {
	size := sizes[class-1]
	from := int(chunk%chunksPerBlock) * size
	return a.classes[class].blocks[chunk/chunksPerBlock].mem[from : from+size : from+size]
}

// alloc gives the history, which has none, a chunk of at least n bytes.
func (a *arena) alloc(r record, n int) {
	i := 0
	for i < len(sizes)-1 && sizes[i] < n {
		i++
	}
	c := &a.classes[i+1]
	at := c.lowest()
	b := &c.blocks[at]
	if b.mem == nil {
		b.mem = make([]byte, chunksPerBlock*sizes[i])
		a.held += len(b.mem)
	} else if b.live == 0 {
		c.spare--
	}
	for w, used := range b.used {
		if used != ^uint64(0) {
			bit := bits.TrailingZeros64(^used)
			b.used[w] |= 1 << bit
			r.chunk = uint32(at*chunksPerBlock + w*64 + bit)
			break
		}
	}
	b.live++
	c.live++
	if b.live == chunksPerBlock {
		c.room[at/64] &^= 1 << (at % 64)
	}
	r.class = uint8(i + 1)
	r.filled = 0
}

// lowest returns the lowest block with a free chunk.
func (c *class) lowest() int {
	for w, room := range c.room {
		if room != 0 {
			return w*64 + bits.TrailingZeros64(room)
		}
	}
	at := len(c.blocks)
	c.blocks = append(c.blocks, slab{})
	if at%64 == 0 {
		c.room = append(c.room, 0)
	}
	c.room[at/64] |= 1 << (at % 64)
	return at
}

// free takes the history's chunk, if it has one.
func (a *arena) free(r record) {
	if r.class == 0 {
		return
	}
	c := &a.classes[r.class]
	at := r.chunk / chunksPerBlock
	b := &c.blocks[at]
	b.used[r.chunk%chunksPerBlock/64] &^= 1 << (r.chunk % 64)
	b.live--
	c.live--
	c.room[at/64] |= 1 << (at % 64)
	if b.live == 0 {
		// Some stay, so that a few chunks that come and go do not cost a block each time.
		if c.spare++; c.spare > 1+len(c.blocks)/16 {
			a.drop(c, b)
		}
	}
	r.class, r.chunk, r.filled = 0, 0, 0
}

// sparse says whether the history's chunk stands in a block that would not be
// needed if all chunks of its class stood close together. The margin of an eighth
// and two blocks keeps chunks from being moved to and fro.
func (a *arena) sparse(r record) bool {
	c := &a.classes[r.class]
	return int(r.chunk) > c.live+c.live/8+2*chunksPerBlock
}

func (a *arena) drop(c *class, b *slab) {
	a.held -= len(b.mem)
	b.mem = nil
	c.spare--
}

// trim gives back the blocks that are empty.
func (a *arena) trim() {
	for i := range a.classes {
		c := &a.classes[i]
		for j := range c.blocks {
			if b := &c.blocks[j]; b.live == 0 && b.mem != nil {
				a.drop(c, b)
			}
		}
		for n := len(c.blocks); n > 0 && c.blocks[n-1].mem == nil; n-- {
			c.blocks = c.blocks[:n-1]
			c.room[(n-1)/64] &^= 1 << ((n - 1) % 64)
			c.room = c.room[:(len(c.blocks)+63)/64]
		}
	}
}

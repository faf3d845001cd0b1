package synth

import "math/rand/v2"

// A Draw says which of many addresses is next. It is drawn in advance: what is
// measured must not wait for it.
type Draw struct {
	numbers []uint32
	next    int
}

// drawn is how many numbers are drawn before they repeat.
const drawn = 1 << 22

// Even draws from n numbers, each as likely as the next.
func Even(n int, seed uint64) *Draw {
	r := rand.New(rand.NewPCG(seed, 1))
	return fill(func() uint64 { return r.Uint64N(uint64(n)) })
}

// Zipf draws from n numbers a few of them mostly, as traffic does: number k with a
// probability of 1/(1+k)^1.2.
func Zipf(n int, seed uint64) *Draw {
	z := rand.NewZipf(rand.New(rand.NewPCG(seed, 2)), 1.2, 1, uint64(n-1))
	return fill(z.Uint64)
}

func fill(next func() uint64) *Draw {
	d := &Draw{numbers: make([]uint32, drawn)}
	for i := range d.numbers {
		d.numbers[i] = uint32(next())
	}
	return d
}

// Share returns a Draw with the same numbers and a place of its own in them.
func (d *Draw) Share(seed uint64) *Draw {
	return &Draw{numbers: d.numbers, next: int(seed * 0x9e3779b97f4a7c15 >> 42)}
}

// Next draws a number.
func (d *Draw) Next() uint32 {
	n := d.numbers[d.next]
	d.next = (d.next + 1) % drawn
	return n
}

package window

import (
	"math"
	"slices"
)

// evict is the state of the search for lines to evict: a hand that goes round the
// store, so that each line is looked at in its turn.
type evict struct {
	hand  uint32
	light uint64 // who has more stays
	steps int    // until light is estimated anew
}

const (
	// The lightest 1/lightShare of a sample may go. So the hand finds one in about as many steps.
	lightShare = 8
	sampleSize = 1024
	// Where a sample has fewer than fewSamples, up to nearby lines behind each of
	// its places are looked at too.
	fewSamples = 64
	nearby     = 64
	// maxChoice is among how many that may go the smallest is taken, when none is light.
	maxChoice = 4096
)

// victim returns the line to be given to another key. Lines that may not go cost
// a look each: those that may are few only while the table is full of others, and
// then each round of the hand finds all of them.
func (t *Table) victim(s *store) uint32 {
	v := &s.evict
	if v.hand >= uint32(s.n) {
		v.hand = 0
	}
	smallest, at, choice := uint64(math.MaxUint64), v.hand, 0
	for steps := 0; steps < s.n && choice < maxChoice; steps++ {
		if v.steps == 0 {
			v.light = t.lightest(s)
			v.steps = max(s.n/4, 1)
		}
		v.steps--
		number := v.hand
		if v.hand++; v.hand >= uint32(s.n) {
			v.hand = 0
		}
		p := s.at(number)
		if !t.greedy(s, p.line().owner) {
			continue
		}
		weight := t.weight(p, v.light)
		if weight <= v.light {
			return number
		}
		if choice++; weight < smallest {
			smallest, at = weight, number
		}
	}
	return at
}

// greedy reports whether a line may have to go for another: its owner has his
// share of the store or more. So whoever floods the table pushes out his own keys,
// and of those of others the light ones that several members see.
func (t *Table) greedy(s *store, owner Member) bool {
	return owner == several || t.members[owner].lines*t.active >= s.limit
}

// lightest returns the weight that an eighth of the lines that may go do not
// exceed, by a sample taken evenly from the store.
func (t *Table) lightest(s *store) uint64 {
	var all [sampleSize]uint64
	sample := all[:0]
	take := func(number int) {
		if p := s.at(uint32(number)); len(sample) < sampleSize && t.greedy(s, p.line().owner) {
			sample = append(sample, t.weight(p, math.MaxUint64))
		}
	}
	of := min(sampleSize, s.n)
	for i := range of {
		take(i * s.n / of)
	}
	if len(sample) < fewSamples {
		for i := range of {
			first, end := i*s.n/of, (i+1)*s.n/of
			for number := first + 1; number < min(end, first+nearby); number++ {
				take(number)
			}
		}
	}
	if len(sample) == 0 {
		return 0
	}
	slices.Sort(sample)
	return sample[len(sample)/lightShare]
}

// weight returns how much a line still counts for: its events in the longest
// window, of the first two series, and what it holds. No more than is needed to see
// that it exceeds enough.
func (t *Table) weight(p place, enough uint64) (sum uint64) {
	if g := p.gauge(); p.line().owner == several {
		sum = uint64(max(g.v[0], -g.v[0]))
	} else {
		m := &t.members[p.line().owner]
		for i := range g.v {
			v := g.value(m, uint8(i))
			sum = max(sum, uint64(max(v, -v)))
		}
	}
	for s := range Series(2) {
		r, ok := p.series(s)
		if !ok {
			break
		}
		c, ok := cell{r.last, r.count}, true
		for w := t.walk(r); ok && c.at >= t.oldest && sum <= enough; c, ok = w.next() {
			sum += uint64(c.count)
		}
	}
	return sum
}

// evict takes a line out for another.
func (t *Table) evict(s *store, number uint32) {
	p := s.at(number)
	if !t.idle(p) {
		t.stats.Evicted++
	}
	t.forgo(p)
	t.drop(s, number)
}

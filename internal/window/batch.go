package window

// groupSize events are looked up together: enough that their cache misses overlap, few enough that what was fetched is
// still in the first-level cache when it is used.
const groupSize = 32

// A lookup is what is known so far of where an event's line is.
type lookup struct {
	hash  uint64
	shard *shard
	home  int
	slot  uint64 // 0: the store has no such key
	tails bool   // the other series are needed too
}

// AddBatch adds events, in order, and appends what became hot.
//
// Times need not be in order; an event lands in the slot in which it happened. One that is older than any window reaches is counted in no series, and in
// [Stats.TooLate]. One later than now counts when now gets there. Members must be known (see [Table.Join]).
//
// With more keys than the caches hold, one event alone would wait for memory twice: for the slot, and for the line that the slot names. Here the slots of a group are all
// asked for before the first is used, and then the lines: the processor waits for many at once.
func (t *Table) AddBatch(events []Event, hot []Hot) []Hot {
	if len(events) == 0 {
		return hot
	}
	if !t.started {
		// Nothing is known of the time but this event, which may be late or early: assume as little as possible.
		t.start(events[0].At - t.grid.longest())
	}
	var group [groupSize]lookup
	t.split = t.split[:0]
	for from := 0; from < len(events); from += groupSize {
		part := events[from:min(from+groupSize, len(events))]
		for i := range part {
			group[i].hash = t.keys.hash(&part[i].Key, 0)
			group[i].tails = part[i].Series&^Series(0).Bit() != 0
		}
		t.fetched += t.keys.fetch(group[:len(part)])
		for i := range part {
			hot = t.addToKey(&part[i], from+i, &group[i], hot)
		}
	}
	for from := 0; from < len(t.split); from += groupSize {
		part := t.split[from:min(from+groupSize, len(t.split))]
		for i, e := range part {
			group[i].hash = t.shares.hash(&events[e].Key, events[e].Member)
			group[i].tails = events[e].Series&^Series(0).Bit() != 0
		}
		t.fetched += t.shares.fetch(group[:len(part)])
		for i, e := range part {
			hot = t.addToShare(&events[e], e, &group[i], hot)
		}
	}
	return hot
}

// fetch brings what a group of lookups will need into the cache. Each step is a loop of its own, and short, since only
// some hundred instructions are under way at a time. What it returns means nothing; it depends on all that was read.
func (s *store) fetch(group []lookup) (sum uint32) {
	shards, shift := s.index.shards, 63-s.index.bits
	for i := range group {
		g := &group[i]
		g.shard = &shards[g.hash>>1>>shift]
		g.home = g.shard.home(uint64(uint32(g.hash)))
		g.slot = 0
		if g.home < len(g.shard.slots) {
			g.slot = g.shard.slots[g.home]
		}
	}
	for i := range group {
		g := &group[i]
		if number, ok := g.candidate(); ok {
			b, i := s.blocks[number/blockLines], number%blockLines
			sum += b.lines[i].last + uint32(b.gauges[i].v[0])
			if g.tails && b.tails != nil {
				sum += b.tails[i][0].last
			}
		}
	}
	return sum
}

// candidate goes from the home slot to the first that has the hash.
func (g *lookup) candidate() (number uint32, ok bool) {
	for at := g.home; g.slot != 0; g.slot = g.shard.slots[at] {
		if uint32(g.slot>>32) == uint32(g.hash) {
			return uint32(g.slot) - 1, true
		}
		if at++; at == len(g.shard.slots) {
			at = 0
		}
	}
	return 0, false
}

// resolve returns the line that was looked up. The candidate may be another key's, and events before this one may have moved lines.
func (s *store) resolve(g *lookup, k *Key, by Member) (p place, ok bool) {
	if number := uint32(g.slot) - 1; number < uint32(s.n) { // a slot of 0 is no line: it wraps
		p = s.at(number)
		if l := p.line(); l.is(k) && (by == anyone || l.owner == by) {
			return p, true
		}
	}
	number, ok := s.find(k, by, g.hash)
	if ok {
		p = s.at(number)
	}
	return p, ok
}

// addToKey adds an event to its key. Where the key has several members its share is left to do: it is noted in t.split.
func (t *Table) addToKey(e *Event, index int, g *lookup, hot []Hot) []Hot {
	p, ok := t.keys.resolve(g, &e.Key, anyone)
	if !ok {
		p = t.keys.at(t.insert(&t.keys, &e.Key, e.Member, g.hash))
	}
	l := p.line()
	scope := both
	if l.owner != e.Member {
		if l.owner != several {
			t.meet(p, e.Member)
		}
		if l.owner == several {
			scope = total
			t.split = append(t.split, index)
		}
	}
	series := t.count(p, e, scope)
	shown := t.members[e.Member].shown
	var held int32
	if e.Gauge != [2]int8{} {
		if scope == both {
			held = t.change(p.gauge(), e)
		} else {
			p.gauge().v[0] += int32(e.Gauge[shown])
			held = p.gauge().v[0]
		}
		if e.Gauge[shown] > 0 && t.gaugeHot(held, scope) {
			series |= NumSeries.Bit()
		}
	}
	if series != 0 {
		hot = appendHot(hot, index, series, true, scope == both)
	}
	return hot
}

// addToShare adds an event to its member's share of a key that has several.
func (t *Table) addToShare(e *Event, index int, g *lookup, hot []Hot) []Hot {
	p, ok := t.shares.resolve(g, &e.Key, e.Member)
	if !ok {
		if !t.announce(&e.Key) {
			return hot // the key had to go for one that came later in the batch
		}
		p = t.shares.at(t.insert(&t.shares, &e.Key, e.Member, g.hash))
	}
	series := t.count(p, e, each)
	if e.Gauge != [2]int8{} {
		if held := t.change(p.gauge(), e); e.Gauge[t.members[e.Member].shown] > 0 && t.gaugeHot(held, each) {
			series |= NumSeries.Bit()
		}
	}
	if series != 0 {
		hot = appendHot(hot, index, series, false, true)
	}
	return hot
}

func appendHot(hot []Hot, index int, series uint8, total, member bool) []Hot {
	for s := Series(0); s <= NumSeries; s++ {
		if series&s.Bit() != 0 {
			hot = append(hot, Hot{Event: index, Series: s, Total: total, Member: member})
		}
	}
	return hot
}

// count adds an event to the series of a line, and returns those that may have reached a level.
func (t *Table) count(p place, e *Event, scope int) (hot uint8) {
	if e.Series == 0 || e.N == 0 {
		return 0
	}
	c, ok := t.grid.cell(e.At)
	if !ok || c < t.oldest {
		if scope == each {
			return 0 // it was noted when it was added to the total
		}
		if e.At > t.now {
			t.stats.TooEarly += uint64(e.N)
		} else {
			t.stats.TooLate += uint64(e.N)
		}
		return 0
	}
	if e.Series&1 != 0 {
		l := p.line()
		if t.add(record{&l.history, l.packed[:]}, c, e.N, &t.levels[0][scope]) {
			hot |= 1
		}
	}
	for s, rest := Series(1), e.Series>>1; rest != 0; s, rest = s+1, rest>>1 {
		if rest&1 != 0 && t.add(p.grown(s), c, e.N, &t.levels[s][scope]) {
			hot |= s.Bit()
		}
	}
	return hot
}

// add counts n events in a cell.
func (t *Table) add(r record, c, n uint32, levels *levelSet) (hot bool) {
	newer := c > r.last
	switch {
	case c == r.last:
		r.count = add(r.count, n)
	case newer:
		t.open(r, c, n, levels)
	default:
		t.late(r, c, n)
	}
	if n < r.slack {
		r.slack -= n
		return false
	}
	if r.slack == 0 && !newer {
		return true // older events cannot have expired since the level was reached
	}
	return t.judge(r, levels)
}

// judge computes the slack. It takes cells later than now as if now had got there, and a window to reach as far as any shorter one
// does: what it finds is an upper bound of the counts at any time from now on.
func (t *Table) judge(r record, levels *levelSet) (hot bool) {
	r.slack = 0
	slack := uint64(levels.slack)
	sum, i := uint64(0), 0
	c, ok := cell{r.last, r.count}, true
	for w := t.walk(r); ok; c, ok = w.next() {
		for i < len(levels.levels) && c.at < t.first[levels.levels[i].window] {
			slack = min(slack, levels.levels[i].count-sum)
			i++
		}
		if i == len(levels.levels) {
			break
		}
		if sum += uint64(c.count); sum >= levels.levels[i].beyond {
			return true
		}
	}
	if i < len(levels.levels) {
		slack = min(slack, levels.levels[i].beyond-sum)
	}
	r.slack = uint32(slack)
	return false
}

// insert makes room for a line that the store does not have, and returns it: empty.
func (t *Table) insert(s *store, k *Key, owner Member, hash uint64) (number uint32) {
	if s.n >= s.limit {
		number = t.victim(s)
		t.evict(s, number)
	}
	t.own(owner, 1)
	return s.append(k, owner, hash)
}

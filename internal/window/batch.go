package window

const (
	// groupSize items are looked up together: enough that their cache misses
	// overlap, few enough that what was fetched is still in the first-level cache
	// when it is used.
	groupSize = 32
	// Events are gathered into items blockSize at a time. recentSize, a power of
	// two, is how many items a further event can find again.
	blockSize  = 2048
	recentSize = 1024
)

// An item is one event or several that come to the same: of one key, member and
// cell, and in the same series. Busy keys come many times in a batch, and in a
// fleet's totals often late, which costs more: once for all of them.
type item struct {
	event   int    // index of the first
	n       uint32 // of all
	cell    uint32
	counted bool // they lie within what a history can hold
	gauge   [2]int32

	// What is known so far of where their line is.
	hash  uint64
	shard *shard
	home  int
	slot  uint64 // 0: the store has no such key
}

// AddBatch adds events, in order, and appends what became hot.
//
// Times need not be in order; an event lands in the slot in which it happened. One
// that is older than any window reaches is counted in no series, and in
// [Stats.TooLate]. One later than now counts when now gets there. Members must be
// known (see [Table.Join]).
func (t *Table) AddBatch(events []Event, hot []Hot) []Hot {
	if len(events) == 0 {
		return hot
	}
	if !t.started {
		// Nothing is known of the time but this event, which may be late or early:
		// assume as little as possible.
		t.start(events[0].At - t.grid.longest())
	}
	for from := 0; from < len(events); from += blockSize {
		t.gather(events, from, min(from+blockSize, len(events)))
		t.split = t.split[:0]
		for items := t.items; len(items) > 0; {
			group := items[:min(groupSize, len(items))]
			items = items[len(group):]
			t.fetched += t.keys.fetch(events, group)
			for i := range group {
				hot = t.addToKey(&events[group[i].event], &group[i], hot)
			}
		}
		for items := t.split; len(items) > 0; {
			group := items[:min(groupSize, len(items))]
			items = items[len(group):]
			for i := range group {
				e := &events[group[i].event]
				group[i].hash = t.shares.hash(&e.Key, e.Member)
			}
			t.fetched += t.shares.fetch(events, group)
			for i := range group {
				hot = t.addToShare(&events[group[i].event], &group[i], hot)
			}
		}
	}
	return hot
}

// gather makes items of events.
func (t *Table) gather(events []Event, from, to int) {
	clear(t.recent[:])
	t.items = t.items[:0]
	for i := from; i < to; i++ {
		e := &events[i]
		it := item{event: i, n: e.N, hash: t.keys.hash(&e.Key, 0), gauge: [2]int32{int32(e.Gauge[0]), int32(e.Gauge[1])}}
		if e.Series != 0 && e.N != 0 {
			it.cell, it.counted = t.grid.cell(e.At)
			it.counted = it.counted && it.cell >= t.oldest
		}
		recent := &t.recent[it.hash%recentSize]
		if *recent > 0 {
			had := &t.items[*recent-1]
			first := &events[had.event]
			if had.hash == it.hash && had.cell == it.cell && had.counted == it.counted && first.Key == e.Key && first.Member == e.Member && first.Series == e.Series {
				had.n = add(had.n, it.n)
				had.gauge[0] += it.gauge[0]
				had.gauge[1] += it.gauge[1]
				continue
			}
		}
		t.items = append(t.items, it)
		*recent = uint16(len(t.items))
	}
}

// fetch brings what a group of items will need into the cache. One event alone
// would wait for memory twice: for the slot, and for the line that the slot names.
// Here the slots of a group are all asked for before the first is used, and then
// the lines: the processor waits for many at once. Each step is a loop of its own,
// and short, since only some hundred instructions are under way at a time. What it
// returns means nothing; it depends on all that was read.
func (s *store) fetch(events []Event, group []item) (sum uint32) {
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
			if b.tails != nil && events[g.event].Series&^Series(0).Bit() != 0 {
				sum += b.tails[i][0].last
			}
		}
	}
	return sum
}

// candidate goes from the home slot to the first that has the hash.
func (g *item) candidate() (number uint32, ok bool) {
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

// resolve returns the line that was looked up. The candidate may be another key's,
// and events before this one may have moved lines.
func (s *store) resolve(g *item, k *Key, by Member) (p place, ok bool) {
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

// addToKey adds an item to its key. Where the key has several members its share is
// left to do: it is put into t.split.
func (t *Table) addToKey(e *Event, it *item, hot []Hot) []Hot {
	p, ok := t.keys.resolve(it, &e.Key, anyone)
	if !ok {
		p = t.keys.at(t.insert(&t.keys, &e.Key, e.Member, it.hash))
	}
	l := p.line()
	scope := both
	if l.owner != e.Member {
		if l.owner != several {
			t.meet(p, e.Member)
		}
		if l.owner == several {
			scope = total
			t.split = append(t.split, *it)
		}
	}
	series := t.count(p, e, it, scope)
	if it.gauge != [2]int32{} {
		shown := t.members[e.Member].shown
		var held int32
		if scope == both {
			held = t.change(p.gauge(), e.Member, it.gauge)
		} else {
			p.gauge().v[0] += it.gauge[shown]
			held = p.gauge().v[0]
		}
		if it.gauge[shown] > 0 && t.gaugeHot(held, scope) {
			series |= NumSeries.Bit()
		}
	}
	if series != 0 {
		hot = appendHot(hot, it.event, series, true, scope == both)
	}
	return hot
}

// addToShare adds an item to its member's share of a key that has several.
func (t *Table) addToShare(e *Event, it *item, hot []Hot) []Hot {
	p, ok := t.shares.resolve(it, &e.Key, e.Member)
	if !ok {
		if !t.announce(&e.Key) {
			return hot // the key had to go for one that came later in the batch
		}
		p = t.shares.at(t.insert(&t.shares, &e.Key, e.Member, it.hash))
	}
	series := t.count(p, e, it, each)
	if it.gauge != [2]int32{} {
		if held := t.change(p.gauge(), e.Member, it.gauge); it.gauge[t.members[e.Member].shown] > 0 && t.gaugeHot(held, each) {
			series |= NumSeries.Bit()
		}
	}
	if series != 0 {
		hot = appendHot(hot, it.event, series, false, true)
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

// count adds an item to the series of a line, and returns those that may have reached a level.
func (t *Table) count(p place, e *Event, it *item, scope int) (hot uint8) {
	if e.Series == 0 || it.n == 0 {
		return 0
	}
	if !it.counted {
		switch {
		case scope == each: // it was noted when it was added to the total
		case e.At > t.now:
			t.stats.TooEarly += uint64(it.n)
		default:
			t.stats.TooLate += uint64(it.n)
		}
		return 0
	}
	if e.Series&1 != 0 {
		l := p.line()
		if t.add(record{&l.history, l.packed[:]}, it.cell, it.n, &t.levels[0][scope]) {
			hot |= 1
		}
	}
	for s, rest := Series(1), e.Series>>1; rest != 0; s, rest = s+1, rest>>1 {
		if rest&1 != 0 && t.add(p.grown(s), it.cell, it.n, &t.levels[s][scope]) {
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

// judge computes the slack. It takes cells later than now as if now had got there,
// and a window to reach as far as any shorter one does: what it finds is an upper
// bound of the counts at any time from now on.
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

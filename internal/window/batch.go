package window

// An Event is what Add takes.
type Event struct {
	Key Key
	At  int64
	N   uint32
}

// groupSize events are looked up together: enough that their cache misses overlap, few enough that what was fetched is
// still in the first-level cache when it is used.
const groupSize = 32

// A lookup is what is known so far of where an event's line is.
type lookup struct {
	hash  uint64
	shard *shard
	home  int
	slot  uint64 // 0: the table has no such key
}

// AddBatch adds events as if by [Table.Add], in order, and appends to hot the index of each for which that would return true. With more keys
// than the caches hold it is about twice as fast.
//
// A single Add waits for memory twice, for the slot and for the line that the slot names. Here the slots of a group are all
// asked for before the first is used, and then the lines: the processor waits for many at once. Each step is a loop of its own, and short, since only
// some hundred instructions are under way at a time.
func (t *Table) AddBatch(events []Event, hot []int) []int {
	if len(events) > 0 && !t.started {
		t.start(events[0].At - t.grid.longest())
	}
	var group [groupSize]lookup
	for from := 0; from < len(events); from += groupSize {
		part := events[from:min(from+groupSize, len(events))]
		for i := range part {
			g := &group[i]
			g.hash = t.index.hash(part[i].Key)
			g.shard = t.index.shard(g.hash)
			g.home = g.shard.home(uint64(uint32(g.hash)))
		}
		for i := range part {
			g := &group[i]
			g.slot = 0
			if g.home < len(g.shard.slots) {
				g.slot = g.shard.slots[g.home]
			}
		}
		fetched := uint32(0)
		for i := range part {
			if number, ok := group[i].candidate(); ok {
				fetched += t.line(number).last
			}
		}
		t.fetched = fetched
		for i := range part {
			e, g := &part[i], &group[i]
			number := uint32(g.slot) - 1
			// The candidate may be another key's, and events before this one may have moved lines.
			known := g.slot != 0 && number < uint32(t.keys) && t.line(number).is(e.Key)
			if !known {
				number, known = t.find(e.Key, g.hash)
			}
			if t.add(*e, g.hash, number, known) {
				hot = append(hot, from+i)
			}
		}
	}
	return hot
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

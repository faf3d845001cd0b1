package window

import (
	"fmt"
	"math"
	"slices"
	"time"
	"unsafe"
)

// A Key says what is counted: 128 bits, an address say, and a tag of the caller's, such as a firewall's number.
type Key struct {
	Hi, Lo uint64
	Tag    uint32
}

// A Level is a number of events within a window that the caller wants to hear of.
type Level struct {
	Window time.Duration
	Count  uint64
}

// Config says what a table keeps.
type Config struct {
	// Windows are the windows that can be asked for: each from 1 s to 1 h, a multiple of 20 ms, at most 32 of them.
	Windows []time.Duration
	// Levels decide what Add returns. Each names one of Windows and a count of at least 1.
	Levels []Level
	// MaxKeys bounds the number of keys; 0 means DefaultMaxKeys.
	MaxKeys int
}

// Limits of a Config.
const (
	MinWindow      = time.Second
	MaxWindow      = time.Hour
	DefaultMaxKeys = 1 << 20

	maxWindows = 32
	grain      = slots * time.Millisecond
	maxMaxKeys = 1 << 28
)

// Stats describe a table. The counters only grow.
type Stats struct {
	Keys     int
	Bytes    int    // memory held for keys and histories
	Evicted  uint64 // keys that had to go for others while they still counted for something
	TooLate  uint64 // events older than any window reaches, not counted
	TooEarly uint64 // events beyond what the table can represent (over two billion slots ahead), not counted
}

// A Table counts events per key in sliding windows. It belongs to one goroutine.
type Table struct {
	windows []time.Duration // shortest first
	levels  []level
	maxKeys int

	grid    grid
	now     int64
	turn    int64 // when now reaches it, an edge is passed
	started bool
	first   []uint32 // of each window, at now: its first cell
	oldest  uint32   // the first cell that any window reaches, at now
	unborn  uint32   // the first cell after now
	edge    []uint32 // see grid.edges; of the time when edged was unborn
	edged   uint32

	fullSlack uint32 // of a key without events

	index index
	lines [][]line // blocks of linesPerBlock; as long as it is the only one, the first can be smaller
	keys  int
	arena arena
	stats Stats

	sweep sweep
	evict evict

	cells   []cell // scratch of rebuild
	packed  []byte
	fetched uint32 // keeps the reads of AddBatch, which nothing else needs, from being left out
}

// linesPerBlock lines are 64 KiB. A fleet has thousands of tables with a few keys each, so a table starts with less.
const (
	linesPerBlock = 1024
	minLines      = 8
)

// A level is what the caller's levels for one window come to.
type level struct {
	window int
	count  uint64 // the smallest
	beyond uint64 // the smallest of this and all longer windows
}

// New makes an empty table.
func New(c Config) (*Table, error) {
	t := &Table{maxKeys: c.MaxKeys, fullSlack: math.MaxUint32}
	if len(c.Windows) == 0 {
		return nil, fmt.Errorf("window table: no windows")
	}
	t.windows = slices.Clone(c.Windows)
	slices.Sort(t.windows)
	t.windows = slices.Compact(t.windows)
	if len(t.windows) > maxWindows {
		return nil, fmt.Errorf("window table: %d windows: at most %d", len(t.windows), maxWindows)
	}
	ns := make([]int64, len(t.windows))
	for i, w := range t.windows {
		if w < MinWindow || w > MaxWindow || w%grain != 0 {
			return nil, fmt.Errorf("window table: window %v: must be %v to %v, a multiple of %v", w, MinWindow, MaxWindow, grain)
		}
		ns[i] = int64(w)
	}
	if t.maxKeys == 0 {
		t.maxKeys = DefaultMaxKeys
	}
	if t.maxKeys < 1 || t.maxKeys > maxMaxKeys {
		return nil, fmt.Errorf("window table: max keys %d: must be 1 to %d", c.MaxKeys, maxMaxKeys)
	}
	if err := t.setLevels(c.Levels); err != nil {
		return nil, err
	}
	t.grid = newGrid(ns)
	t.first = make([]uint32, len(t.windows))
	t.index = newIndex(t.maxKeys)
	return t, nil
}

func (t *Table) setLevels(levels []Level) error {
	for _, l := range levels {
		w := slices.Index(t.windows, l.Window)
		if w < 0 {
			return fmt.Errorf("window table: level %d within %v: no such window", l.Count, l.Window)
		}
		if l.Count == 0 {
			return fmt.Errorf("window table: level 0 within %v: must be at least 1", l.Window)
		}
		i, ok := slices.BinarySearchFunc(t.levels, w, func(l level, w int) int { return l.window - w })
		if !ok {
			t.levels = slices.Insert(t.levels, i, level{window: w, count: l.Count})
		}
		t.levels[i].count = min(t.levels[i].count, l.Count)
		t.fullSlack = uint32(min(uint64(t.fullSlack), l.Count))
	}
	beyond := uint64(math.MaxUint64)
	for i := range slices.Backward(t.levels) {
		beyond = min(beyond, t.levels[i].count)
		t.levels[i].beyond = beyond
	}
	return nil
}

// Add counts n events of a key at a time. It returns hot if, with them, the key could have reached a level: never false when
// [Table.Count] would show that it has, and seldom true otherwise.
//
// Times need not be in order; an event lands in the slot in which it happened. One that is older than any window reaches is ignored, and counted in
// [Stats.TooLate]. One later than now counts when now gets there.
func (t *Table) Add(k Key, at int64, n uint32) (hot bool) {
	if !t.started {
		// Nothing is known of the time but this event, which may be late or early: assume as little as possible.
		t.start(at - t.grid.longest())
	}
	hash := t.index.hash(k)
	number, known := t.find(k, hash)
	return t.add(Event{k, at, n}, hash, number, known)
}

// add does what Add does, for a key whose line is known or else not in the table.
func (t *Table) add(e Event, hash uint64, number uint32, known bool) (hot bool) {
	at, n := e.At, e.N
	if n == 0 {
		return false
	}
	c, ok := t.grid.cell(at)
	if !ok || c < t.oldest {
		if at > t.now {
			t.stats.TooEarly += uint64(n)
		} else {
			t.stats.TooLate += uint64(n)
		}
		return false
	}
	if !known {
		number = t.insert(e.Key, hash)
		l := t.line(number)
		l.last, l.count = c, n
		return t.spend(l, n, true)
	}
	l := t.line(number)
	switch {
	case c == l.last:
		l.count = add(l.count, n)
	case c > l.last:
		t.open(l, c, n)
		return t.spend(l, n, true)
	default:
		t.late(l, c, n)
	}
	return t.spend(l, n, false)
}

// spend takes events off the slack. newer says that they opened a cell, so that older ones may have expired since the slack was computed.
func (t *Table) spend(l *line, n uint32, newer bool) (hot bool) {
	if n < l.slack {
		l.slack -= n
		return false
	}
	if l.slack == 0 && !newer {
		return true
	}
	return t.judge(l)
}

// judge computes the slack. It takes cells later than now as if now had got there, and a window to reach as far as any shorter one
// does: what it finds is an upper bound of the counts at any time from now on.
func (t *Table) judge(l *line) (hot bool) {
	l.slack = 0
	slack := uint64(math.MaxUint32)
	sum, i := uint64(0), 0
	c, ok := cell{l.last, l.count}, true
	for w := t.walk(l); ok; c, ok = w.next() {
		for i < len(t.levels) && c.at < t.first[t.levels[i].window] {
			slack = min(slack, t.levels[i].count-sum)
			i++
		}
		if i == len(t.levels) {
			break
		}
		if sum += uint64(c.count); sum >= t.levels[i].beyond {
			return true
		}
	}
	if i < len(t.levels) {
		slack = min(slack, t.levels[i].beyond-sum)
	}
	l.slack = uint32(slack)
	return false
}

// insert makes room for a key that the table does not have, and returns its line: without a cell, with full slack.
func (t *Table) insert(k Key, hash uint64) (number uint32) {
	if t.keys == t.maxKeys {
		number = t.victim()
		l := t.line(number)
		if l.last >= t.oldest {
			t.stats.Evicted++
		}
		t.index.remove(t.index.hash(l.key()), number)
		t.arena.free(l)
	} else {
		number = uint32(t.keys)
		t.keys++
		t.fitLines()
		t.fitIndex()
	}
	*t.line(number) = line{hi: k.Hi, lo: k.Lo, tag: k.Tag, slack: t.fullSlack}
	t.index.put(hash, number)
	return number
}

func (t *Table) line(number uint32) *line {
	return &t.lines[number/linesPerBlock][number%linesPerBlock]
}

// remove takes a line out; the last line takes its place.
func (t *Table) remove(number uint32) {
	l := t.line(number)
	t.index.remove(t.index.hash(l.key()), number)
	t.arena.free(l)
	t.keys--
	if last := uint32(t.keys); number != last {
		moved := t.line(last)
		t.index.move(t.index.hash(moved.key()), last, number)
		*l = *moved
	}
	t.fitLines()
	t.fitIndex()
}

// fitLines makes room for the number of keys, not much more.
func (t *Table) fitLines() {
	if t.keys > linesPerBlock || len(t.lines) > 1 && t.keys > linesPerBlock/2 {
		// One block more than needed stays, so that a key that comes and goes does not cost a block each time.
		if t.keys > len(t.lines)*linesPerBlock {
			t.lines = append(t.lines, make([]line, linesPerBlock))
		} else if spare := t.keys/linesPerBlock + 2; spare < len(t.lines) {
			clear(t.lines[spare:])
			t.lines = t.lines[:spare]
		}
		return
	}
	have := 0
	if len(t.lines) > 0 {
		have = len(t.lines[0])
	}
	if want := max(minLines, 2*t.keys); t.keys > have || have > 2*want || len(t.lines) > 1 {
		first := make([]line, min(want, linesPerBlock))
		if have > 0 {
			copy(first, t.lines[0])
		}
		t.lines = append(t.lines[:0:0], first)
	}
}

// fitIndex cuts the index in as many shards as a full table needs once a single one gets too large, or makes it one again.
func (t *Table) fitIndex() {
	switch bits := t.index.bits; {
	case bits == 0 && t.keys > keysPerShard && t.index.fullBits > 0:
		t.reindex(t.index.fullBits)
	case bits > 0 && t.keys < keysPerShard/4:
		t.reindex(0)
	}
}

// Stats returns the table's size and counters.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Keys = t.keys
	for _, block := range t.lines {
		s.Bytes += len(block) * int(unsafe.Sizeof(line{}))
	}
	s.Bytes += t.index.bytes() + t.arena.held
	return s
}

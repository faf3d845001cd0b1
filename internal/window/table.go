package window

import (
	"fmt"
	"math"
	"slices"
	"time"
)

// A Key says what is counted: 128 bits, an address say, and a tag of the caller's,
// such as where the address means something.
type Key struct {
	Hi, Lo uint64
	Tag    uint16
}

// A Series is one of the counts that a key has. The first is kept in the key's own
// line and costs the least.
type Series uint8

// NumSeries is the number of series.
const NumSeries Series = 3

// Bit is the series as a bit of [Event.Series].
func (s Series) Bit() uint8 { return 1 << s }

// A Level is a number of events within a window that the caller wants to hear of:
// of a member, or in total.
type Level struct {
	Series  Series
	Members bool // each member's count; otherwise the total
	Window  time.Duration
	Count   uint64
}

// Config says what a table keeps.
type Config struct {
	// Windows are the windows that can be asked for: each from 1 s to 1 h, a
	// multiple of 20 ms, at most 32 of them.
	Windows []time.Duration
	// Levels decide which events are reported as hot. Each names one of Windows and
	// a count of at least 1.
	Levels []Level
	// GaugeTotal and GaugeMember are the same for gauges: the smallest value to hear of; 0: none.
	GaugeTotal, GaugeMember uint32
	// MaxKeys bounds the number of keys, and that of the lines for their members; 0
	// means DefaultMaxKeys.
	MaxKeys int
}

// Limits of a Config.
const (
	MinWindow      = time.Second
	MaxWindow      = time.Hour
	DefaultMaxKeys = 1 << 20

	maxWindows = 32
	grain      = NumSlots * time.Millisecond
	maxMaxKeys = 1 << 28
)

// An Event is something that happened to a key.
type Event struct {
	Key    Key
	At     int64   // when, for the series
	N      uint32  // so often, in each of the series; 0: not at all
	Member Member  // where it was seen
	Series uint8   // bits of the series that it counts in
	Gauge  [2]int8 // by how much it changes the member's two gauges
}

// Hot says that an event may have brought its key to a level. It never fails to
// when a level has been reached, and seldom speaks when none has.
type Hot struct {
	Event  int    // its index among those added
	Series Series // NumSeries: the gauge
	Total  bool   // the key's total
	Member bool   // its member's count
}

// Stats describe a table. The counters only grow.
type Stats struct {
	Keys     int
	Shares   int    // lines of members, for keys with several
	Bytes    int    // memory held for keys and histories
	Evicted  uint64 // keys and shares that had to go for others while they still counted for something
	TooLate  uint64 // events older than any window reaches, not counted
	TooEarly uint64 // events beyond what the table can represent (over two billion slots ahead), not counted
}

// A Table counts events per key in sliding windows. It belongs to one goroutine.
type Table struct {
	windows []time.Duration // shortest first
	levels  [NumSeries][scopes]levelSet
	gauges  [2]int32 // the levels of gauges: total, member; 0: none

	grid    grid
	now     int64
	turn    int64 // when now reaches it, an edge is passed
	started bool
	swept   int64    // the time up to which the lines that were due have been visited
	balance int      // between keys and shares in these visits
	first   []uint32 // of each window, at now: its first cell
	oldest  uint32   // the first cell that any window reaches, at now
	unborn  uint32   // the first cell after now
	edge    []uint32 // see grid.edges; of the time when edged was unborn
	edged   uint32

	members []member
	active  int   // members that have keys
	keys    store // a line for each key
	shares  store // a line for each member of a key that has several
	arena   arena
	stats   Stats

	items   []item             // of the events being added
	split   []item             // those whose keys have several members
	recent  [recentSize]uint16 // by hash: one more than the index of an item
	cells   []cell             // scratch of rebuild
	packed  []byte
	fetched uint32 // keeps the reads of fetch, which nothing else needs, from being left out
}

// What a history's levels are: those of totals, of members, or of both, where they
// are the same history.
const (
	total = iota
	each
	both
	scopes
)

// A levelSet is what the caller's levels for one kind of history come to.
type levelSet struct {
	levels []level
	slack  uint32 // of a history without events
}

// A level is what the levels for one window come to.
type level struct {
	window int
	count  uint64 // the smallest
	beyond uint64 // the smallest of this and all longer windows
}

// New makes an empty table.
func New(c Config) (*Table, error) {
	t := &Table{}
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
	limit := c.MaxKeys
	if limit == 0 {
		limit = DefaultMaxKeys
	}
	if limit < 1 || limit > maxMaxKeys {
		return nil, fmt.Errorf("window table: max keys %d: must be 1 to %d", c.MaxKeys, maxMaxKeys)
	}
	if err := t.setLevels(c.Levels); err != nil {
		return nil, err
	}
	for i, n := range [...]uint32{c.GaugeTotal, c.GaugeMember} {
		t.gauges[i] = int32(min(n, math.MaxInt32))
	}
	t.grid = newGrid(ns)
	t.first = make([]uint32, len(t.windows))
	t.keys, t.shares = newStore(limit, false), newStore(limit, true)
	return t, nil
}

func (t *Table) setLevels(levels []Level) error {
	for _, l := range levels {
		w := slices.Index(t.windows, l.Window)
		switch {
		case w < 0:
			return fmt.Errorf("window table: level %d within %v: no such window", l.Count, l.Window)
		case l.Count == 0:
			return fmt.Errorf("window table: level 0 within %v: must be at least 1", l.Window)
		case l.Series >= NumSeries:
			return fmt.Errorf("window table: level %d within %v: no series %d", l.Count, l.Window, l.Series)
		}
		scope := total
		if l.Members {
			scope = each
		}
		t.levels[l.Series][scope].add(w, l.Count)
		t.levels[l.Series][both].add(w, l.Count)
	}
	for s := range t.levels {
		for i := range t.levels[s] {
			t.levels[s][i].finish()
		}
	}
	return nil
}

func (s *levelSet) add(window int, count uint64) {
	i, ok := slices.BinarySearchFunc(s.levels, window, func(l level, w int) int { return l.window - w })
	if !ok {
		s.levels = slices.Insert(s.levels, i, level{window: window, count: count})
	}
	s.levels[i].count = min(s.levels[i].count, count)
}

func (s *levelSet) finish() {
	beyond := uint64(math.MaxUint64)
	for i := range slices.Backward(s.levels) {
		beyond = min(beyond, s.levels[i].count)
		s.levels[i].beyond = beyond
	}
	s.slack = uint32(min(beyond, math.MaxUint32))
}

// Stats returns the table's size and counters.
func (t *Table) Stats() Stats {
	s := t.stats
	s.Keys, s.Shares = t.keys.n, t.shares.n
	s.Bytes = t.keys.bytes() + t.shares.bytes() + t.arena.held
	return s
}

// Room reports whether a quarter of the table is free.
func (t *Table) Room() bool {
	most := t.keys.limit / 4 * 3
	return t.keys.n <= most && t.shares.n <= most
}

package history

import (
	"net/netip"
	"sync"
)

// Place is a firewall within a realm; an empty firewall is the sum of the realm.
type Place struct{ Realm, Firewall string }

// Minute is what the counts were at the end of a minute.
type Minute struct {
	At      int64 // when it began, Unix s of the bus server's clock
	Partial bool  // counting had not gone on for a minute
	BySrc   []Talkers
	ByDst   []Talkers
	Fill    []Fill
}

// Talkers are the largest of one place, in any order.
type Talkers struct {
	Place
	ActiveKnown bool // otherwise Active means nothing
	Rows        []Row
}

// Row is one address: what it opened within the minute, and what it held at its end.
type Row struct {
	Address     netip.Addr
	New, Active uint64
}

// Fill is the table of a firewall.
type Fill struct {
	Place
	Entries     uint64 // at the minute's end
	Peak        uint64 // the most that was reported within it
	Limit       uint64
	Percent     float64
	Lost        uint64 // events lost within the minute
	State       string // how fresh that is
	Active      uint64 // by events and resyncs
	ActiveKnown bool
}

func (m *Minute) rows() int {
	n := len(m.Fill) + 1
	for _, list := range [][]Talkers{m.BySrc, m.ByDst} {
		for i := range list {
			n += len(list[i].Rows)
		}
	}
	return n
}

// queuedRows bounds what waits for the disk: 20 minutes of a hundred firewalls, or
// 32 MiB.
const queuedRows = 1 << 19

// queue holds minutes, oldest first.
type queue struct {
	mu      sync.Mutex
	minutes []*Minute
	rows    int
	some    chan struct{} // has room for one token: there may be minutes
}

func (q *queue) init() { q.some = make(chan struct{}, 1) }

// put reports whether there was room. A minute that is too large for the queue has
// room when nothing else is there.
func (q *queue) put(m *Minute) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := m.rows()
	if q.rows > 0 && q.rows+n > queuedRows {
		return false
	}
	q.minutes, q.rows = append(q.minutes, m), q.rows+n
	select {
	case q.some <- struct{}{}:
	default:
	}
	return true
}

// take returns the oldest minute, nil when there is none.
func (q *queue) take() *Minute {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.minutes) == 0 {
		return nil
	}
	m := q.minutes[0]
	q.minutes = q.minutes[1:]
	q.rows -= m.rows()
	return m
}

// Put hands over a minute to be written. It never waits: where the disk cannot keep
// up the minute is dropped and counted.
func (s *Store) Put(m *Minute) {
	if !s.queue.put(m) {
		s.drop(m, errBehind)
	}
}

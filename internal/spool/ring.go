package spool

import (
	"sync"
	"time"
)

// item is one encoded batch.
type item struct {
	data   []byte
	events int
	since  time.Time // when it was put in
	seq    uint64    // 0 until it was first sent
	total  uint64    // events in the batches numbered before it
}

// Ring is a bounded queue of encoded batches, oldest first. It is safe for one
// producer and one pump.
type Ring struct {
	mu    sync.Mutex
	items []*item
	next  int // index of the first item to send; those before it wait for their acknowledgement
	bytes int
	limit int
	seq   uint64  // the last number given
	total uint64  // events in all numbered batches
	spare []*item // recycled, so that a steady stream does not allocate
	wake  chan struct{}
	room  chan struct{}
}

// NewRing returns a ring that holds at most limit bytes of batches.
func NewRing(limit int) *Ring {
	return &Ring{limit: limit, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// Put copies a batch of n events into the ring and returns how many events had
// to be dropped to make room. Batches that were sent at least once are never
// dropped: they have a sequence number. If nothing can be dropped the new batch
// is.
func (r *Ring) Put(data []byte, n int) (dropped int) {
	r.mu.Lock()
	for r.bytes+len(data) > r.limit {
		i := r.firstUnstamped()
		if i == len(r.items) {
			r.mu.Unlock()
			return dropped + n
		}
		dropped += r.items[i].events
		r.remove(i)
	}
	r.put(data, n)
	r.mu.Unlock()
	notify(r.wake)
	return dropped
}

// Offer is Put without dropping: it reports false when there is no room.
func (r *Ring) Offer(data []byte, n int) bool {
	r.mu.Lock()
	fits := r.bytes+len(data) <= r.limit || len(r.items) == 0
	if fits {
		r.put(data, n)
	}
	r.mu.Unlock()
	if fits {
		notify(r.wake)
	}
	return fits
}

// Room is signalled when acknowledged batches have left.
func (r *Ring) Room() <-chan struct{} { return r.room }

func (r *Ring) put(data []byte, n int) {
	it := &item{}
	if last := len(r.spare) - 1; last >= 0 {
		it, r.spare = r.spare[last], r.spare[:last]
	}
	*it = item{data: append(it.data[:0], data...), events: n, since: time.Now()}
	r.items = append(r.items, it)
	r.bytes += len(data)
}

// firstUnstamped is the index of the first batch without a number; those behind
// it have none either.
func (r *Ring) firstUnstamped() int {
	for i := r.next; i < len(r.items); i++ {
		if r.items[i].seq == 0 {
			return i
		}
	}
	return len(r.items)
}

// maxSpare bounds the recycled buffers: after an outage the memory goes back.
const maxSpare = 64

func (r *Ring) remove(i int) {
	it := r.items[i]
	r.bytes -= len(it.data)
	copy(r.items[i:], r.items[i+1:])
	r.items[len(r.items)-1] = nil
	r.items = r.items[:len(r.items)-1]
	if i < r.next {
		r.next--
	}
	if len(r.spare) < maxSpare {
		r.spare = append(r.spare, it)
	}
}

// take returns the next batch to send, or nil, and whether nothing sent is
// waiting for its acknowledgement. A batch that was never sent gets its number.
func (r *Ring) take() (it *item, clean bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == len(r.items) {
		return nil, false
	}
	it, clean = r.items[r.next], r.next == 0
	r.next++
	if it.seq == 0 {
		r.seq++
		it.seq, it.total = r.seq, r.total
		r.total += uint64(it.events)
	}
	return it, clean
}

// Last is the sequence number that the newest batch in the ring has or will
// have, if none is dropped.
func (r *Ring) Last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seq + uint64(len(r.items)-r.firstUnstamped())
}

// ack removes the batch with this sequence number and returns its events. A
// number that is not here was acknowledged before.
func (r *Ring) ack(seq uint64) (events int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i, it := range r.items {
		if it.seq == seq {
			events = it.events
			r.remove(i)
			notify(r.room)
			break
		}
		if it.seq == 0 || it.seq > seq {
			break
		}
	}
	return events
}

// rewind makes every batch that is here unsent again.
func (r *Ring) rewind() {
	r.mu.Lock()
	r.next = 0
	r.mu.Unlock()
}

// Usage returns the bytes waiting, the limit, and the age of the oldest batch.
func (r *Ring) Usage() (bytes, limit int, oldest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.items) > 0 {
		oldest = time.Since(r.items[0].since)
	}
	return r.bytes, r.limit, oldest
}

// Empty reports whether everything was acknowledged.
func (r *Ring) Empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.items) == 0
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

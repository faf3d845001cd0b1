package spool

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// item is one encoded batch.
type item struct {
	data   []byte
	events int
	since  time.Time // when it was put in
	seq    uint64    // 0 until it was first taken
	total  uint64    // events in the batches numbered before it
	sent   time.Time // when the bus was last given it; zero: never
}

// Ring is a bounded queue of encoded batches, oldest first. It is safe for one
// producer and one pump.
type Ring struct {
	mu     sync.Mutex
	items  []*item // the queue is items[head:]; what is before is nil
	head   int
	next   int // index of the first item to send; those before it wait for their acknowledgement
	bytes  int
	fixed  int // bytes of the numbered batches, which cannot be dropped
	flying int // bytes of those before next, which wait for their acknowledgement
	limit  int
	seq    uint64  // the last number given
	total  uint64  // events in all numbered batches
	spare  []*item // recycled, so that a steady stream does not allocate
	wake   chan struct{}
	room   chan struct{}
}

// NewRing returns a ring that holds at most limit bytes of batches.
func NewRing(limit int) *Ring {
	return &Ring{limit: limit, wake: make(chan struct{}, 1), room: make(chan struct{}, 1)}
}

// Put copies a batch of n events into the ring and returns how many events had
// to be dropped to make room: the oldest batches that were never sent go first.
// Batches that have a sequence number are never dropped. Where that leaves no
// room the new batch is what goes, and no other.
func (r *Ring) Put(data []byte, n int) (dropped int) {
	r.mu.Lock()
	if r.fixed+len(data) > r.limit {
		r.mu.Unlock()
		return n
	}
	for r.bytes+len(data) > r.limit {
		i := r.firstUnstamped()
		dropped += r.items[i].events
		r.remove(i)
	}
	r.put(data, n)
	r.mu.Unlock()
	notify(r.wake)
	return dropped
}

// Offer is Put without dropping: it reports false when there is no room. An
// empty ring takes any batch.
func (r *Ring) Offer(data []byte, n int) bool {
	r.mu.Lock()
	fits := r.bytes+len(data) <= r.limit || r.len() == 0
	if fits {
		r.put(data, n)
	}
	r.mu.Unlock()
	if fits {
		notify(r.wake)
	}
	return fits
}

// Push is Offer that waits for room, for stall at most; 0 is without end.
func (r *Ring) Push(ctx context.Context, data []byte, n int, stall time.Duration) error {
	var over <-chan time.Time
	if stall > 0 {
		timer := time.NewTimer(stall)
		defer timer.Stop()
		over = timer.C
	}
	for !r.Offer(data, n) {
		select {
		case <-r.Room():
		case <-ctx.Done():
			return ctx.Err()
		case <-over:
			return fmt.Errorf("the bus took nothing for %s", stall)
		}
	}
	return nil
}

// Room is signalled when acknowledged batches have left.
func (r *Ring) Room() <-chan struct{} { return r.room }

func (r *Ring) len() int { return len(r.items) - r.head }

func (r *Ring) put(data []byte, n int) {
	var it *item
	if last := len(r.spare) - 1; last >= 0 {
		it, r.spare = r.spare[last], r.spare[:last]
	} else {
		it = &item{}
	}
	*it = item{data: append(it.data[:0], data...), events: n, since: time.Now()}
	if r.head > 0 && len(r.items) == cap(r.items) && r.head >= r.len() {
		// Half of the queue's array is behind us: use it again.
		r.items = slices.Delete(r.items, 0, r.head)
		r.next -= r.head
		r.head = 0
	}
	r.items = append(r.items, it)
	r.bytes += len(data)
}

// firstUnstamped is the index of the first batch without a number; those behind
// it have none either. Those before are few: what the pump has in flight.
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

// remove takes out item i, which is near the head: after an outage the queue is
// long, and moving all that is behind would make draining it quadratic.
func (r *Ring) remove(i int) {
	it := r.items[i]
	r.bytes -= len(it.data)
	if it.seq != 0 {
		r.fixed -= len(it.data)
	}
	copy(r.items[r.head+1:i+1], r.items[r.head:i])
	r.items[r.head] = nil
	r.head++
	if i >= r.next {
		r.next++ // it was not sent: those that wait for their acknowledgement moved up by one
	} else {
		r.flying -= len(it.data)
	}
	if len(r.spare) < maxSpare {
		r.spare = append(r.spare, it)
	}
}

// take returns the next batch to send, or nil, and whether it is clean: nothing
// that was sent, itself included, waits for its acknowledgement. A batch that
// was never taken gets its number.
func (r *Ring) take() (it *item, clean bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.next == len(r.items) {
		return nil, false
	}
	it, clean = r.items[r.next], r.next == r.head
	r.next++
	r.flying += len(it.data)
	if it.seq == 0 {
		r.seq++
		it.seq, it.total = r.seq, r.total
		r.total += uint64(it.events)
		r.fixed += len(it.data)
	}
	return it, clean && it.sent.IsZero()
}

// Last is the sequence number that the newest batch in the ring has or will
// have, if none is dropped.
func (r *Ring) Last() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seq + uint64(len(r.items)-r.firstUnstamped())
}

// ack removes the batch with this sequence number and returns its events; ok is
// false when it is not here, having been acknowledged before.
func (r *Ring) ack(seq uint64) (events int, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := r.head; i < len(r.items); i++ {
		it := r.items[i]
		if it.seq == 0 || it.seq > seq {
			break // numbers ascend, and those without one are behind
		}
		if it.seq == seq {
			events = it.events
			r.remove(i)
			notify(r.room)
			return events, true
		}
	}
	return 0, false
}

// overdue reports whether the oldest batch was sent so long ago and waits for
// its acknowledgement still.
func (r *Ring) overdue(after time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head < r.next && time.Since(r.items[r.head].sent) > after
}

// slowAck is far beyond what an acknowledgement takes, also around the world.
const slowAck = 250 * time.Millisecond

// Behind reports whether the oldest batch has been here for so long that the
// bus is away or cannot keep up. Whoever fills the ring makes fewer and larger
// batches then: what a server cannot carry is messages, more than what is in
// them, and a fleet that comes all at once must not drown it.
func (r *Ring) Behind() bool {
	_, _, oldest := r.Usage()
	return oldest > slowAck
}

// rewind makes every batch that is here unsent again.
func (r *Ring) rewind() {
	r.mu.Lock()
	r.next, r.flying = r.head, 0
	r.mu.Unlock()
}

// inFlight is how many bytes were taken and wait for their acknowledgement.
func (r *Ring) inFlight() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.flying
}

// Usage returns the bytes waiting, the limit, and the age of the oldest batch.
func (r *Ring) Usage() (bytes, limit int, oldest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.len() > 0 {
		oldest = time.Since(r.items[r.head].since)
	}
	return r.bytes, r.limit, oldest
}

// Empty reports whether everything was acknowledged.
func (r *Ring) Empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.len() == 0
}

func notify(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

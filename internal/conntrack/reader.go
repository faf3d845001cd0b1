//go:build linux

package conntrack

import (
	"errors"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// DefaultBuffer holds 104,857 events: half a second of the fastest that
	// one core can open flows.
	DefaultBuffer = 64 << 20

	// eventCost is what one event occupies in the socket's buffer: the kernel
	// accounts for the whole buffer that it allocates (skb->truesize), not for
	// the 200 bytes or so of the message. Measured on Linux 6.18.
	eventCost = 1280

	// vector is how many events one system call fetches at most. eventSlot is
	// far above the largest event; a multiple of cache lines, and an odd one,
	// so that the heads of successive messages do not compete for one cache set.
	vector    = 256
	eventSlot = 33 * 64

	// maxRounds bounds one Receive, so that its caller gets to publish while a
	// flood goes on.
	maxRounds = 16

	// chunkEvents is how many events the caller gets at a time: enough for it to
	// work on many at once, few enough to stay in the nearest cache.
	chunkEvents = 64

	// While events flow the reader naps instead of waiting. It wakes before a
	// quarter of the buffer can have filled at peakRate events per second,
	// more than one core has been seen to produce (flushes included), and
	// after maxNap at the latest, which bounds how stale an event is. Every
	// wake-up costs the Go runtime as much as tens of events.
	maxNap   = 25 * time.Millisecond
	minNap   = 50 * time.Microsecond
	peakRate = 500_000
)

// Reader receives NEW and DESTROY events from a netlink socket of its own.
// Receive is for one goroutine; the other methods are for any.
type Reader struct {
	sock    *socket
	box     *mailbox
	chunk   chunk
	busy    bool // the last look found events: nap before the next
	more    bool // and left some: do not
	nap     time.Duration
	wanted  int
	granted int

	undecodable atomic.Uint64

	dropsMu sync.Mutex
	drops   dropCount
}

// dropCount widens the kernel's count, which has 32 bits. Whoever looks at
// least once per 2³² drops sees every wrap.
type dropCount struct {
	total uint64
	last  uint32 // as the kernel said
}

func (d *dropCount) widen(kernel uint32) uint64 {
	d.total += uint64(kernel - d.last)
	d.last = kernel
	return d.total
}

// NewReader joins the events of a namespace. From its return on every event is
// either received or counted by Drops.
func NewReader(cfg ReaderConfig) (*Reader, error) {
	wanted := cfg.BufferBytes
	if wanted == 0 {
		wanted = DefaultBuffer
	}
	if wanted < 0 || wanted > math.MaxInt32/2 { // the kernel keeps twice the value in an int
		return nil, fmt.Errorf("open event reader: buffer of %d bytes: want 1 to %d", wanted, math.MaxInt32/2)
	}
	const groups = 1<<(groupNew-1) | 1<<(groupDestroy-1)
	sock, err := openSocket(cfg.Namespace, groups, func(fd int) error {
		if err := forceBuffer(fd, wanted); err != nil {
			return err
		}
		// Without this an overrun makes recvmmsg fail and shuts the socket
		// until its queue is empty, which loses more than what did not fit.
		// Losses are counted all the same (SO_MEMINFO).
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
			return fmt.Errorf("set NETLINK_NO_ENOBUFS: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("open event reader: %w", err)
	}
	if sock.waiter, err = newWaiter(); err != nil {
		sock.close()
		return nil, fmt.Errorf("open event reader: %w", err)
	}
	r := &Reader{sock: sock, box: newMailbox(vector, eventSlot), wanted: wanted}
	m, err := sock.meminfo()
	if err != nil {
		sock.close()
		return nil, fmt.Errorf("open event reader: %w", err)
	}
	r.granted = int(m.ReceiveMax) / 2
	r.nap = napFor(int(m.ReceiveMax))
	return r, nil
}

// napFor is how long the reader may look away from a buffer of so many bytes.
func napFor(limit int) time.Duration {
	quarter := time.Duration(limit/eventCost/4) * time.Second / peakRate
	return min(max(quarter, minNap), maxNap)
}

// Receive calls fn with all events that have arrived, in order, some at a time,
// and returns how many there were. The slice is reused: fn copies what it keeps.
// When none is there Receive waits for the first, up to wait, and returns 0
// after that.
//
// While events flow, Receive naps up to 25 ms, within wait, before it
// looks (see the package comment); the first event after a pause is delivered at
// once. After Close it returns ErrClosed.
func (r *Reader) Receive(wait time.Duration, fn func([]events.Event)) (int, error) {
	if err := r.sock.acquire(); err != nil {
		return 0, err
	}
	defer r.sock.release()
	if r.busy && !r.more && wait > 0 {
		nap := min(r.nap, wait)
		if err := r.sock.waiter.nap(nap); err != nil {
			return 0, r.waitError(err)
		}
		wait -= nap
	}
	n, err := r.drain(fn)
	if n > 0 || err != nil || wait <= 0 {
		r.busy = n > 0
		return n, err
	}
	r.busy = false
	if err := r.sock.waiter.wait(r.sock.fd, wait); err != nil {
		return 0, r.waitError(err)
	}
	n, err = r.drain(fn)
	r.busy = n > 0
	return n, err
}

func (r *Reader) waitError(err error) error {
	if errors.Is(err, ErrClosed) {
		return err
	}
	return fmt.Errorf("wait for events: %w", err)
}

// drain delivers what has arrived. A recvmmsg that is not filled has emptied
// the socket, near enough: what came since waits for the next call.
func (r *Reader) drain(fn func([]events.Event)) (delivered int, err error) {
	r.more = false
	for range maxRounds {
		n, err := r.box.receive(r.sock, unix.MSG_DONTWAIT)
		if err != nil {
			return delivered, fmt.Errorf("receive events: %w", err)
		}
		if n == 0 {
			return delivered, nil
		}
		r.chunk.now = Monotonic()
		bad := 0
		for i := range n {
			datagram, err := r.box.datagram(i)
			if err != nil {
				bad++
				continue
			}
			d, b := r.chunk.add(datagram, fn)
			delivered, bad = delivered+d, bad+b
		}
		delivered += r.chunk.deliver(fn)
		if bad > 0 {
			r.undecodable.Add(uint64(bad))
		}
		if n < vector {
			return delivered, nil
		}
	}
	r.more = true
	return delivered, nil
}

// chunk gathers decoded events for a caller that takes many at a time.
type chunk struct {
	events [chunkEvents]events.Event // reused
	n      int
	now    int64 // when they were read
}

// add decodes the events of one datagram, delivers them whenever the chunk is
// full, and counts what is no event. The kernel puts one event into each
// datagram, but nothing promises that.
func (c *chunk) add(datagram []byte, fn func([]events.Event)) (delivered, bad int) {
	for rest := datagram; rest != nil; {
		var msg []byte
		var err error
		if msg, rest, err = cut(rest); err != nil {
			return delivered, bad + 1
		}
		e := &c.events[c.n]
		if err := Decode(msg, e); err != nil {
			bad++
			continue
		}
		e.Time = c.now
		if c.n++; c.n == len(c.events) {
			delivered += c.deliver(fn)
		}
	}
	return delivered, bad
}

func (c *chunk) deliver(fn func([]events.Event)) int {
	n := c.n
	c.n = 0
	if n > 0 {
		fn(c.events[:n])
	}
	return n
}

// Stop makes Receive wait no more: a wait or a nap ends, and what is there is
// received as before.
func (r *Reader) Stop() {
	if r.sock.acquire() == nil {
		r.sock.waiter.stop()
		r.sock.release()
	}
}

// Drops is the exact number of events that the kernel could not queue since
// the Reader was opened.
func (r *Reader) Drops() (uint64, error) {
	if err := r.sock.acquire(); err != nil {
		return 0, err
	}
	defer r.sock.release()
	r.dropsMu.Lock()
	defer r.dropsMu.Unlock()
	m, err := r.sock.meminfo()
	if err != nil {
		return 0, fmt.Errorf("read event drops: %w", err)
	}
	return r.drops.widen(m.Drops), nil
}

// Pressure is how many bytes of the socket's buffer are in use now, and how
// many there are. Each waiting event occupies 1280.
func (r *Reader) Pressure() (used, limit int, err error) {
	if err := r.sock.acquire(); err != nil {
		return 0, 0, err
	}
	defer r.sock.release()
	m, err := r.sock.meminfo()
	if err != nil {
		return 0, 0, fmt.Errorf("read event buffer: %w", err)
	}
	return int(m.Queued), int(m.ReceiveMax), nil
}

// Buffer is the receive buffer in bytes as granted and as wanted, both in the
// terms of SO_RCVBUF; the kernel uses twice that. Where less was granted,
// net.core.rmem_max is the limit.
func (r *Reader) Buffer() (granted, wanted int) { return r.granted, r.wanted }

// Room is how many events the buffer holds at most.
func (r *Reader) Room() int { return 2 * r.granted / eventCost }

// Undecodable counts messages that could not be read: each is an event lost to
// the caller.
func (r *Reader) Undecodable() uint64 { return r.undecodable.Load() }

// Close ends a Receive that waits, and every later call.
func (r *Reader) Close() error {
	r.sock.close()
	return nil
}

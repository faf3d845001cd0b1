package producer

import (
	"context"
	"errors"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// batchEvents closes a batch before its linger is over. Each batch costs a
// message and its acknowledgement, so it is what gathers in a nap at the highest
// rates; half of what is allowed, which leaves room for IPv6 with counters.
const batchEvents = 2048

// finalRounds of 4,096 events are more than the largest buffer holds.
const finalRounds = 32

// busyLinger is how long a batch stays open at least while events keep coming. A
// round of nap, publish and acknowledgement costs as much as two hundred events
// do; the first batch after a pause goes out after the linger that was asked for.
const busyLinger = 25 * time.Millisecond

// behindLinger is the same while the bus is behind (see [spool.Ring.Behind]).
const behindLinger = time.Second

// idleWait is how long to wait for the kernel when no batch is open.
const idleWait = time.Second

// capture moves events from the kernel into the ring until ctx ends.
func (p *Producer) capture(ctx context.Context) error {
	c := &capturer{p: p, header: events.Header{Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot}}
	defer context.AfterFunc(ctx, p.reader.Stop)() // a stop need not wait for the next event
	add := c.add                                  // one function value for all rounds: making it allocates
	receive := func(wait time.Duration) (int, error) {
		n, err := p.reader.Receive(wait, add)
		p.account.Read.Add(uint64(n))
		p.countDrops()
		if errors.Is(err, conntrack.ErrClosed) {
			err = nil
		}
		return n, errors.Join(err, c.failed)
	}
	var (
		looked int64 // when the socket was last seen empty: an open batch has waited since then at most
		busy   bool  // the last batch was closed with events still coming
	)
	for ctx.Err() == nil {
		linger := p.linger.Load()
		if busy {
			linger = max(linger, int64(busyLinger))
		}
		if p.ring.Behind() {
			linger = max(linger, int64(behindLinger))
		}
		// Under load the reader naps within wait, and the nap is the linger: an
		// event that came when it began has waited long enough when it ends.
		wait := idleWait
		switch {
		case c.w.Len() > 0:
			wait = time.Duration(max(looked+linger-conntrack.Monotonic(), 0))
		case busy:
			looked = conntrack.Monotonic()
			wait = time.Duration(linger)
		default:
			looked = conntrack.Monotonic()
		}
		n, err := receive(wait)
		if err != nil {
			return err
		}
		if conntrack.Monotonic() >= looked+linger {
			c.flush()
			busy = n > 0
		}
	}
	// What the kernel has queued by now is still ours; what comes meanwhile is
	// no more, or a flood would keep us for ever.
	for range finalRounds {
		n, err := receive(0)
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
	}
	c.flush()
	return c.failed
}

// capturer is the batch that is open.
type capturer struct {
	p      *Producer
	w      events.BatchWriter
	header events.Header
	failed error
}

// add takes events through the live set into the batch. The set is locked for
// as long as that takes, never while we wait for the kernel: a dump needs it too.
func (c *capturer) add(evs []events.Event) {
	p := c.p
	p.mu.Lock()
	defer p.mu.Unlock()
	p.live.ApplyAll(evs)
	if p.epoch != c.header.Epoch {
		c.flush() // a batch belongs to one epoch
		c.header.Epoch = p.epoch
	}
	for i := range evs {
		if err := c.w.Append(&evs[i]); errors.Is(err, events.ErrBatchFull) {
			c.flush()
			err = c.w.Append(&evs[i])
			c.failed = errors.Join(c.failed, err)
		}
	}
	if c.w.Len() >= batchEvents {
		c.flush()
	}
}

// flush closes the batch and hands it to the ring.
func (c *capturer) flush() {
	n := c.w.Len()
	if n == 0 {
		return
	}
	data, err := c.w.Encode(&c.header)
	if err != nil {
		c.failed = errors.Join(c.failed, err)
		return
	}
	if dropped := c.p.ring.Put(data, n); dropped > 0 {
		c.p.account.LostRing.Add(uint64(dropped))
		c.p.requestResync("the ring was full")
	}
}

// countDrops takes over what the kernel dropped and what could not be read.
func (p *Producer) countDrops() {
	drops, err := p.reader.Drops()
	if err != nil {
		p.throttle.Warn(p.log, "cannot read the socket's drop count", "error", err)
		return
	}
	grew := p.account.LostSocket.Swap(drops) != drops
	bad := p.reader.Undecodable()
	grew = p.account.Undecodable.Swap(bad) != bad || grew
	if grew {
		p.requestResync("events were lost")
	}
}

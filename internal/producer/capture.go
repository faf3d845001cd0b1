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

// busyLinger is how long a batch stays open at least while events keep coming. A
// round of nap, publish and acknowledgement costs as much as two hundred events
// do. What comes after a pause goes out at once.
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
		p.pulse.Beat()
		linger := lingerOf(time.Duration(p.linger.Load()), busy, p.ring.Behind())
		now := conntrack.Monotonic()
		if c.w.Len() == 0 {
			looked = now
		}
		n, err := receive(waitOf(linger, time.Duration(now-looked), busy, c.w.Len() > 0))
		if err != nil {
			c.flush() // what was read before is ours to deliver
			return err
		}
		if conntrack.Monotonic() >= looked+int64(linger) {
			c.flush()
			busy = n > 0
		}
	}
	// What the kernel has queued by now is still ours; what comes meanwhile is
	// no more, or a flood would keep us for ever.
	for left := p.reader.Room(); left > 0; {
		n, err := receive(0)
		if err != nil {
			c.flush()
			return err
		}
		if n == 0 {
			break
		}
		left -= n
	}
	c.flush()
	return c.failed
}

// lingerOf is how long a batch stays open, when so much was asked for: longer
// while events keep coming, and while the bus is behind.
func lingerOf(asked time.Duration, busy, behind bool) time.Duration {
	if busy {
		asked = max(asked, busyLinger)
	}
	if behind {
		asked = max(asked, behindLinger)
	}
	return asked
}

// waitOf is how long to wait for the kernel when the open batch, if there is
// one, has waited since. Under load the reader naps within that, and the nap is
// the linger: an event that came when it began has waited long enough when it
// ends. What comes after a pause goes out at once.
func waitOf(linger, since time.Duration, busy, open bool) time.Duration {
	switch {
	case open:
		return max(linger-since, 0)
	case busy:
		return linger
	}
	return idleWait
}

// capturer is the batch that is open.
type capturer struct {
	p      *Producer
	w      events.BatchWriter
	header events.Header
	failed error
	// wait: what is read can wait for room in the ring, until this ends. Nil: it
	// cannot, and the oldest goes.
	wait context.Context
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
	if c.wait != nil {
		if err := c.p.ring.Push(c.wait, data, n, 0); err != nil {
			c.p.account.LostRing.Add(uint64(n)) // told to stop
		}
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

package producer

import (
	"context"
	"errors"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// batchEvents closes a batch before its linger is over.
const batchEvents = 512

// finalRounds of 4,096 events are more than the largest buffer holds.
const finalRounds = 32

// idleWait is how long to wait for the kernel when no batch is open; it bounds
// how late a stop is noticed.
const idleWait = 100 * time.Millisecond

// capture moves events from the kernel into the ring until ctx ends.
func (p *Producer) capture(ctx context.Context) error {
	var (
		w      events.BatchWriter
		header = events.Header{Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot}
		looked int64 // when the socket was last seen empty: an open batch has waited since then at most
		failed error
	)
	flush := func() {
		if w.Len() == 0 {
			return
		}
		n := w.Len()
		data, err := w.Encode(&header)
		if err != nil {
			failed = err
			return
		}
		if dropped := p.ring.Put(data, n); dropped > 0 {
			p.account.LostRing.Add(uint64(dropped))
			p.requestResync("the ring was full")
		}
	}
	// The live set is locked once for all that one Receive delivers, from its
	// first event on: Receive may wait before it, and a dump must not wait for
	// that.
	locked := false
	add := func(e *events.Event) {
		if !locked {
			p.mu.Lock()
			locked = true
		}
		p.live.Apply(e)
		if p.epoch != header.Epoch {
			flush() // a batch belongs to one epoch
			header.Epoch = p.epoch
		}
		if err := w.Append(e); errors.Is(err, events.ErrBatchFull) {
			flush()
			err = w.Append(e)
			failed = errors.Join(failed, err)
		}
		if w.Len() >= batchEvents {
			flush()
		}
	}
	receive := func(wait time.Duration) error {
		n, err := p.reader.Receive(wait, add)
		if locked {
			p.mu.Unlock()
			locked = false
		}
		p.account.Read.Add(uint64(n))
		return err
	}
	for ctx.Err() == nil {
		// Under load the reader naps within wait, and the nap is the linger: an
		// event that came when it began has waited long enough when it ends.
		wait := idleWait
		if w.Len() > 0 {
			wait = time.Duration(max(looked+p.linger.Load()-conntrack.Monotonic(), 0))
		} else {
			looked = conntrack.Monotonic()
		}
		if err := receive(wait); err != nil && !errors.Is(err, conntrack.ErrClosed) {
			failed = errors.Join(failed, err)
		}
		if failed != nil {
			return failed
		}
		p.countDrops()
		if w.Len() > 0 && conntrack.Monotonic() >= looked+p.linger.Load() {
			flush()
		}
	}
	// What the kernel has queued by now is still ours; what comes meanwhile is
	// no more, or a flood would keep us for ever.
	for range finalRounds {
		before := p.account.Read.Load()
		failed = errors.Join(failed, receive(0))
		if p.account.Read.Load() == before {
			break
		}
	}
	p.countDrops()
	flush()
	return failed
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

package spool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// retryWait is the pause after the bus refused or went away.
const retryWait = 100 * time.Millisecond

// Pump sends what a ring holds to one subject.
type Pump struct {
	Ring     *Ring
	Account  *Account
	Bus      *bus.Publisher
	Firewall string
	Boot     events.Boot
	Now      func() int64 // the firewall's monotonic clock, ns
	Log      *slog.Logger
	// Counted: acknowledged events are counted in Account.Published and those
	// refused for good in LostBus (a snapshot is no event stream).
	Counted bool
	// Refused, when set, is told that a batch was refused for good.
	Refused func()

	seq        uint64 // the highest sent
	generation uint32 // of attempts: grows with every restart
	inFlight   int
	id         []byte // of a message, reused
	throttle   daemon.Throttle
}

// Run sends until ctx ends.
func (p *Pump) Run(ctx context.Context) error {
	overdue := time.NewTicker(bus.AckTimeout / 5)
	defer overdue.Stop()
	for {
		ok := p.fill()
		if ok {
			select {
			case <-ctx.Done():
				return nil
			case m := <-p.Bus.Acks():
				if r, answer := p.Bus.Result(m); answer {
					ok = p.handle(r)
				}
			case <-p.Ring.wake:
			case <-p.Bus.Away():
				ok = p.inFlight == 0
			case <-overdue.C:
				if ok = !p.Ring.overdue(bus.AckTimeout); !ok {
					p.throttle.Warn(p.Log, "no acknowledgement in time, sending again", "after", bus.AckTimeout)
				}
			}
		}
		if ok {
			continue
		}
		// The bus is away or refuses. What was sent and not acknowledged is
		// sent again.
		p.restart()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retryWait):
		}
	}
}

// fill sends until the ring is empty or enough is in flight. It reports false
// when the bus refuses.
func (p *Pump) fill() bool {
	for p.inFlight < bus.MaxInFlight && p.Ring.inFlight() < bus.MaxBytesInFlight {
		it, clean := p.Ring.take()
		if it == nil {
			return true
		}
		p.seq = max(p.seq, it.seq)
		events.Stamp{Sent: p.Now(), Clean: clean, Seq: it.seq, Total: it.total, Lost: p.Account.Lost()}.Apply(it.data)
		err := p.Bus.Publish(uint64(p.generation)<<32|it.seq&0xffffffff, p.messageID(it.seq), it.data)
		if errors.Is(err, bus.ErrPermanent) {
			p.refuse(it.seq, err)
			continue
		}
		if err != nil {
			p.throttle.Warn(p.Log, "cannot publish, events wait in the ring", "error", err)
			return false
		}
		it.sent = time.Now()
		p.inFlight++
	}
	return true
}

// messageID is <firewall>:<boot>:<seq>.
func (p *Pump) messageID(seq uint64) string {
	if p.id == nil {
		p.id = fmt.Appendf(nil, "%s:%s:", p.Firewall, p.Boot)
	}
	prefix := len(p.id)
	p.id = strconv.AppendUint(p.id, seq, 10)
	id := string(p.id)
	p.id = p.id[:prefix]
	return id
}

// handle takes the outcome of one attempt and reports false when the bus does
// not acknowledge.
func (p *Pump) handle(r bus.Result) bool {
	current := uint32(r.Token>>32) == p.generation
	if current {
		p.inFlight--
	}
	// The ring holds far fewer than 2^32 batches: the high bits are those of
	// the newest number, or one less.
	seq := p.seq&^0xffffffff | r.Token&0xffffffff
	if seq > p.seq {
		seq -= 1 << 32
	}
	switch {
	case r.Err == nil:
		n, _ := p.Ring.ack(seq) // 0 for one that was acknowledged before
		if p.Counted {
			p.Account.Published.Add(uint64(n))
		}
	case r.Permanent:
		p.refuse(seq, r.Err)
	case current:
		p.throttle.Warn(p.Log, "no acknowledgement, sending again", "error", r.Err)
		return false
	}
	return true
}

// refuse counts a batch as lost that the bus will never take.
func (p *Pump) refuse(seq uint64, err error) {
	n, here := p.Ring.ack(seq)
	if !here {
		return
	}
	if p.Counted {
		p.Account.LostBus.Add(uint64(n))
	}
	if p.Refused != nil {
		p.Refused()
	}
	p.throttle.Warn(p.Log, "the bus refused a batch for good", "events", n, "error", err)
}

// restart makes everything un-acknowledged due again. Results of attempts made
// before are of an older generation: a late acknowledgement still counts, a
// late error does not.
func (p *Pump) restart() {
	p.Ring.rewind()
	p.generation++
	p.inFlight = 0
}

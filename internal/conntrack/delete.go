//go:build linux

package conntrack

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Flush deletes the entries that m selects, while it scans for them. Nothing to
// delete is success. With an error the result says how far it came.
//
// One IPv4 address on one side is selected by the kernel and matched again
// here; anything else is matched here alone, in one scan of the table however
// many addresses there are. An entry goes only if it still has the id that was
// matched. That spares most of what took the tuple of a matched flow since, and
// not all: the kernel's id is a hash over the entry's slab address and its
// tuple, so a tuple that is opened again right after its end often gets the
// same id (183 of 199 times in a test), and is deleted too.
func (c *Conn) Flush(ctx context.Context, m Match, opt FlushOptions) (FlushResult, error) {
	start := time.Now()
	res := FlushResult{Refused: map[string]uint64{}}
	err := c.flush(ctx, &m, opt, &res)
	res.Duration = time.Since(start)
	if err != nil {
		return res, fmt.Errorf("flush: %w", err)
	}
	return res, nil
}

func (c *Conn) flush(ctx context.Context, m *Match, opt FlushOptions, res *FlushResult) error {
	if err := m.Validate(); err != nil {
		return err
	}
	contains := m.compile()
	c.batch.reset()
	claim := claimed{Claim: opt.Claim}
	one := func(e *events.Event) error {
		res.Matched++
		if opt.Keep != nil {
			if reason := opt.Keep(e); reason != "" {
				res.Refused[reason]++
				return nil
			}
		}
		if opt.DryRun {
			claim.look(e)
			return nil
		}
		switch {
		case claim.refused > 0:
			claim.refused++
			return nil
		case opt.spent(res): // need not wait in the batch to be refused
			res.Refused[RefusedBudget]++
			return nil
		}
		c.batch.add(e)
		switch holds := claim.meet(e); {
		case !holds && len(c.batch.ends) == MaxHeld:
			claim.refuse(&c.batch)
			return nil
		case !holds || len(c.batch.ends) < maxBatch:
			return nil
		}
		return c.delete(ctx, opt, res)
	}
	err := c.dump(ctx, func(rows []events.Event) error {
		for i := range rows {
			if !contains(&rows[i]) {
				continue
			}
			if err := one(&rows[i]); err != nil {
				return err
			}
		}
		return nil
	}, m.selection())
	if err != nil && !errors.Is(err, ErrIncomplete) {
		return err
	}
	res.Holds = claim.holds() && claim.refused == 0
	if !claim.holds() {
		claim.refuse(&c.batch)
		claim.refused += claim.waiting
	}
	if claim.refused > 0 {
		res.Refused[claim.reason()] += claim.refused
	}
	return errors.Join(err, c.delete(ctx, opt, res))
}

// spent reports whether no more may be deleted.
func (opt *FlushOptions) spent(res *FlushResult) bool {
	return opt.Most > 0 && res.Deleted >= opt.Most
}

// claimed is a claim while entries are met.
type claimed struct {
	Claim
	met, answered uint64
	refused       uint64 // entries that stay because it does not hold
	waiting       uint64 // of a dry run: entries that would be held back
}

// meet takes an entry that may go, and reports whether the claim holds.
func (c *claimed) meet(e *events.Event) bool {
	c.met++
	if e.Answered() {
		c.answered++
	}
	return c.holds()
}

// look is meet for a dry run, which holds nothing back: what would be refused is
// counted as if it were.
func (c *claimed) look(e *events.Event) {
	switch {
	case c.refused > 0:
		c.refused++
	case !c.meet(e):
		c.waiting++
		if c.waiting == MaxHeld {
			c.refused, c.waiting = c.waiting, 0
		}
	default:
		c.waiting = 0
	}
}

func (c *claimed) holds() bool {
	if c.Answered {
		return c.answered >= max(c.Least, 1)
	}
	return c.met >= c.Least
}

// refuse lets the entries stay that were held back.
func (c *claimed) refuse(held *batch) {
	c.refused += uint64(len(held.ends))
	held.reset()
}

func (c *claimed) reason() string {
	if c.Answered && c.answered == 0 && c.met >= c.Least {
		return RefusedUnanswered
	}
	return RefusedFew
}

// selection is the request for the smallest part of the table that the kernel
// can be trusted to select.
func (m *Match) selection() func(*message, uint32) {
	if addr, ok := m.single(); ok {
		return func(msg *message, seq uint32) { msg.dumpFiltered(seq, addr, m.By) }
	}
	if t := m.Towards; t.IsValid() { // both sides of an entry are of one family
		ipv6 := t.Addr().Is6()
		return func(msg *message, seq uint32) { msg.dump(seq, familyOf(ipv6)) }
	}
	family := m.Prefixes[0].Addr().BitLen()
	for _, p := range m.Prefixes {
		if p.Addr().BitLen() != family {
			return func(msg *message, seq uint32) { msg.dump(seq, unix.AF_UNSPEC) }
		}
	}
	ipv6 := m.Prefixes[0].Addr().Is6()
	return func(msg *message, seq uint32) { msg.dump(seq, familyOf(ipv6)) }
}

// batch is a run of DELETE messages that go out together.
type batch struct {
	message
	ends []int  // offset behind each message
	seq  uint32 // of the first message
	next uint32 // of the next one to be added
}

func (b *batch) reset() {
	b.buf, b.ends, b.seq = b.buf[:0], b.ends[:0], b.next
}

func (b *batch) add(e *events.Event) {
	b.message.delete(b.next, e)
	b.next++
	b.ends = append(b.ends, len(b.buf))
}

// delete carries out the batch, in as many parts as the listener's buffer has
// room for, and empties it. No part is larger than what is left of the budget,
// so that what turns out to be gone leaves its share to the next part.
func (c *Conn) delete(ctx context.Context, opt FlushOptions, res *FlushResult) error {
	b := &c.batch
	defer b.reset()
	from := 0
	for sent := 0; sent < len(b.ends); {
		want := min(len(b.ends)-sent, maxBatch)
		if opt.spent(res) {
			res.Refused[RefusedBudget] += uint64(len(b.ends) - sent)
			return nil
		}
		if opt.Most > 0 {
			want = int(min(uint64(want), opt.Most-res.Deleted))
		}
		n, err := pace(ctx, opt.Pressure, want)
		if err != nil {
			return err
		}
		to := b.ends[sent+n-1]
		if err := c.write.send(b.buf[from:to]); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		first := b.seq + uint32(sent)
		if err := c.write.acknowledged(first, n, res); err != nil {
			return fmt.Errorf("delete: %w", err)
		}
		sent, from = sent+n, to
	}
	return nil
}

// acknowledged counts the answers to n DELETE messages numbered from first. The
// kernel has carried out all of them by the time it answers the first.
func (ch *channel) acknowledged(first uint32, n int, res *FlushResult) error {
	return ch.answers(first, first+uint32(n)-1, func(msg []byte) (done bool, err error) {
		if kind := native.Uint16(msg[4:]); kind != unix.NLMSG_ERROR {
			return true, fmt.Errorf("unexpected answer of type %d", kind)
		}
		errno, err := status(msg)
		if err != nil {
			return true, err
		}
		switch errno {
		case 0:
			res.Deleted++
		case unix.ENOENT: // no such tuple, or one with another id
			res.Gone++
		case unix.EBUSY:
			res.Refused[RefusedOffloaded]++
		default:
			// EPERM, for one, comes once for the whole batch.
			return true, host.NeedsNetAdmin(errno)
		}
		n--
		return n == 0, nil
	})
}

const (
	// paceWait is how long to wait before looking at a full buffer again: much
	// less than the shortest nap in which a reader empties it would take.
	paceWait = 100 * time.Microsecond

	// A part of a batch is worth a system call when it is not much smaller
	// than what the buffer has room for at best.
	worthwhile = 4
)

// pace waits until the listener's buffer has room for the events of some of
// want deletes and returns of how many: at most as many as keep it under half
// full, which leaves the other half to the traffic's own events.
func pace(ctx context.Context, pressure func() (used, limit int, err error), want int) (int, error) {
	for {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		if pressure == nil {
			return want, nil
		}
		used, limit, err := pressure()
		if err != nil {
			return 0, fmt.Errorf("pace deletes: %w", err)
		}
		half := max(limit/2, eventCost) // a buffer for less than two events still takes one at a time
		room := (half - used) / eventCost
		if room >= min(want, max(half/eventCost/worthwhile, 1)) {
			return min(room, want), nil
		}
		timer := time.NewTimer(paceWait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return 0, fmt.Errorf("waiting for the event socket, %d of %d bytes full: %w", used, limit, context.Cause(ctx))
		case <-timer.C:
		}
	}
}

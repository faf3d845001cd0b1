//go:build linux

package conntrack

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ErrIncomplete is wrapped by the error of a dump that went through the whole
// table but did not deliver all of it: the kernel says that the table changed
// in a way it could not follow (NLM_F_DUMP_INTR), or entries could not be
// decoded. The others were delivered.
var ErrIncomplete = errors.New("incomplete")

// dumpRows is how many entries Dump hands over at a time: about what a datagram
// holds.
const dumpRows = 128

// Dump calls fn with all unexpired entries, as [events.Existing], some at a time
// while the kernel walks the table. The slice is reused, the entries' time is
// when they were read. An error of fn or the end of ctx stops it. An entry may
// come twice when the table changes meanwhile; one that is there from before the
// dump to after it always comes.
//
// The kernel skips expired entries and evicts them, which the event socket sees
// as DESTROY events.
func (c *Conn) Dump(ctx context.Context, fn func([]events.Event) error) error {
	err := c.dump(ctx, fn, func(m *message, seq uint32) { m.dump(seq, unix.AF_UNSPEC) })
	if err != nil {
		return fmt.Errorf("dump: %w", err)
	}
	return nil
}

// dump sends the request that build makes, and hands on the entries it returns.
// It waits nowhere: the kernel builds each part of a dump within the system
// call that fetches the part before, so ctx is looked at in between.
func (c *Conn) dump(ctx context.Context, fn func([]events.Event) error, build func(*message, uint32)) (err error) {
	ch, err := c.reader()
	if err != nil {
		return err
	}
	ch.seq++
	c.req.buf = c.req.buf[:0]
	build(&c.req, ch.seq)

	finished := false
	defer func() {
		// What is left of an abandoned dump would stand in the way of the next
		// one: the kernel refuses two at a time on one socket.
		if !finished {
			ch.close()
			c.read = nil
		}
	}()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := ch.send(c.req.buf); err != nil {
		return err
	}
	if c.rows == nil {
		c.rows = make([]events.Event, dumpRows)
	}
	var (
		n           int // rows to be handed on
		interrupted bool
		bad         int
		firstBad    error
	)
	deliver := func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		rows := c.rows[:n]
		n = 0
		if len(rows) == 0 {
			return nil
		}
		return fn(rows)
	}
	var now int64
	err = ch.answers(ch.seq, ch.seq, func(msg []byte) (done bool, err error) {
		interrupted = interrupted || native.Uint16(msg[6:])&unix.NLM_F_DUMP_INTR != 0
		switch native.Uint16(msg[4:]) {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			errno, err := status(msg)
			finished = err == nil
			if errno != 0 {
				err = host.NeedsNetAdmin(errno)
			}
			return true, errors.Join(err, deliver())
		case unix.NLMSG_OVERRUN:
			return true, unix.ENOBUFS
		}
		if n == 0 {
			now = Monotonic()
		}
		e := &c.rows[n]
		if err := Decode(msg, e); err != nil {
			if bad++; bad == 1 {
				firstBad = err
			}
			return false, nil
		}
		e.Time = now
		if n++; n < len(c.rows) {
			return false, nil
		}
		return false, deliver()
	})
	switch {
	case err != nil:
		return err
	case bad > 0:
		return fmt.Errorf("%w: %d entries could not be read, the first one: %w", ErrIncomplete, bad, firstBad)
	case interrupted:
		return fmt.Errorf("%w: the table changed beneath it", ErrIncomplete)
	}
	return nil
}

package producer

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// flushTime bounds what one command does to the table: a full dump of a million
// entries takes 2 s.
const flushTime = 30 * time.Second

// residualAfter is when we look again what a flush left or what came back.
const residualAfter = 2 * time.Second

// flush carries out a flush, if the guard allows it.
func (p *Producer) flush(req bus.Request, c *events.Command) (*events.Receipt, conntrack.Match) {
	r, verdict, m := p.judge(req, c)
	if r.Error != "" {
		return r, m
	}
	var claim conntrack.Claim
	claim.Least, claim.Answered = p.guard.Claim(verdict, c)
	p.onTable(r, func(ctx context.Context, conn *conntrack.Conn) error {
		res, err := p.scan(ctx, conn, r, m, conntrack.FlushOptions{
			DryRun: c.DryRun,
			Claim:  claim,
			Keep:   p.guard.Keep(verdict, c.By),
			Most:   c.Most,
		})
		if err == nil && !res.Holds && !c.DryRun {
			p.guard.GiveBack(verdict)
		}
		return err
	})
	return r, m
}

// onTable opens the table for fn, and notes in the receipt what it holds before and
// after, and what failed.
func (p *Producer) onTable(r *events.Receipt, fn func(context.Context, *conntrack.Conn) error) {
	ctx, cancel := context.WithTimeout(p.life, flushTime)
	defer cancel()
	conn, err := conntrack.Dial(p.ns)
	if err != nil {
		r.Error = err.Error()
		return
	}
	defer conn.Close()
	before, err := conn.State()
	if err != nil {
		r.Error = err.Error()
		return
	}
	r.TableBefore = before.Count
	err = fn(ctx, conn)
	if err != nil && p.life.Err() != nil {
		err = errStopping
	}
	if err != nil {
		r.Error = err.Error()
	}
	if after, err := conn.State(); err == nil {
		r.TableAfter = after.Count
	}
}

// scan flushes, or looks at what a flush would do, and writes what became of the
// entries into the receipt.
func (p *Producer) scan(ctx context.Context, conn *conntrack.Conn, r *events.Receipt, m conntrack.Match, opt conntrack.FlushOptions) (conntrack.FlushResult, error) {
	opt.Pressure = p.reader.Pressure // a flush must not lose its own DESTROY events
	res, err := conn.Flush(ctx, m, opt)
	r.Matched, r.Deleted, r.Gone, r.Refused = res.Matched, res.Deleted, res.Gone, []events.Refusal{}
	r.DurationMS += float64(res.Duration.Microseconds()) / 1000
	for reason, n := range res.Refused {
		r.Refused = append(r.Refused, events.Refusal{Reason: reason, Count: n})
	}
	slices.SortFunc(r.Refused, func(a, b events.Refusal) int { return cmp.Compare(b.Count, a.Count) })
	return res, err
}

// errStopping is why a command ends early, or is not begun.
var errStopping = errors.New("the producer is stopping")

// endActing waits for a command that is under way and ends it when its time is
// over: either way there is a receipt of what was done. None begins after it.
func (p *Producer) endActing(deadline time.Time) {
	defer time.AfterFunc(time.Until(deadline), p.end).Stop()
	p.acting.Lock()
	defer p.acting.Unlock()
	p.end()
}

// residual counts what matches again a moment later and records it under the
// same id: with tcp_loose=1 a routed TCP connection is back with its next packet.
func (p *Producer) residual(r events.Receipt, m conntrack.Match) {
	if !daemon.Sleep(p.life, residualAfter) {
		return
	}
	ctx, cancel := context.WithTimeout(p.life, flushTime)
	defer cancel()
	conn, err := conntrack.Dial(p.ns)
	if err != nil {
		p.log.Warn("cannot measure the residual", "id", r.ID, "error", err)
		return
	}
	defer conn.Close()
	res, err := conn.Flush(ctx, m, conntrack.FlushOptions{DryRun: true})
	if err != nil {
		p.log.Warn("cannot measure the residual", "id", r.ID, "error", err)
		return
	}
	r.Residual = &res.Matched
	r.Time = time.Now().UnixMilli()
	p.record(&r, events.VerbResidual)
}

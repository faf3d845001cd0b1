package producer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
)

// readXML publishes what conntrack -o xml printed: events as they come, each listing
// as one snapshot. It returns when the input has ended and the bus has all of it.
func (p *Producer) readXML(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	flows, failed := scan(ctx, p.input, 256, func() (func(*conntrack.XMLFlow) error, error) {
		return conntrack.NewXMLReader(p.input, func(line int, err error) {
			p.account.Undecodable.Add(1)
			p.throttle.Warn(p.log, "skipped what cannot be read", "line", line, "error", err)
		}).Next, nil
	})
	f := &xmlFeed{feed: p.newFeed(ctx)}
	return f.ended(ctx, f.run(ctx, flows), failed, f.end)
}

// xmlFeed is what readXML knows of its input.
type xmlFeed struct {
	feed
	documents int
	// Of the first event that says when it was: that, and when we read it.
	when time.Time
	mono int64
}

func (f *xmlFeed) run(ctx context.Context, flows <-chan conntrack.XMLFlow) error {
	due := time.NewTimer(0)
	defer due.Stop()
	open := false // a batch is, and due says until when
	for {
		if !open && f.w.Len() > 0 {
			due.Reset(time.Duration(f.p.linger.Load()))
		}
		open = f.w.Len() > 0
		select {
		case <-ctx.Done():
			f.flush()
			return f.failed
		case <-due.C:
			f.flush()
		case flow, ok := <-flows:
			if !ok {
				f.flush()
				return f.failed
			}
			if err := errors.Join(f.take(ctx, &flow), f.failed); err != nil {
				return err
			}
		}
	}
}

// take publishes a flow.
func (f *xmlFeed) take(ctx context.Context, flow *conntrack.XMLFlow) error {
	switch {
	case flow.End:
		f.documents++
		return f.complete(ctx)
	case flow.Listed:
		if f.listing == nil {
			f.begin()
		}
		flow.Time = conntrack.Monotonic()
		return f.row(ctx, &flow.Event)
	}
	if !f.pace(ctx, flow.When) {
		return nil
	}
	flow.Time = conntrack.Monotonic()
	f.happened(flow.Event)
	return nil
}

// pace waits until as much time has passed since the first event as there was when
// they happened: what took an hour is no attack because it is read in a second. It
// reports false when ctx ends before. What comes through a pipe is not held up: its
// clock has whole seconds.
func (f *xmlFeed) pace(ctx context.Context, when time.Time) bool {
	if !f.p.input.stored || when.IsZero() {
		return true
	}
	if f.when.IsZero() {
		f.when, f.mono = when, conntrack.Monotonic()
	}
	return f.until(ctx, f.mono+int64(when.Sub(f.when)))
}

// end judges how the input ended. Half a listing must not pass for a table, nor
// silence for an empty one.
func (f *xmlFeed) end() error {
	switch {
	case f.listing != nil:
		err := fmt.Errorf("the listing is cut off after %d flows: it is not used", f.listed)
		return errors.Join(err, f.giveUp(context.Background()))
	case f.documents+f.events+f.listed == 0:
		return errors.New("the input has no XML of conntrack in it; conntrack -L -o xml prints nothing where the table is empty, or where it failed")
	}
	return nil
}

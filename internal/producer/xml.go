package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// readXML publishes what conntrack -o xml printed: events as they come, each listing
// as one snapshot. It returns when the input has ended and the bus has all of it.
func (p *Producer) readXML(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { p.input.Close() })() // ends a read that waits, where that can be done
	flows := make(chan conntrack.XMLFlow, 256)
	failed := make(chan error, 1)
	go func() { // a read of standard input cannot be ended: this may outlive us
		failed <- p.scanXML(ctx, flows)
		close(flows)
	}()
	f := &xmlFeed{capturer: capturer{p: p, header: events.Header{Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot}}}
	if p.input.stored {
		f.wait = ctx
	}
	err := f.run(ctx, flows)
	if ctx.Err() != nil {
		return nil // told to stop: what was read is delivered as far as the bus takes it
	}
	if err == nil {
		err = <-failed
	}
	if err == nil {
		err = f.end()
	}
	p.log.Info("the input has ended", "events", f.events, "listed", f.listed, "skipped", p.account.Undecodable.Load())
	p.drained(ctx)
	return err
}

// scanXML reads the input into flows.
func (p *Producer) scanXML(ctx context.Context, flows chan<- conntrack.XMLFlow) error {
	x := conntrack.NewXMLReader(p.input, func(line int, err error) {
		p.account.Undecodable.Add(1)
		p.throttle.Warn(p.log, "skipped what cannot be read", "line", line, "error", err)
	})
	for {
		var f conntrack.XMLFlow
		switch err := x.Next(&f); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		select {
		case flows <- f:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// xmlFeed is what readXML knows of its input.
type xmlFeed struct {
	capturer

	events, listed int
	documents      int
	listing        *snapshotWriter // the one that is being read
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
		return f.endListing(ctx)
	case flow.Listed:
		return f.row(ctx, flow)
	}
	if !f.pace(ctx, flow.When) {
		return nil
	}
	flow.Time = conntrack.Monotonic()
	f.events++
	f.p.account.Read.Add(1)
	f.add([]events.Event{flow.Event})
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
	left := when.Sub(f.when) - time.Duration(conntrack.Monotonic()-f.mono)
	if left <= 0 {
		return true
	}
	f.flush() // nothing comes meanwhile
	return daemon.Sleep(ctx, left)
}

// row takes a flow of a listing into the snapshot, which the first one begins.
func (f *xmlFeed) row(ctx context.Context, flow *conntrack.XMLFlow) error {
	p := f.p
	if f.listing == nil {
		f.flush() // what came before belongs to the epoch before
		f.listing = p.beginSnapshot()
		f.listing.stall = 0
		p.resync.running.Store(true)
	}
	flow.Time = conntrack.Monotonic()
	p.mu.Lock()
	fresh := p.live.Existing(&flow.Event)
	p.mu.Unlock()
	f.listed++
	if !fresh {
		return nil
	}
	return f.listing.add(ctx, &flow.Event)
}

func (f *xmlFeed) endListing(ctx context.Context) error {
	if f.listing == nil {
		return nil
	}
	err := f.listing.end(ctx)
	f.listing = nil
	f.p.resync.running.Store(false)
	f.p.resync.done.Add(1)
	return err
}

// end judges how the input ended. Half a listing must not pass for a table, nor
// silence for an empty one.
func (f *xmlFeed) end() error {
	switch {
	case f.listing != nil:
		err := fmt.Errorf("the listing is cut off after %d flows: it is not used", f.listed)
		return errors.Join(err, f.listing.abort(context.Background()))
	case f.documents+f.events+f.listed == 0:
		return errors.New("the input has no XML of conntrack in it; conntrack -L -o xml prints nothing where the table is empty, or where it failed")
	}
	return nil
}

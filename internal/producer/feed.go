package producer

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// feed publishes what is read from a file, as capture and resync publish what the
// kernel says: events through the live set, and dumps as snapshots.
type feed struct {
	capturer
	events, listed int
	listing        *snapshotWriter // the dump that is being read
}

// scan reads an input in a goroutine of its own, which may outlive us: a read of
// standard input cannot be ended; others are, with ctx. open returns what reads the
// next value, and io.EOF behind the last. The values end when the input does, and
// what is wrong with it follows.
func scan[T any](ctx context.Context, in io.Closer, depth int, open func() (next func(*T) error, err error)) (<-chan T, <-chan error) {
	values, failed := make(chan T, depth), make(chan error, 1)
	context.AfterFunc(ctx, func() { in.Close() })
	read := func() error {
		next, err := open()
		for err == nil {
			var v T
			if err = next(&v); err != nil {
				break
			}
			select {
			case values <- v:
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
	go func() {
		failed <- read()
		close(values)
	}()
	return values, failed
}

func (p *Producer) newFeed(ctx context.Context) feed {
	f := feed{capturer: capturer{p: p, header: events.Header{Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot}}}
	if p.input.stored {
		f.wait = ctx
	}
	return f
}

// happened takes events, in their order.
func (f *feed) happened(evs ...events.Event) {
	f.events += len(evs)
	f.p.account.Read.Add(uint64(len(evs)))
	f.add(evs)
}

// begin begins a dump. One that was being read is given up by that.
func (f *feed) begin() {
	f.flush() // what came before belongs to the epoch before
	f.listing = f.p.beginSnapshot()
	f.listing.stall = 0
	f.p.resync.running.Store(true)
}

// row takes an entry of the dump.
func (f *feed) row(ctx context.Context, e *events.Event) error {
	f.p.mu.Lock()
	fresh := f.p.live.Existing(e)
	f.p.mu.Unlock()
	f.listed++
	if !fresh {
		return nil
	}
	return f.listing.add(ctx, e)
}

// complete ends the dump, if there is one: it is the table now.
func (f *feed) complete(ctx context.Context) error {
	if f.listing == nil {
		return nil
	}
	err := f.listing.end(ctx)
	f.listing = nil
	f.p.resync.running.Store(false)
	f.p.resync.done.Add(1)
	return err
}

// giveUp ends a dump that is not all there.
func (f *feed) giveUp(ctx context.Context) error {
	if f.listing == nil {
		return nil
	}
	err := f.listing.abort(ctx)
	f.listing = nil
	f.p.resync.running.Store(false)
	return err
}

// until waits for a time of our monotonic clock. It reports false when ctx ends
// before.
func (f *feed) until(ctx context.Context, mono int64) bool {
	left := time.Duration(mono - conntrack.Monotonic())
	if left <= 0 {
		return true
	}
	f.flush() // nothing comes meanwhile
	return daemon.Sleep(ctx, left)
}

// ended waits until the bus has all of it, and says how the input ended: what became
// of publishing and of reading, and in the end, if there is nothing else, what judge
// says.
func (f *feed) ended(ctx context.Context, published error, read <-chan error, judge func() error) error {
	if ctx.Err() != nil {
		return nil // told to stop: what was read is delivered as far as the bus takes it
	}
	err := published
	if err == nil {
		err = errors.Join(<-read, judge())
	}
	f.p.log.Info("the input has ended", "events", f.events, "listed", f.listed, "skipped", f.p.account.Undecodable.Load())
	f.p.drained(ctx)
	return err
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	resyncTable  = 1_000_000
	resyncRate   = 20_000. // new flows/s meanwhile
	resyncRounds = 3
)

// benchResync has the producer dump a table of a million entries while flows
// begin, and looks at what a subscriber sees.
func benchResync(ctx context.Context) (rows []figure, err error) {
	server, conn, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	restore, err := largeTable(2_000_000)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	var took, grown, age []float64
	var lost uint64
	err = watched(ctx, server.URL(), func(fw *lab.Firewall, r rival) error {
		before, err := r.mark()
		if err != nil {
			return err
		}
		if err := fill(ctx, fw, resyncTable); err != nil {
			return err
		}
		if before, err = settled(r, before, resyncTable); err != nil {
			return err
		}
		for i := range resyncRounds {
			w := watchStreams(ctx, conn)
			const flows = 6 * int(resyncRate)
			crowd := make(chan error, 1)
			go func() {
				f := udp(newcomers, flows, resyncRate)
				f.First = i * flows
				_, err := send(ctx, fw, f)
				crowd <- err
			}()
			time.Sleep(time.Second) // traffic flows evenly
			peak := watchMemory(ctx, r.pid())
			start := time.Now()
			err := resync(ctx, conn)
			if err == nil {
				err = w.ended(ctx)
			}
			took = append(took, time.Since(start).Seconds())
			grown = append(grown, peak())
			age = append(age, milliseconds(w.stop()))
			if err = errors.Join(err, <-crowd); err != nil {
				return err
			}
			time.Sleep(2 * time.Second) // the least time between two dumps
		}
		after, err := r.mark()
		lost = after.Lost - before.Lost
		return err
	})
	if err != nil {
		return nil, err
	}
	const most, room, late = 3, 64, 100
	return []figure{
		{what: fmt.Sprintf("resync of %d entries at %.0f new flows/s: from the command to its end at a subscriber", resyncTable, resyncRate), ours: spread(took, "s"), target: fmt.Sprintf("≤ %d s", most), met: median(took) <= most,
			why: "Generator, kernel's dump, producer, NATS server and subscriber share two cores."},
		{what: "the producer's memory at its most meanwhile, beyond what it was", ours: spread(grown, "MB"), target: fmt.Sprintf("≤ %d MB", room), met: median(grown) <= room,
			why: "A second set of live flows, the snapshot's ring, and what the Go runtime has not given back."},
		{what: "events meanwhile: the oldest that reached a subscriber", ours: spread(age, "ms"), target: fmt.Sprintf("≤ %d ms", late), met: median(age) <= late,
			why: "Generator, kernel's dump, producer, NATS server and subscriber share two cores."},
		{what: "events lost meanwhile", ours: fmt.Sprint(lost), target: "0", met: lost == 0, why: "The socket's buffer overflowed."},
	}, nil
}

// watcher is a subscriber of both streams.
type watcher struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	end    chan struct{} // of a snapshot

	mu     sync.Mutex
	looked int64         // when the producer last read events
	oldest time.Duration // that an event can have been when it arrived
}

func watchStreams(ctx context.Context, conn *bus.Conn) *watcher {
	w := &watcher{end: make(chan struct{}, 1)}
	ctx, w.cancel = context.WithCancel(ctx)
	for stream, take := range map[string]func(*events.Batch){bus.StreamEvents: w.event, bus.StreamSnapshots: w.snapshot} {
		var d events.Decoder
		w.done.Go(func() {
			_ = conn.Follow(ctx, stream, bus.FollowFrom{}, func(m bus.Msg) { // it ends with ctx only
				var b events.Batch
				if d.Decode(m.Data, &b) == nil {
					take(&b)
				}
			})
		})
	}
	return w
}

// event takes a batch. Whatever is in it came after the producer's last look at
// the socket before: that bounds its age, the wait for the producer included.
func (w *watcher) event(b *events.Batch) {
	now := conntrack.Monotonic() // one clock for all processes of this machine
	var e events.Event
	for r := b.Events(); r.Next(&e); {
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.looked > 0 {
		w.oldest = max(w.oldest, time.Duration(now-w.looked))
	}
	w.looked = e.Time
}

func (w *watcher) snapshot(b *events.Batch) {
	if b.Phase&events.SnapshotEnd != 0 {
		select {
		case w.end <- struct{}{}:
		default:
		}
	}
}

// ended waits for the end of a snapshot.
func (w *watcher) ended(ctx context.Context) error {
	select {
	case <-w.end:
		return nil
	case <-time.After(30 * time.Second):
		return errors.New("the snapshot did not end")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// stop returns the age of the oldest event.
func (w *watcher) stop() time.Duration {
	w.cancel()
	w.done.Wait()
	return w.oldest
}

// watchMemory looks at a process's resident memory until the function that it
// returns is called, which says by how many MB it grew at the most.
func watchMemory(ctx context.Context, pid int) (peak func() float64) {
	first := resident(pid, "VmRSS")
	most := first
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		for ctx.Err() == nil {
			most = max(most, resident(pid, "VmRSS"))
			time.Sleep(10 * time.Millisecond)
		}
	})
	return func() float64 {
		cancel()
		done.Wait()
		return float64(most-first) / 1e6
	}
}

package producer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// settle lets a burst of losses end before the dump that mends it.
	settle = 200 * time.Millisecond
	// resyncPause is the least time between two dumps.
	resyncPause = 2 * time.Second
	// driftPause is the least time between two dumps for drift alone.
	driftPause = 5 * time.Minute
	// snapshotStall is how long a dump waits for a bus that takes nothing.
	snapshotStall = 10 * time.Second
)

// resyncer collects the wishes for a dump.
type resyncer struct {
	mu      sync.Mutex
	reason  string
	wake    chan struct{}
	running atomic.Bool
	done    atomic.Uint64
}

func (r *resyncer) init() { r.wake = make(chan struct{}, 1) }

// requestResync asks for a dump; requests that come before it begins are one.
func (p *Producer) requestResync(reason string) {
	r := &p.resync
	r.mu.Lock()
	if r.reason == "" {
		r.reason = reason
	}
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (p *Producer) resyncLoop(ctx context.Context) error {
	r := &p.resync
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
		}
		r.mu.Lock()
		reason := r.reason
		r.mu.Unlock()
		if reason != "start" && !daemon.Sleep(ctx, settle) {
			return nil
		}
		if p.conn.WaitConnected(ctx) != nil {
			return nil
		}
		r.mu.Lock()
		reason, r.reason = r.reason, ""
		r.mu.Unlock()
		if reason == "" {
			continue
		}
		start := time.Now()
		rows, err := p.snapshot(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			p.log.Warn("the resync failed, trying again", "reason", reason, "error", err)
			p.requestResync(reason)
		default:
			p.log.Info("resynced", "reason", reason, "flows", rows, "took", time.Since(start).Round(time.Millisecond))
			r.done.Add(1)
			p.ready.Store(true)
		}
		if !daemon.Sleep(ctx, resyncPause) {
			return nil
		}
	}
}

// snapshot begins an epoch, dumps the table and sends each flow that no event
// has announced in it. It returns the number of flows sent.
func (p *Producer) snapshot(ctx context.Context) (rows int, err error) {
	p.resync.running.Store(true)
	defer p.resync.running.Store(false)
	conn, err := conntrack.Dial(p.ns)
	if err != nil {
		return 0, fmt.Errorf("dump: %w", err)
	}
	defer conn.Close()

	s := p.beginSnapshot()
	err = conn.Dump(ctx, func(some []events.Event) error {
		p.mu.Lock()
		some = p.live.ExistingAll(some)
		p.mu.Unlock()
		rows += len(some)
		for i := range some {
			if err := s.add(ctx, &some[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return rows, errors.Join(fmt.Errorf("dump: %w", err), s.abort(ctx))
	}
	return rows, s.end(ctx)
}

// beginSnapshot begins an epoch.
func (p *Producer) beginSnapshot() *snapshotWriter {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch++
	p.live.Begin()
	return &snapshotWriter{p: p, stall: snapshotStall, header: events.Header{
		Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot, Epoch: p.epoch, Phase: events.SnapshotPart | events.SnapshotBegin, After: p.ring.Last(),
	}}
}

// snapshotWriter batches a dump into the snapshot ring and waits for room
// there: a dump can wait, unlike events.
type snapshotWriter struct {
	p      *Producer
	w      events.BatchWriter
	header events.Header
	stall  time.Duration // how long to wait for the bus; 0: without end
}

// end makes the epoch the one that counts.
func (s *snapshotWriter) end(ctx context.Context) error {
	s.p.mu.Lock()
	s.p.live.End()
	s.p.mu.Unlock()
	s.header.Phase |= events.SnapshotEnd
	return s.send(ctx)
}

// abort tells consumers not to wait for the rest; if even that cannot be sent, the
// next epoch says so.
func (s *snapshotWriter) abort(ctx context.Context) error {
	s.header.Phase |= events.SnapshotAbort
	return s.send(ctx)
}

func (s *snapshotWriter) add(ctx context.Context, e *events.Event) error {
	err := s.w.Append(e)
	if errors.Is(err, events.ErrBatchFull) {
		if err = s.send(ctx); err == nil {
			err = s.w.Append(e)
		}
	}
	if err == nil && s.w.Len() >= batchEvents {
		err = s.send(ctx)
	}
	return err
}

func (s *snapshotWriter) send(ctx context.Context) error {
	if s.header.Phase&events.SnapshotBegin == 0 || s.header.Phase&events.SnapshotEnd != 0 {
		s.header.After = s.p.ring.Last() // the first one says what came before the epoch
	}
	n := s.w.Len()
	data, err := s.w.Encode(&s.header)
	if err != nil {
		return err
	}
	s.header.Phase &^= events.SnapshotBegin
	if err := s.p.snapRing.Push(ctx, data, n, s.stall); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// Mirror follows a bucket, and knows whether what it has heard is all there is. It
// begins anew after each break of the connection: somebody who was away does not
// know what he missed.
type Mirror struct {
	conn   *Conn
	bucket string
	to     Reflection
	again  chan struct{}

	// current is 0 while what we have heard may not be all, else the number of
	// reconnects at which it was, and 1.
	current atomic.Uint64

	mu    sync.Mutex
	why   error // of not being current
	clock Clock
}

// Reflection is what a mirror tells, by the goroutine of Run.
type Reflection struct {
	Begin func()    // all values are about to be told; may be nil
	Put   func(Msg) // a value, or the change of one
	Done  func()    // all have been told; may be nil
}

// NewMirror returns a mirror of a bucket.
func (c *Conn) NewMirror(bucket string, to Reflection) *Mirror {
	return &Mirror{conn: c, bucket: bucket, to: to, again: make(chan struct{}, 1), why: errors.New("not read yet")}
}

// Run follows until ctx ends.
func (m *Mirror) Run(ctx context.Context) error {
	var throttle daemon.Throttle
	for ctx.Err() == nil {
		err := m.read(ctx)
		m.current.Store(0)
		if ctx.Err() != nil || errors.Is(err, errAgain) || errors.Is(err, errReconnected) {
			continue
		}
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			err = errNoBucket(m.bucket)
		}
		m.mu.Lock()
		m.why = err
		m.mu.Unlock()
		if m.conn.NC.IsConnected() { // that it is not is said elsewhere
			throttle.Warn(m.conn.log, "cannot read a bucket, retrying", "bucket", m.bucket, "error", err)
		}
		daemon.Sleep(ctx, retryRead)
	}
	return nil
}

// errAgain ends a read because somebody wants to hear it all again.
var errAgain = errors.New("again")

// Again begins anew: who is trusted has changed, say.
func (m *Mirror) Again() {
	m.current.Store(0)
	select {
	case m.again <- struct{}{}:
	default:
	}
}

func (m *Mirror) read(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go m.watch(ctx, cancel)
	mark := m.conn.NC.Stats().Reconnects + 1
	stream := BucketStream(m.bucket)
	if err := m.readClock(ctx); err != nil {
		return err
	}
	if m.to.Begin != nil {
		m.to.Begin()
	}
	told := false
	done := func() {
		if !told && m.to.Done != nil {
			m.to.Done()
		}
		told = true
		m.current.Store(mark)
	}
	return m.conn.consume(ctx, stream, func(info *jetstream.StreamInfo) jetstream.ConsumerConfig {
		if info.State.Msgs == 0 {
			done()
		}
		return passing(BucketSubject(m.bucket, ">"), jetstream.DeliverLastPerSubjectPolicy)
	}, func(msg Msg) {
		m.to.Put(msg)
		if !told && msg.Pending == 0 {
			done()
		}
	})
}

// mirrorClockFor is how long a reading of the server's clock is used: what depends
// on it are ends that people gave in minutes and hours.
const mirrorClockFor = time.Minute

// watch ends a read when somebody wants to hear it all again, and reads the server's
// clock now and then.
func (m *Mirror) watch(ctx context.Context, end context.CancelCauseFunc) {
	tick := time.NewTicker(mirrorClockFor)
	defer tick.Stop()
	for {
		select {
		case <-m.again:
			end(errAgain)
			return
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := m.readClock(ctx); err != nil && m.conn.NC.IsConnected() {
				m.conn.log.Debug("read the server's clock", "bucket", m.bucket, "error", err)
			}
		}
	}
}

func (m *Mirror) readClock(ctx context.Context) error {
	clock, err := m.conn.BucketClock(ctx, m.bucket)
	if err != nil {
		return err
	}
	m.mu.Lock()
	m.clock = clock
	m.mu.Unlock()
	return nil
}

// Current returns nil when all that the bucket holds has been told, but for what
// is on its way; else why it may not.
func (m *Mirror) Current() error {
	if mark := m.current.Load(); mark != 0 && mark == m.conn.NC.Stats().Reconnects+1 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return fmt.Errorf("bucket %s: %w", m.bucket, m.why)
}

// Now is what the server's clock says, by which values expire; the zero time until
// it was read.
func (m *Mirror) Now() time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.clock == (Clock{}) {
		return time.Time{}
	}
	return m.clock.At(time.Now())
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Outbox publishes messages to streams, each until it is acknowledged, many at
// the same time: a stream that writes each to disk before it answers takes
// milliseconds, and whoever listens without the stream shall not wait for that.
//
// Messages about the same thing go one after the other, in the order in which
// they were put in, and hold up no others. Those may be stored in another order
// when some are sent again.
type Outbox struct {
	conn    *Conn
	log     *slog.Logger
	queue   chan letter
	refused func(subject string, err error)

	flying   []letter // sent and not acknowledged, oldest first
	waiting  []letter // taken from the queue, each for one about the same thing to be acknowledged
	token    uint64   // the last given
	throttle daemon.Throttle
}

// letter is one message on its way.
type letter struct {
	subject, id, about string
	data               []byte
	token              uint64
	sent               time.Time
}

// NewOutbox returns an outbox in which up to size messages may wait. refused is
// told of each that can never be published.
func (c *Conn) NewOutbox(size int, refused func(subject string, err error)) *Outbox {
	return &Outbox{conn: c, log: c.log, queue: make(chan letter, size), refused: refused}
}

// ErrFull is returned by Put when too many messages wait.
var ErrFull = errors.New("too many messages wait for the bus")

// Put takes a message. id is by what the stream drops repetitions, about names
// what it is about.
func (o *Outbox) Put(subject, id, about string, m events.Message) error {
	data, err := events.Marshal(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPermanent, err)
	}
	select {
	case o.queue <- letter{subject: subject, id: id, about: about, data: data}:
		return nil
	default:
		return ErrFull
	}
}

// retryPublish is the pause after the bus refused.
const retryPublish = 100 * time.Millisecond

// Run publishes until ctx ends.
func (o *Outbox) Run(ctx context.Context) error {
	pub, err := o.conn.NewPublisher("")
	if err != nil {
		return err
	}
	defer pub.Close()
	overdue := time.NewTicker(AckTimeout / 5)
	defer overdue.Stop()
	for ctx.Err() == nil {
		if err := o.sendWaiting(pub); err != nil {
			o.again(ctx, pub, err)
			continue
		}
		queue := o.queue
		if len(o.flying)+len(o.waiting) >= MaxInFlight {
			queue = nil
		}
		select {
		case <-ctx.Done():
		case l := <-queue:
			o.waiting = append(o.waiting, l)
		case m := <-pub.Acks():
			if r, ok := pub.Result(m); ok {
				o.answered(ctx, pub, r)
			}
		case <-pub.Away():
			o.again(ctx, pub, errors.New("the connection broke"))
		case <-overdue.C:
			if len(o.flying) > 0 && time.Since(o.flying[0].sent) > AckTimeout {
				o.again(ctx, pub, fmt.Errorf("no acknowledgement within %s", AckTimeout))
			}
		}
	}
	return nil
}

// sendWaiting sends what waits for nothing any more.
func (o *Outbox) sendWaiting(pub *Publisher) error {
	for i := 0; i < len(o.waiting); {
		l := o.waiting[i]
		same := func(other letter) bool { return other.about == l.about }
		if slices.ContainsFunc(o.flying, same) || slices.ContainsFunc(o.waiting[:i], same) {
			i++
			continue
		}
		o.waiting = slices.Delete(o.waiting, i, i+1)
		if err := o.send(pub, l); err != nil {
			return err
		}
	}
	return nil
}

// send sends one more, which is on its way from then on even if that failed.
func (o *Outbox) send(pub *Publisher, l letter) error {
	o.token++
	l.token, l.sent = o.token, time.Now()
	err := pub.publish(l.subject, l.token, l.id, l.data)
	if errors.Is(err, ErrPermanent) {
		o.refused(l.subject, err)
		return nil
	}
	o.flying = append(o.flying, l)
	return err
}

// answered takes the outcome of one.
func (o *Outbox) answered(ctx context.Context, pub *Publisher, r Result) {
	i := slices.IndexFunc(o.flying, func(l letter) bool { return l.token == r.Token })
	switch {
	case i < 0: // of an attempt that was given up
	case r.Err == nil:
		o.flying = slices.Delete(o.flying, i, i+1)
	case r.Permanent:
		o.refused(o.flying[i].subject, r.Err)
		o.flying = slices.Delete(o.flying, i, i+1)
	default:
		o.again(ctx, pub, r.Err)
	}
}

// again sends all that is on its way once more, after a pause and when the
// connection stands.
func (o *Outbox) again(ctx context.Context, pub *Publisher, why error) {
	for len(o.flying) > 0 {
		o.throttle.Warn(o.log, "cannot publish, retrying", "messages", len(o.flying), "error", why)
		select {
		case <-ctx.Done():
			return
		case <-time.After(retryPublish):
		}
		if o.conn.WaitConnected(ctx) != nil {
			return
		}
		flying := o.flying
		o.flying, why = make([]letter, 0, len(flying)), nil
		for i, l := range flying {
			if why = o.send(pub, l); why != nil {
				o.flying = append(o.flying, flying[i+1:]...)
				break
			}
		}
		if why == nil {
			return
		}
	}
}

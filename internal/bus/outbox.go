package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"

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
//
// Several processes may publish about the same things ([Outbox.PutUnless]): the stream
// then takes a message only from one who knows the last one about the same thing, so
// that of two who say the same at the same time one is refused, reads what the other has
// said, and may find that there is nothing to add. Who dies leaves no gap: there is no
// turn that somebody could have.
type Outbox struct {
	conn    *Conn
	log     *slog.Logger
	queue   chan letter
	refused func(subject string, err error)

	flying   []letter          // sent and not acknowledged, oldest first
	waiting  []letter          // taken from the queue, each for one about the same thing to be acknowledged
	refusals []letter          // somebody else was first: to be looked at again
	heads    map[string]uint64 // the last message about a thing, where that is ours
	stream   jetstream.Stream  // CT_ALERTS, once it was needed
	token    uint64            // the last given
	throttle daemon.Throttle
}

// maxHeads bounds what is remembered: what was forgotten is looked up again.
const maxHeads = 1 << 16

// letter is one message on its way.
type letter struct {
	subject, id, about string
	unless             func(last Msg) bool // nil: in any case
	looked             bool
	after              uint64 // looked: the last message about it, to which there is something to add
	data               []byte
	token              uint64
	sent               time.Time
}

// NewOutbox returns an outbox in which up to size messages may wait. refused is
// told of each that can never be published.
func (c *Conn) NewOutbox(size int, refused func(subject string, err error)) *Outbox {
	return &Outbox{conn: c, log: c.log, queue: make(chan letter, size), refused: refused, heads: map[string]uint64{}}
}

// ErrFull is returned by Put when too many messages wait.
var ErrFull = errors.New("too many messages wait for the bus")

// Put takes a message. id is by what the stream drops repetitions, about names
// what it is about.
func (o *Outbox) Put(subject, id, about string, m events.Message) error {
	return o.PutUnless(subject, id, about, m, nil)
}

// PutUnless is Put for what others may publish too, in the stream of alerts. about is a
// subject with wildcards, which covers all that is said about the same thing. When the
// stream has a last message about it that this outbox has not published, unless is asked
// whether that makes ours superfluous. It is asked by the goroutine of Run.
func (o *Outbox) PutUnless(subject, id, about string, m events.Message, unless func(last Msg) bool) error {
	data, err := events.Marshal(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPermanent, err)
	}
	select {
	case o.queue <- letter{subject: subject, id: id, about: about, data: data, unless: unless}:
		return nil
	default:
		return ErrFull
	}
}

const (
	// retryPublish is the pause after the bus refused.
	retryPublish = 100 * time.Millisecond
	// lookAgain is the pause before it is looked at what somebody else has published: it
	// may not be stored yet.
	lookAgain = 2 * time.Millisecond
)

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
		if len(o.flying)+len(o.waiting)+len(o.refusals) >= MaxInFlight {
			queue = nil
		}
		var look <-chan time.Time
		if len(o.refusals) > 0 {
			look = time.After(lookAgain)
		}
		select {
		case <-ctx.Done():
		case <-look:
			o.look(ctx, pub)
		case l := <-queue:
			o.waiting = append(o.waiting, l)
		case m := <-pub.Acks():
			if r, ok := pub.Result(m); ok {
				o.answered(ctx, pub, r, m.Data)
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
		if slices.ContainsFunc(o.flying, same) || slices.ContainsFunc(o.refusals, same) || slices.ContainsFunc(o.waiting[:i], same) {
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
	var err error
	if l.unless == nil {
		err = pub.publish(l.subject, l.token, l.id, l.data)
	} else {
		after := l.after
		if !l.looked {
			after = o.heads[l.about]
		}
		err = pub.publishAfter(l.about, after, l.subject, l.token, l.id, l.data)
	}
	if errors.Is(err, ErrPermanent) {
		o.refused(l.subject, err)
		return nil
	}
	o.flying = append(o.flying, l)
	return err
}

// answered takes the outcome of one.
func (o *Outbox) answered(ctx context.Context, pub *Publisher, r Result, answer []byte) {
	i := slices.IndexFunc(o.flying, func(l letter) bool { return l.token == r.Token })
	switch {
	case i < 0: // of an attempt that was given up
	case r.Err == nil:
		var a pubAck
		if l := o.flying[i]; l.unless != nil && json.Unmarshal(answer, &a) == nil {
			if len(o.heads) >= maxHeads {
				clear(o.heads)
			}
			o.heads[l.about] = a.Seq
		}
		o.flying = slices.Delete(o.flying, i, i+1)
	case o.flying[i].unless != nil && overtaken(r.Err):
		o.refusals = append(o.refusals, o.flying[i])
		o.flying = slices.Delete(o.flying, i, i+1)
	case r.Permanent:
		o.refused(o.flying[i].subject, r.Err)
		o.flying = slices.Delete(o.flying, i, i+1)
	default:
		o.again(ctx, pub, r.Err)
	}
}

// lookTime is how long it may take to look up what somebody else has published.
const lookTime = 2 * time.Second

// look reads the last message about what was refused, and sends ours again, which is
// known to come after that one, or leaves it.
func (o *Outbox) look(ctx context.Context, pub *Publisher) {
	for len(o.refusals) > 0 && ctx.Err() == nil {
		l := o.refusals[0]
		delete(o.heads, l.about) // what waits behind it has to look for itself
		last, err := o.last(ctx, l.about)
		if err != nil {
			o.throttle.Warn(o.log, "cannot publish, retrying", "messages", len(o.refusals), "error", err)
			daemon.Sleep(ctx, retryPublish)
			return
		}
		o.refusals = o.refusals[1:]
		if last.Seq > 0 && l.unless(last) {
			continue
		}
		l.looked, l.after = true, last.Seq
		if err := o.send(pub, l); err != nil {
			o.again(ctx, pub, err)
			return
		}
	}
}

// last is the last message about something; its Seq is 0 where there is none.
func (o *Outbox) last(ctx context.Context, about string) (Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	if o.stream == nil {
		var err error
		if o.stream, err = o.conn.stream(ctx, StreamAlerts); err != nil {
			return Msg{}, fmt.Errorf("stream %s: %w", StreamAlerts, err)
		}
	}
	m, err := o.stream.GetLastMsgForSubject(ctx, about)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Msg{}, nil
	}
	if err != nil {
		return Msg{}, fmt.Errorf("last message of %s: %w", about, err)
	}
	return kept(m), nil
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

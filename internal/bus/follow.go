package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// Msg is one message of a stream.
type Msg struct {
	Subject string
	Data    []byte
	Time    time.Time // the stream's: one clock for the whole fleet
	Seq     uint64    // in the stream
	Pending uint64    // messages that are behind it in the stream
}

// FollowFrom says where Follow begins.
type FollowFrom struct {
	Time   time.Time // messages stored since then; the zero time: only new ones
	All    bool      // everything that the stream keeps
	Filter string    // subject, with wildcards; "" = all of the stream
}

// Follow calls fn for each message of a stream, in order, until ctx ends. It
// survives reconnects, and a stream that is not there yet or was made anew; the
// same message may then come again, but none is left out. It returns nil when
// ctx ends.
func (c *Conn) Follow(ctx context.Context, stream string, from FollowFrom, fn func(Msg)) error {
	var last uint64
	var throttle daemon.Throttle
	start := time.Now()
	for ctx.Err() == nil {
		err := c.follow(ctx, stream, from, start, &last, fn)
		if ctx.Err() != nil {
			return nil
		}
		throttle.Warn(c.log, "cannot read a stream, retrying", "stream", stream, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
	return nil
}

func (c *Conn) follow(ctx context.Context, stream string, from FollowFrom, start time.Time, last *uint64, fn func(Msg)) error {
	s, err := c.JS.Stream(ctx, stream)
	if err != nil {
		return fmt.Errorf("stream %s: %w", stream, err)
	}
	cfg := jetstream.OrderedConsumerConfig{MaxResetAttempts: 10}
	if from.Filter != "" {
		cfg.FilterSubjects = []string{from.Filter}
	}
	switch {
	case *last > 0 && s.CachedInfo().State.LastSeq >= *last:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, *last+1
	case *last > 0 || from.All:
		cfg.DeliverPolicy = jetstream.DeliverAllPolicy // the stream was made anew
	case !from.Time.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &from.Time
	case time.Since(start) > time.Second:
		// Only new messages were asked for, and the stream came late.
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
	default:
		cfg.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	cons, err := s.OrderedConsumer(ctx, cfg)
	if err != nil {
		return fmt.Errorf("read stream %s: %w", stream, err)
	}
	it, err := cons.Messages(jetstream.PullMaxMessages(1024), jetstream.PullHeartbeat(2*time.Second), jetstream.PullExpiry(10*time.Second))
	if err != nil {
		return fmt.Errorf("read stream %s: %w", stream, err)
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		switch {
		case errors.Is(err, jetstream.ErrNoHeartbeat), errors.Is(err, nats.ErrTimeout):
			continue // the consumer recovers by itself
		case err != nil:
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("read stream %s: %w", stream, err)
		}
		*last = meta.Sequence.Stream
		fn(Msg{m.Subject(), m.Data(), meta.Timestamp, meta.Sequence.Stream, meta.NumPending})
	}
}

// Work calls fn for each message of a stream that the durable consumer of this
// name has not finished yet, one at a time, and acknowledges it when fn
// returned nil; otherwise it comes again after a pause. Several processes that
// use the same name share the work.
func (c *Conn) Work(ctx context.Context, stream, durable, filter string, fn func(context.Context, Msg) error) error {
	var throttle daemon.Throttle
	for ctx.Err() == nil {
		err := c.work(ctx, stream, durable, filter, fn)
		if ctx.Err() != nil {
			return nil
		}
		throttle.Warn(c.log, "cannot read a stream, retrying", "stream", stream, "consumer", durable, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(300 * time.Millisecond):
		}
	}
	return nil
}

func (c *Conn) work(ctx context.Context, stream, durable, filter string, fn func(context.Context, Msg) error) error {
	cons, err := c.JS.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy,
		// What happened before the first start is history, nothing to act upon.
		DeliverPolicy: jetstream.DeliverNewPolicy,
		AckWait:       30 * time.Second, MaxDeliver: 5, MaxAckPending: 64,
	})
	if err != nil {
		return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
	}
	it, err := cons.Messages(jetstream.PullMaxMessages(16), jetstream.PullHeartbeat(2*time.Second), jetstream.PullExpiry(10*time.Second))
	if err != nil {
		return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
	}
	defer it.Stop()
	for {
		m, err := it.Next(jetstream.NextContext(ctx))
		if errors.Is(err, jetstream.ErrNoHeartbeat) {
			continue
		}
		if err != nil {
			return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
		}
		if err := fn(ctx, Msg{m.Subject(), m.Data(), meta.Timestamp, meta.Sequence.Stream, meta.NumPending}); err != nil {
			err = m.NakWithDelay(time.Second)
			if err != nil {
				c.log.Debug("nak", "error", err)
			}
			continue
		}
		if err := m.Ack(); err != nil {
			c.log.Debug("ack", "error", err)
		}
	}
}

// Last returns the last message of each subject that matches filter.
func (c *Conn) Last(ctx context.Context, stream, filter string) ([]Msg, error) {
	s, err := c.JS.Stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	var out []Msg
	for subject := range info.State.Subjects {
		m, err := s.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stream, err)
		}
		out = append(out, Msg{Subject: m.Subject, Data: m.Data, Time: m.Time, Seq: m.Sequence})
	}
	return out, nil
}

// Subscribe calls fn for each message on subject, as it is published, until
// stop is called. Messages sent while the connection is away do not come.
func (c *Conn) Subscribe(subject string, fn func(subject string, data []byte)) (stop func(), err error) {
	sub, err := c.NC.Subscribe(subject, func(m *nats.Msg) { fn(m.Subject, m.Data) })
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	return func() {
		if err := sub.Unsubscribe(); err != nil {
			c.log.Debug("unsubscribe", "subject", subject, "error", err)
		}
	}, nil
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// State is how a stream stands.
type State struct {
	Messages uint64
	Bytes    uint64
	LastSeq  uint64    // of the newest message, also when it is no longer kept
	LastTime time.Time // the stream's
	Now      time.Time // the server's clock when it answered
}

// PurgeSubject erases what a stream keeps of a subject.
func (c *Conn) PurgeSubject(ctx context.Context, stream, subject string) error {
	s, err := c.stream(ctx, stream)
	if err == nil {
		err = s.Purge(ctx, jetstream.WithPurgeSubject(subject))
	}
	if err != nil {
		return fmt.Errorf("purge %s of stream %s: %w", subject, stream, err)
	}
	return nil
}

// State asks how a stream stands. Where it does not exist, the error says who
// creates it.
func (c *Conn) State(ctx context.Context, stream string) (State, error) {
	s, err := c.stream(ctx, stream)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return State{}, fmt.Errorf("stream %s is not there: ctfleet bootstrap creates it, as does an aggregator", stream)
	}
	if err != nil {
		return State{}, fmt.Errorf("stream %s: %w", stream, err)
	}
	info := s.CachedInfo()
	now := info.TimeStamp
	if now.IsZero() { // a server before 2.10 does not say
		now = time.Now()
	}
	return State{Messages: info.State.Msgs, Bytes: info.State.Bytes, LastSeq: info.State.LastSeq, LastTime: info.State.LastTime, Now: now}, nil
}

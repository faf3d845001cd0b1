package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// The key-value buckets.
const (
	BucketAllowlist = "CT_ALLOWLIST" // what must not be acted upon, by realm and prefix
	BucketApprovals = "CT_APPROVALS" // what waits for a person, and what the person said
	BucketGuard     = "CT_GUARD"     // what was done lately, and whether the circuit is open
)

// BucketStream is the stream that a bucket is.
func BucketStream(bucket string) string { return "KV_" + bucket }

// BucketSubject is where the value of a key is published: signatures are over it.
func BucketSubject(bucket, key string) string { return "$KV." + bucket + "." + key }

// BucketKey is the inverse of BucketSubject.
func BucketKey(bucket, subject string) string {
	return strings.TrimPrefix(subject, BucketSubject(bucket, ""))
}

// bucket is laid out as NATS lays out its own, so that `nats kv` reads it; but a
// value can be replaced only, not erased.
func bucket(name string) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name: BucketStream(name), Subjects: []string{BucketSubject(name, ">")},
		MaxMsgsPerSubject: 1, Discard: jetstream.DiscardNew, AllowDirect: true,
		DenyDelete: true, DenyPurge: true, MaxBytes: 64 << 20, Duplicates: dedupeWindow, MaxMsgSize: events.MaxMessageBytes,
	}
}

// ErrChanged is returned when a value is not what it was thought to be.
var ErrChanged = errors.New("it has been changed meanwhile")

// Put sets the value of a key, sealed by a signer.
func (c *Conn) Put(ctx context.Context, by *seal.Signer, bucket, key string, m events.Message) error {
	_, err := c.put(ctx, by, bucket, key, m)
	return err
}

// Update sets the value of a key whose revision is known, 0 where there is none
// yet, and returns the new one. Somebody else's change in between is ErrChanged.
func (c *Conn) Update(ctx context.Context, by *seal.Signer, bucket, key string, m events.Message, revision uint64) (uint64, error) {
	return c.put(ctx, by, bucket, key, m, jetstream.WithExpectLastSequencePerSubject(revision))
}

// apiWrongLastSequence is JetStream's error for an expectation that does not hold.
const apiWrongLastSequence = 10071

func (c *Conn) put(ctx context.Context, by *seal.Signer, bucket, key string, m events.Message, opts ...jetstream.PublishOpt) (revision uint64, err error) {
	ctx, done := c.denials.asking(ctx, BucketSubject(bucket, key))
	defer done(&err)
	msg, err := sealed(by, BucketSubject(bucket, key), m)
	if err != nil {
		return 0, err
	}
	ack, err := c.JS.PublishMsg(ctx, msg, opts...)
	var api *jetstream.APIError
	switch {
	case errors.As(err, &api) && api.ErrorCode == apiWrongLastSequence:
		return 0, ErrChanged
	case errors.Is(err, jetstream.ErrNoStreamResponse):
		return 0, errNoBucket(bucket)
	case err != nil:
		return 0, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	return ack.Sequence, nil
}

func errNoBucket(bucket string) error {
	return fmt.Errorf("bucket %s is not there: ctfleet bootstrap creates it, as does an aggregator", bucket)
}

// Get decodes the value of a key into m and returns its revision, 0 where there is
// none.
func (c *Conn) Get(ctx context.Context, bucket, key string, m events.Message) (revision uint64, err error) {
	msg, err := c.Value(ctx, bucket, key)
	if err != nil || msg.Seq == 0 {
		return 0, err
	}
	return msg.Seq, events.Unmarshal(msg.Data, m)
}

// Value returns the value of a key as it is kept: its Seq is the revision, 0 where
// there is none.
func (c *Conn) Value(ctx context.Context, bucket, key string) (Msg, error) {
	s, err := c.stream(ctx, BucketStream(bucket))
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return Msg{}, errNoBucket(bucket)
	}
	if err != nil {
		return Msg{}, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	// Not from a replica that may be behind: what is decided upon must be the last.
	last, err := s.GetLastMsgForSubject(ctx, BucketSubject(bucket, key))
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Msg{}, nil
	}
	if err != nil {
		return Msg{}, fmt.Errorf("bucket %s: %w", bucket, err)
	}
	return kept(last), nil
}

// Entries returns the value of each key of a bucket.
func (c *Conn) Entries(ctx context.Context, bucket string) ([]Msg, error) {
	var out []Msg
	err := c.Read(ctx, BucketStream(bucket), FollowFrom{All: true}, func(m Msg) { out = append(out, m) })
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		err = errNoBucket(bucket)
	}
	return out, err
}

// BucketClock asks the server what its clock says, by a bucket.
func (c *Conn) BucketClock(ctx context.Context, bucket string) (Clock, error) {
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	return c.Clock(ctx, BucketStream(bucket))
}

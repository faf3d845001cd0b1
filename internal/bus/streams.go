package bus

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// The streams.
const (
	StreamEvents    = "CT_EVENTS"
	StreamSnapshots = "CT_SNAPSHOTS"
	StreamLast      = "CT_LAST"
	StreamAlerts    = "CT_ALERTS"
	StreamAudit     = "CT_AUDIT"
)

// dedupeWindow is how long the server remembers a message id. It is a first
// filter only: an id that comes back later is caught by the consumer.
const dedupeWindow = 10 * time.Second

// Limits bound what the streams keep.
type Limits struct {
	EventsAge   time.Duration // at least 15 min
	EventsBytes int64         // for the whole fleet
	Memory      bool          // keep events and snapshots in memory instead of files
	// Replicas is on how many servers of a cluster each stream and bucket is kept: 1, 3 or
	// 5. With 3, one server may be away. 0: those that are there stay as they are, and what
	// is created has 1.
	Replicas int
}

// DefaultLimits suit one server with a few GB of disk.
var DefaultLimits = Limits{EventsAge: 15 * time.Minute, EventsBytes: 2 << 30}

// StreamConfigs returns what the bus keeps. Events and snapshots opt out of
// synchronous writes: what a crash takes from them shows as a gap and a resync
// mends it, whereas alerts and audit must survive.
//
// Of replicated streams the server refuses that, and what they acknowledge is on more
// than half of the servers. Buckets are read through the leader then, never from a
// replica that may be behind.
func StreamConfigs(l Limits) []jetstream.StreamConfig {
	replicas := max(l.Replicas, 1)
	atEase := func(c *jetstream.StreamConfig) { // nothing waits for the disk
		switch {
		case l.Memory:
			c.Storage = jetstream.MemoryStorage
		case replicas == 1:
			c.PersistMode = jetstream.AsyncPersistMode
		}
	}
	bulk := func(name, subject string) jetstream.StreamConfig {
		c := jetstream.StreamConfig{
			Name: name, Subjects: []string{subject + ".*"},
			MaxAge: l.EventsAge, MaxBytes: l.EventsBytes,
			// A bound by number only, which is all that JetStream has per
			// subject: a firewall with many small batches pushes out its own,
			// one with many full ones can still take bytes from the others.
			MaxMsgsPerSubject: 200_000,
			Duplicates:        dedupeWindow,
			MaxMsgSize:        events.MaxBatchBytes + 4096,
		}
		atEase(&c)
		return c
	}
	// In a file, though it is worth nothing after a few seconds: in memory the stream itself would
	// be gone when the server has been restarted, and only bootstrap may create it.
	last := jetstream.StreamConfig{
		Name: StreamLast, Subjects: []string{events.SubjectHealth + ".*", events.SubjectPace},
		MaxMsgsPerSubject: 1, MaxMsgSize: events.MaxMessageBytes, MaxBytes: 64 << 20,
	}
	if atEase(&last); replicas > 1 {
		last.Storage = jetstream.MemoryStorage // of three servers two go on, and would wait for the disk with each report
	}
	approvals := bucket(BucketApprovals)
	approvals.MaxAge = 7 * 24 * time.Hour // what was proposed is in the audit
	all := []jetstream.StreamConfig{
		bulk(StreamEvents, events.SubjectEvents),
		bulk(StreamSnapshots, events.SubjectSnapshots),
		last,
		{
			Name: StreamAlerts, Subjects: []string{events.SubjectAlerts + ".>"},
			MaxAge: 30 * 24 * time.Hour, MaxBytes: 256 << 20, Duplicates: dedupeWindow, MaxMsgSize: events.MaxMessageBytes,
		},
		{
			Name: StreamAudit, Subjects: []string{events.SubjectAudit + ".>"},
			DenyDelete: true, DenyPurge: true, Duplicates: 2 * time.Minute, MaxMsgSize: events.MaxMessageBytes,
		},
		bucket(BucketAllowlist),
		approvals,
		bucket(BucketGuard),
	}
	for i := range all {
		all[i].Replicas = replicas
		all[i].AllowDirect = all[i].AllowDirect && replicas == 1
	}
	return all
}

// Unfit returns the streams that cannot be brought to l as they are: a server does not
// replicate a stream that was made to be written without waiting for the disk, nor
// change that. They have to be deleted first, with what they keep.
func (c *Conn) Unfit(ctx context.Context, l Limits) (names []string, err error) {
	for _, want := range StreamConfigs(l) {
		s, err := c.stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", want.Name, err)
		}
		if want.Replicas > 1 && s.CachedInfo().Config.PersistMode == jetstream.AsyncPersistMode {
			names = append(names, want.Name)
		}
	}
	return names, nil
}

// DeleteStream deletes a stream with all that it keeps.
func (c *Conn) DeleteStream(ctx context.Context, name string) error {
	ctx, done := c.denials.asking(ctx, "$JS.API.STREAM.DELETE."+name)
	err := c.JS.DeleteStream(ctx, name)
	if done(&err); err != nil {
		return fmt.Errorf("delete stream %s: %w", name, err)
	}
	return nil
}

// StreamNames are the names of all that the bus keeps, those of buckets too.
func StreamNames() []string {
	var names []string
	for _, s := range StreamConfigs(DefaultLimits) {
		names = append(names, s.Name)
	}
	return names
}

// Bootstrap creates the streams that do not exist and, with update, brings
// existing ones to their configuration. It returns the names created or
// changed. It is safe to run at any time, by several at once.
func (c *Conn) Bootstrap(ctx context.Context, l Limits, update bool) ([]string, error) {
	var made []string
	for _, want := range StreamConfigs(l) {
		s, err := c.stream(ctx, want.Name)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			if err = c.create(ctx, want); err == nil {
				made = append(made, want.Name)
			} else if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
				err = nil // somebody else was first
			}
		case err == nil && update:
			before := s.CachedInfo().Config
			if l.Replicas == 0 {
				want.Replicas, want.AllowDirect = before.Replicas, before.AllowDirect
			}
			want.Storage = before.Storage // cannot be changed
			if want.Storage == jetstream.MemoryStorage {
				want.PersistMode = jetstream.DefaultPersistMode
			} else {
				want.PersistMode = before.PersistMode
			}
			if s, err = c.update(ctx, want); err == nil && !reflect.DeepEqual(before, s.CachedInfo().Config) {
				made = append(made, want.Name)
			}
		}
		if err != nil {
			return made, fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	return made, nil
}

func (c *Conn) create(ctx context.Context, s jetstream.StreamConfig) (err error) {
	ctx, done := c.denials.asking(ctx, "$JS.API.STREAM.CREATE."+s.Name)
	defer done(&err)
	_, err = c.JS.CreateStream(ctx, s)
	return err
}

func (c *Conn) update(ctx context.Context, s jetstream.StreamConfig) (updated jetstream.Stream, err error) {
	ctx, done := c.denials.asking(ctx, "$JS.API.STREAM.UPDATE."+s.Name)
	defer done(&err)
	return c.JS.UpdateStream(ctx, s)
}

// Missing returns the names of the streams that do not exist.
func (c *Conn) Missing(ctx context.Context) ([]string, error) {
	var missing []string
	for _, want := range StreamConfigs(DefaultLimits) {
		_, err := c.stream(ctx, want.Name)
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			missing = append(missing, want.Name)
		} else if err != nil {
			return nil, fmt.Errorf("stream %s: %w", want.Name, err)
		}
	}
	return missing, nil
}

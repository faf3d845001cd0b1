package bus

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/pkg/events"
)

var allStreams = []string{StreamEvents, StreamSnapshots, StreamLast, StreamAlerts, StreamAudit, BucketStream(BucketAllowlist), BucketStream(BucketApprovals), BucketStream(BucketGuard)}

func TestBootstrap(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	c := connect(t, Config{Server: s})
	limits := DefaultLimits
	f := func(what string, update bool, want ...string) {
		t.Helper()
		made, err := c.Bootstrap(t.Context(), limits, update)
		if err != nil || !slices.Equal(made, want) {
			t.Errorf("%s: made %v, %v; want %v", what, made, err, want)
		}
	}
	if missing, err := c.Missing(t.Context()); err != nil || !slices.Equal(missing, allStreams) {
		t.Errorf("at first %v are missing, %v", missing, err)
	}
	f("at first", false, allStreams...)
	f("again", false)
	f("again, updating", true)
	limits.EventsAge = time.Hour
	f("with another age, not updating", false)
	f("with another age", true, StreamEvents, StreamSnapshots)
	f("again with it", true)
	limits.Memory = true // the storage of a stream cannot be changed
	f("with another storage", true)
	if missing, err := c.Missing(t.Context()); err != nil || len(missing) != 0 {
		t.Errorf("in the end %v are missing, %v", missing, err)
	}
	st, err := c.JS.Stream(t.Context(), StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if cfg := st.CachedInfo().Config; cfg.MaxAge != time.Hour || cfg.Storage != jetstream.FileStorage || cfg.PersistMode != jetstream.AsyncPersistMode {
		t.Errorf("%s: %+v", StreamEvents, cfg)
	}
}

func TestBootstrapBySeveralAtOnce(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	const n = 4
	var wg sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		c := connect(t, Config{Server: s})
		limits := DefaultLimits
		limits.EventsAge += time.Duration(i%2) * time.Minute // they need not agree
		wg.Go(func() { _, errs[i] = c.Bootstrap(t.Context(), limits, false) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if missing, err := connect(t, Config{Server: s}).Missing(t.Context()); err != nil || len(missing) != 0 {
		t.Errorf("%v are missing, %v", missing, err)
	}
}

// TestAuditCannotBeErased: not by whoever may talk to JetStream.
func TestAuditCannotBeErased(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	store(t, c, events.AuditSubject("fw-a", "flush"), "receipt")
	st, err := c.JS.Stream(t.Context(), StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	if err := st.Purge(t.Context()); err == nil {
		t.Error("the audit stream was purged")
	}
	if err := st.DeleteMsg(t.Context(), 1); err == nil {
		t.Error("a message of the audit stream was deleted")
	}
}

// TestPublisher tells what became of each attempt.
func TestPublisher(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	f := func(subject, id string, size int, permanent bool, want string) {
		t.Helper()
		p, err := c.NewPublisher(subject)
		if err != nil {
			t.Fatal(err)
		}
		err = p.Publish(77, id, bytes.Repeat([]byte{'x'}, size))
		if err != nil {
			t.Fatalf("%s: %v", subject, err)
		}
		defer p.Close()
		select {
		case m := <-p.Acks():
			r, ok := p.Result(m)
			if !ok {
				t.Fatalf("%s: %q is no answer", subject, m.Subject)
			}
			said := ""
			if r.Err != nil {
				said = r.Err.Error()
			}
			if r.Token != 77 || r.Permanent != permanent || (r.Err == nil) != (want == "") || !strings.Contains(said, want) {
				t.Errorf("%s, %d bytes: %+v, want %q, permanent %t", subject, size, r, want, permanent)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: no result", subject)
		}
	}
	subject := events.EventsSubject("fw-a")
	f(subject, "fw-a:1", 10, false, "")
	f(subject, "fw-a:1", 10, false, "") // a repetition is acknowledged as well, and kept once
	f(subject, "fw-a:2", events.MaxBatchBytes+5000, true, "maximum")
	f("ct.v2.nothing", "x", 10, false, "no response from stream")
	st, err := c.JS.Stream(t.Context(), StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	if n := st.CachedInfo().State.Msgs; n != 1 {
		t.Errorf("the stream holds %d messages, want 1", n)
	}
}

// TestPublishMessage keeps one of two equal messages, and says where one could
// not be kept.
func TestPublishMessage(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	for range 2 {
		if err := c.PublishMessage(t.Context(), events.AlertSubject(events.Firing, "r", "fleet", "table"), "one", &events.Pace{}); err != nil {
			t.Fatal(err)
		}
	}
	if last, err := c.Last(t.Context(), StreamAlerts, ">"); err != nil || len(last) != 1 || last[0].Seq != 1 {
		t.Errorf("two with one id: %+v, %v", last, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if err := c.PublishMessage(ctx, "ct.v2.nothing", "", &events.Pace{}); err == nil || !strings.Contains(err.Error(), "ct.v2.nothing") {
		t.Errorf("a subject that no stream keeps: %v", err)
	}
}

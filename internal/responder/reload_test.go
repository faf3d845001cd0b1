package responder

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestReload: a policy that is read again holds for the next alert; a bad one changes
// nothing; and both the change and its digests are in the audit.
func TestReload(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.join(&firewall{name: "fw-b"})
	file := enforce(func(f *policy.File) { f.Mode, f.Digest = policy.Observe, "000000000001" })
	next, fails := file, error(nil)
	resp, err := New(file, Dependencies{
		Bus: bus.Config{Server: r.server}, Trust: r.trust, Log: slog.New(slog.DiscardHandler),
		Policy: func() (policy.File, error) { return next, fails },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := resp.Run(ctx); err != nil {
			t.Errorf("responder: %v", err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
	r.until("it is ready", func() bool { return resp.Ready() == nil })
	reload := func() error {
		apply, err := resp.Reload()
		if err == nil {
			apply(ctx)
		}
		return err
	}
	r.fire(alert("a1", "198.18.0.1", nil))
	if d := r.decisions(1)[0]; d.Outcome != events.OutcomeSimulated {
		t.Fatalf("while it observes: %+v", d)
	}

	next.Mode, next.Digest = policy.Enforce, "000000000002"
	fails = errors.New("policy.yaml:1:7: no such mode")
	if err := reload(); err == nil || !strings.Contains(err.Error(), "policy.yaml:1:7") {
		t.Errorf("a bad file: %v", err)
	}
	fails = nil
	next.MaxAge = -1
	if err := reload(); err == nil {
		t.Error("a policy that is none was taken")
	}
	r.fire(alert("a2", "198.18.0.2", nil))
	if d := r.decisions(2)[1]; d.Outcome != events.OutcomeSimulated {
		t.Errorf("after bad files: %+v", d)
	}

	next.MaxAge = file.MaxAge
	if err := reload(); err != nil {
		t.Fatal(err)
	}
	r.fire(alert("a3", "198.18.0.3", nil))
	if d := r.decisions(3)[2]; d.Outcome != events.OutcomeCommanded || d.Mode != policy.Enforce {
		t.Errorf("after the change: %+v", d)
	}
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	if err := reload(); err != nil { // the same again
		t.Fatal(err)
	}

	var acts []audit.Entry
	r.until("the change in the audit", func() bool {
		acts = nil
		err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{All: true, Filter: events.AuditSubject(events.ActorResponder, events.VerbReload)}, func(m bus.Msg) {
			if e, err := audit.Read(&m, nil); err != nil {
				t.Errorf("%s: %v", m.Subject, err)
			} else {
				acts = append(acts, e)
			}
		})
		return err == nil && len(acts) > 0
	})
	if a := acts[0].Act; len(acts) != 1 || a.Before != file.Digest || a.After != next.Digest || !strings.Contains(a.What, "mode enforce") || !strings.Contains(a.What, "mode observe") {
		t.Errorf("audit: %+v", acts)
	}
	if err := resp.Alive(); err != nil {
		t.Error(err)
	}
}

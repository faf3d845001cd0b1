package responder

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/notify"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// pager is who is told of alerts by a webhook.
type pager struct {
	*httptest.Server
	mu   sync.Mutex
	last []string // ids, in the latest message
	all  map[string]bool
}

func newPager(t *testing.T) *pager {
	p := &pager{all: map[string]bool{}}
	p.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		var m struct{ Alerts []events.Alert }
		if err := json.NewDecoder(req.Body).Decode(&m); err != nil {
			t.Error(err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.last = nil
		for _, a := range m.Alerts {
			p.last = append(p.last, a.ID)
			p.all[a.ID] = true
		}
	}))
	t.Cleanup(p.Close)
	return p
}

func (p *pager) told(id string) bool { p.mu.Lock(); defer p.mu.Unlock(); return p.all[id] }

func (p *pager) repeats(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.last, id)
}

// notifier tells the pager, and again ten times a second.
func (p *pager) notifier(t *testing.T) *notify.Notifier {
	t.Helper()
	n, err := notify.New(notify.Config{Webhook: p.URL, Every: 100 * time.Millisecond, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mute says as an operator that a firewall is muted, for a while from a time on; 0: no more.
func (r *rig) mute(key *seal.Signer, firewall string, at time.Time, life time.Duration) {
	r.t.Helper()
	m := &events.Mute{Firewall: firewall, Reason: "new disk", Time: at.UnixMilli()}
	if life > 0 {
		m.Until = at.Add(life).UnixMilli()
	}
	if err := r.conn.Put(r.t.Context(), key, bus.BucketGuard, events.MuteKey(firewall), m); err != nil {
		r.t.Fatal(err)
	}
}

func on(firewall string) func(*events.Alert) {
	return func(a *events.Alert) { a.Scope, a.Firewalls = firewall, map[string]float64{firewall: 200} }
}

// TestMute: nobody is told of a muted firewall's alerts, also after a restart, until the
// mute is over or taken back; what is done about them is not changed by it.
func TestMute(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	alice, _ := r.signs()
	r.join(&firewall{name: "fw-a"})
	said := r.acts(events.VerbMute)
	p := newPager(t)
	file := enforce(func(f *policy.File) { f.CoolDown = 0 })
	stop := r.runWith(file, p.notifier(t))
	r.working()

	begin := time.Now()
	r.mute(alice, "fw-a", begin, time.Hour)
	r.until("its confirmation", func() bool { return len(said()) == 1 })
	if a := said()[0]; a.Who != "alice" || a.Time != begin.UnixMilli() || a.Reason != "new disk" {
		t.Errorf("%+v", a)
	}
	r.fire(alert("muted", "198.18.0.1", on("fw-a")))
	r.fire(alert("fleet", "198.18.0.2", nil))
	r.fire(alert("other", "198.18.0.3", on("fw-b")))
	r.until("the others", func() bool { return p.repeats("fleet") && p.repeats("other") })
	r.until("the deed", func() bool { return len(r.commands("fw-a")) > 0 && r.commands("fw-a")[0].Alert == "muted" })
	stop()
	p.mu.Lock()
	p.last = nil
	p.mu.Unlock()
	r.runWith(file, p.notifier(t))
	r.until("the others, after a restart", func() bool { return p.repeats("fleet") && p.repeats("other") })
	if p.told("muted") {
		t.Error("somebody was told of a muted firewall's alert")
	}
	r.mute(alice, "fw-a", begin.Add(time.Millisecond), 0)
	r.until("it to be told", func() bool { return p.repeats("muted") })

	// Its time is over by itself.
	at := time.Now()
	r.mute(alice, "fw-a", at, 2*time.Second)
	r.until("silence", func() bool { return !p.repeats("muted") })
	r.until("it to be told again", func() bool { return p.repeats("muted") })
	if over := time.Since(at); over < 1900*time.Millisecond {
		t.Errorf("told after %s", over)
	}
	kept := 0
	if err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{All: true, Filter: events.AuditSubject(events.ActorResponder, events.VerbMute)}, func(bus.Msg) { kept++ }); err != nil || kept != 3 {
		t.Errorf("%d confirmations are kept: %+v, %v", kept, said(), err)
	}
}

// TestForgedMute: only who is trusted for it mutes, the firewall that he signed for, and
// what he said last holds.
func TestForgedMute(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	alice, bob := r.signs()
	stranger, _, err := seal.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	p := newPager(t)
	r.runWith(enforce(nil), p.notifier(t))
	r.working()
	r.fire(alert("a", "198.18.0.1", on("fw-a")))
	r.until("the alert", func() bool { return p.repeats("a") })
	begin := time.Now()
	ignored := func(what string) {
		t.Helper()
		r.mute(alice, "fw-b", time.Now(), time.Hour) // is taken after it
		r.fire(alert(what, "198.18.0.9", func(a *events.Alert) { on("fw-c")(a); a.Started++ }))
		r.until("the next alert", func() bool { return p.told(what) })
		time.Sleep(300 * time.Millisecond)
		if !p.repeats("a") {
			t.Errorf("muted by %s", what)
		}
	}
	r.mute(nil, "fw-a", begin, time.Hour)
	ignored("nobody")
	r.mute(stranger, "fw-a", begin, time.Hour)
	ignored("a stranger")
	r.mute(bob, "fw-a", begin, time.Hour)
	ignored("somebody who may only flush")
	if err := r.conn.Put(t.Context(), alice, bus.BucketGuard, events.MuteKey("fw-a"), &events.Mute{Firewall: "fw-d", Until: begin.Add(time.Hour).UnixMilli(), Time: begin.UnixMilli()}); err != nil {
		t.Fatal(err)
	}
	ignored("an order about another")
	r.mute(alice, "fw-a", begin.Add(24*time.Hour), 30*24*time.Hour)
	ignored("an order of tomorrow")

	r.mute(alice, "fw-a", begin, time.Hour)
	r.until("silence", func() bool { return !p.repeats("a") })
	r.mute(alice, "fw-a", begin.Add(time.Second), 0)
	r.until("the alert again", func() bool { return p.repeats("a") })
	r.mute(alice, "fw-a", begin, time.Hour) // it is published again
	ignored("an order of before")
}

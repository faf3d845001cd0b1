package responder

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// idle returns a responder that does not run, for a server whose clock is ahead
// of ours by the given time.
func (r *rig) idle(now time.Time, ahead time.Duration) *Responder {
	r.t.Helper()
	resp, err := New(enforce(nil), Dependencies{Bus: bus.Config{Server: r.server}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(resp.conn.Close)
	resp.clock = bus.Clock{Server: now.Add(ahead).Round(0), Ours: now}
	return resp
}

// reading lets a responder that does not run read the live allowlist.
func (r *rig) reading(resp *Responder) {
	r.t.Helper()
	r.bootstrap()
	ctx, cancel := context.WithCancel(context.Background())
	var mirror sync.WaitGroup
	mirror.Go(func() {
		if err := resp.allow.Run(ctx); err != nil {
			r.t.Error(err)
		}
	})
	r.t.Cleanup(func() { cancel(); mirror.Wait() })
	r.until("the allowlist", func() bool { return resp.allow.Current() == nil })
}

func message(t *testing.T, subject string, stamp time.Time, m events.Message) bus.Msg {
	t.Helper()
	data, err := events.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return bus.Msg{Subject: subject, Data: data, Time: stamp.Round(0)}
}

// TestClocksDiffer: what the server stamped is as old as the server's clock
// says, however far it is from ours.
func TestClocksDiffer(t *testing.T) {
	for _, ahead := range []time.Duration{-time.Minute, 0, time.Minute} {
		t.Run(ahead.String(), func(t *testing.T) {
			r := newRig(t)
			now := time.Now()
			ago := func(age time.Duration) time.Time { return now.Add(ahead - age) } // by the server's clock
			health := func(boot string, stamp time.Time) bus.Msg {
				return message(t, events.HealthSubject("fw-a"), stamp, &events.Health{Firewall: "fw-a", Realm: events.RealmDefault, Boot: boot, Sent: int64(5 * time.Hour)})
			}
			only := func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }
			decide := func(resp *Responder, key string, age time.Duration, outcome, reason string) policy.Decision {
				t.Helper()
				ds := resp.propose(alert("a-"+key, key, only), ago(age))
				if err := resp.settle(t.Context(), ds); err != nil {
					t.Fatal(err)
				}
				d := ds[0]
				if d.Outcome != outcome || !strings.Contains(d.Reason, reason) {
					t.Errorf("an alert %s old: %s because %q, want %s because %q", age, d.Outcome, d.Reason, outcome, reason)
				}
				return d
			}

			resp := r.idle(now, ahead)
			r.reading(resp)
			resp.recallHealth(health("old", ago(freshFor)), now)
			decide(resp, "198.18.0.1", 0, events.OutcomeDeclined, "reached")

			resp.recallHealth(health("recalled", ago(2*time.Second)), now)
			d := decide(resp, "198.18.0.1", time.Second, events.OutcomeCommanded, "")
			commands := resp.commands(describe(alert("a1", "198.18.0.1", only), &d))
			if len(commands) != 1 {
				t.Fatalf("%d commands, want one", len(commands))
			}
			c := commands[0]
			// The firewall's clock went on since it sent its report.
			life := time.Duration(c.Expires) - 5*time.Hour - 2*time.Second
			if c.Boot != "recalled" || life < commandLife || life > commandLife+time.Since(now)+time.Millisecond {
				t.Errorf("a command to boot %s, to live for %s", c.Boot, life)
			}
			decide(resp, "198.18.0.2", 29*time.Second, events.OutcomeCommanded, "")
			decide(resp, "198.18.0.3", 31*time.Second, events.OutcomeDeclined, "the alert is 31s old")

			// The cool-down is a minute.
			acted := func(key string, age time.Duration) {
				err := resp.changeLedger(t.Context(), func(l *events.Ledger) bool {
					l.Acts = append(l.Acts, events.Acted{Realm: events.RealmDefault, Address: key, Alert: "another", At: ago(age).UnixMilli(), Until: ago(age - time.Minute).UnixMilli()})
					return true
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			acted("198.18.0.4", 50*time.Second)
			decide(resp, "198.18.0.4", 0, events.OutcomeDeclined, "left alone for another 10s")
			acted("198.18.0.5", time.Minute)
			decide(resp, "198.18.0.5", 0, events.OutcomeCommanded, "")

			// What we hear ourselves wins, whatever the stamp of what is recalled.
			boot := func(want string) {
				t.Helper()
				if s := resp.fleet["fw-a"]; s.health.Boot != want || !s.fresh() || s.at.After(time.Now()) {
					t.Errorf("boot %s as of %s, want %s", s.health.Boot, time.Since(s.at), want)
				}
			}
			resp.recallHealth(health("ahead", ago(-time.Second)), now) // the reading of the clock is not exact
			boot("ahead")
			m := health("live", time.Time{})
			resp.sight(m.Subject, m.Data)
			boot("live")
			resp.recallHealth(health("recalled", ago(-time.Hour)), time.Now())
			boot("live")
			m = health("next", time.Time{})
			resp.sight(m.Subject, m.Data)
			boot("next")
		})
	}
}

// TestReadClock: the server of a test has our clock.
func TestReadClock(t *testing.T) {
	r := newRig(t)
	resp := r.idle(time.Now(), time.Hour)
	if err := resp.readClock(t.Context()); err == nil || !strings.Contains(err.Error(), "server's clock") {
		t.Errorf("without streams: %v", err)
	}
	r.bootstrap()
	off := func() time.Duration { now := time.Now(); return resp.clock.At(now).Sub(now.Round(0)).Abs() }
	resp.refreshClock(t.Context())
	if off() < 59*time.Minute {
		t.Errorf("a reading of a moment ago was replaced; off by %s", off())
	}
	resp.clock.Ours = resp.clock.Ours.Add(-bus.ClockFor)
	resp.refreshClock(t.Context())
	if off() > 5*time.Second {
		t.Errorf("the clock of the same machine is off by %s", off())
	}
}

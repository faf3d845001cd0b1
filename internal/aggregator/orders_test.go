package aggregator

import (
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestForget: a firewall that was dismissed is gone, with its alarm and its last report,
// also after a restart; one that sends, or has sent since, is not.
func TestForget(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	agg, _, stop := a.aggregator("")
	boot := strings.Repeat("ab", 16)
	report := func(name string, sent int64) {
		a.send(events.HealthSubject(name), &events.Health{Firewall: name, Realm: "default", Boot: boot, Version: "t", Config: "t", Sent: sent})
	}
	known := func() string {
		var names []string
		for _, f := range agg.Firewalls().Firewalls {
			names = append(names, f.Firewall)
		}
		return strings.Join(names, " ")
	}
	dismiss := func(key, name string, sent int64) {
		t.Helper()
		d := &events.Dismissal{Firewall: name, Boot: boot, Sent: sent, Time: time.Now().UnixMilli()}
		if err := a.conn.Put(t.Context(), nil, bus.BucketGuard, events.DismissKey(key), d); err != nil {
			t.Fatal(err)
		}
	}
	silence := func(names ...string) {
		agg.mu.Lock()
		defer agg.mu.Unlock()
		for _, name := range names {
			agg.fleet[name].seen = time.Now().Add(-2 * silentAfter)
		}
	}
	silent := func() (n int) {
		alerts, err := agg.Alerts(t.Context(), &events.AlertsQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, al := range alerts.Alerts {
			if al.Rule == "firewall-silent" {
				n++
			}
		}
		return n
	}
	for _, name := range []string{"fw-gone", "fw-back", "fw-live", "fw-other"} {
		report(name, 100)
	}
	a.flows("fw-gone", "198.18.0.7", 5)
	a.until("all", func() bool { return known() == "fw-back fw-gone fw-live fw-other" })
	silence("fw-gone", "fw-back", "fw-other")
	a.until("their alarms", func() bool { return silent() == 3 })

	dismiss("fw-gone", "fw-gone", 100)
	dismiss("fw-back", "fw-back", 99)    // it has sent since
	dismiss("fw-live", "fw-live", 1<<62) // it sends, and whatever it will have sent last, this is not it
	dismiss("fw-other", "fw-gone", 100)  // what a key says is not what the value says
	a.until("it to be gone", func() bool { return known() == "fw-back fw-live fw-other" && silent() == 2 })
	a.until("its last report to be gone", func() bool {
		last, err := a.conn.Last(t.Context(), bus.StreamLast, events.HealthSubject("*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(last) == 3
	})
	time.Sleep(1100 * time.Millisecond) // the next look at the fleet
	silence("fw-live")
	a.until("the alarm of who was dismissed before it was silent", func() bool { return silent() == 3 })
	if got := known(); got != "fw-back fw-live fw-other" {
		t.Errorf("known: %s", got)
	}

	// Also where its report was not taken out of the stream.
	stop()
	report("fw-gone", 100)
	agg, _, _ = a.aggregator("")
	a.until("the fleet", func() bool { return known() == "fw-back fw-gone fw-live fw-other" })
	silence("fw-gone")
	a.until("it to be gone again", func() bool { return known() == "fw-back fw-live fw-other" })
	report("fw-gone", 101)
	a.until("it to be back", func() bool { return known() == "fw-back fw-gone fw-live fw-other" })
}

// TestLeaveOut: a replay of what a firewall that was dismissed had sent does not make it
// one of which something is not known.
func TestLeaveOut(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	a.flows("fw-gone", "198.18.0.7", 5)
	a.flows("fw-live", "198.18.0.8", 5)
	a.send(events.HealthSubject("fw-live"), &events.Health{Firewall: "fw-live", Realm: "default", Boot: strings.Repeat("0", 32), Version: "t", Config: "t"})
	if err := a.conn.Put(t.Context(), nil, bus.BucketGuard, events.DismissKey("fw-gone"), &events.Dismissal{Firewall: "fw-gone", Time: 1}); err != nil {
		t.Fatal(err)
	}
	agg, _, _ := a.aggregator("")
	a.until("it to be left out", func() bool {
		top, err := agg.Top(&events.TopQuery{Metric: events.MetricActive})
		return err == nil && len(top.Unknown) == 1 && top.Unknown[0] == "fw-live"
	})
}

// TestMuted: who is muted is shown until it is over.
func TestMuted(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	agg, _, _ := a.aggregator("")
	a.send(events.HealthSubject("fw-a"), &events.Health{Firewall: "fw-a", Realm: "default", Boot: strings.Repeat("0", 32), Version: "t", Config: "t",
		Table: events.TableHealth{Count: 96, Limit: 100, Percent: 96}})
	a.until("its alarm", func() bool {
		alerts, err := agg.Alerts(t.Context(), &events.AlertsQuery{})
		return err == nil && len(alerts.Alerts) > 0 && !alerts.Alerts[0].Muted
	})
	now := time.Now().UnixMilli()
	put := func(until int64) {
		t.Helper()
		if err := a.conn.Put(t.Context(), nil, bus.BucketGuard, events.MuteKey("fw-a"), &events.Mute{Firewall: "fw-a", Until: until, Time: now}); err != nil {
			t.Fatal(err)
		}
	}
	shown := func(until int64) func() bool {
		return func() bool {
			alerts, err := agg.Alerts(t.Context(), &events.AlertsQuery{})
			return err == nil && len(alerts.Alerts) > 0 && alerts.Alerts[0].Muted == (until > 0) && agg.Firewalls().Firewalls[0].MutedUntil == until
		}
	}
	put(now + 3_600_000)
	a.until("it to be muted", shown(now+3_600_000))
	put(0)
	a.until("its end", shown(0))
	put(now + 2000)
	a.until("it to be muted again", shown(now+2000))
	a.until("its time to be over", shown(0))
}

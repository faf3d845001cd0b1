package responder

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestEnforce(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.join(&firewall{name: "fw-b"})
	r.join(&firewall{name: "fw-c"})                     // the alert does not name it
	r.join(&firewall{name: "fw-x", realm: "elsewhere"}) // another realm
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", nil))
	r.until("both commands", func() bool { return len(r.commands("fw-a")) == 1 && len(r.commands("fw-b")) == 1 })
	d := r.decisions(1)[0]
	c := r.commands("fw-a")[0]
	if d.Outcome != events.OutcomeCommanded || d.Alert != "a1" || d.Key != "198.18.0.1" || d.Mode != policy.Enforce || d.Simulated ||
		!slices.Equal(d.Firewalls, []string{"fw-a", "fw-b"}) || len(d.Commands) != 2 || d.Commands[0] != c.ID {
		t.Errorf("decision: %+v", d)
	}
	if c.Actor != events.ActorResponder || c.Alert != "a1" || c.Rule != "flood" || c.By != events.BySrc || !c.Unanswered || !slices.Equal(c.Addresses, []string{"198.18.0.1"}) || !strings.Contains(c.Reason, "opened 200 flows") {
		t.Errorf("command: %+v", c)
	}
	if r.commands("fw-b")[0].ID == c.ID {
		t.Error("the commands of two firewalls have one id")
	}
	r.settled("end")
	if n := len(r.commands("fw-c")) + len(r.commands("fw-x")); n != 0 {
		t.Errorf("%d commands went to firewalls that the alert does not concern", n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.seen[0] != "decision commanded" {
		t.Errorf("what happened: %v; want the record before the deed", r.seen)
	}
}

func TestObserve(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) { f.Mode = policy.Observe }))
	r.working()
	r.fire(alert("a1", "198.18.0.1", nil))
	d := r.decisions(1)[0]
	if d.Outcome != events.OutcomeSimulated || !d.Simulated || !slices.Equal(d.Firewalls, []string{"fw-a"}) || len(d.Commands) != 0 || !strings.Contains(d.Reason, "cannot be reached: fw-b") {
		t.Errorf("decision: %+v", d)
	}
	r.settled("end")
	if n := len(r.commands("fw-a")); n != 0 {
		t.Errorf("%d commands were sent while observing", n)
	}
}

// TestDeclined goes through what is not acted upon, and what is not even
// recorded.
func TestDeclined(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) {
		f.Allowlist = []netip.Prefix{netip.MustParsePrefix("198.18.5.0/24")}
		f.Policies[0].Unanswered = policy.UnansweredRefuse
	}))
	r.working()
	only := func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }
	f := func(reason string, a *events.Alert) {
		t.Helper()
		r.fire(a)
		r.settled(fmt.Sprint("after-", a.ID, time.Now().UnixNano()))
		r.mu.Lock()
		defer r.mu.Unlock()
		if reason == "" {
			if len(r.decs) != 0 {
				t.Errorf("%s: nothing should have been recorded: %+v", a.ID, r.decs)
			}
		} else if len(r.decs) != 1 || r.decs[0].Outcome != events.OutcomeDeclined || !strings.Contains(r.decs[0].Reason, reason) {
			t.Errorf("%s: %+v, want %q", a.ID, r.decs, reason)
		}
		r.decs = nil
	}
	f("allowlist", alert("a1", "198.18.5.1", only))
	f("", alert("a1", "198.18.5.1", only)) // an update of the same alert gets the same answer
	f("victim", alert("a2", "198.18.0.2", func(a *events.Alert) { a.Track = "by_dst" }))
	f("under the threshold", alert("a3", "198.18.0.3", func(a *events.Alert) { only(a); a.Value = 50 }))
	f("", alert("a4", "198.18.0.4", func(a *events.Alert) { only(a); a.Rule = "other" }))
	f("", alert("a5", "198.18.0.5", func(a *events.Alert) { only(a); a.State = events.Resolved }))
	f("reached", alert("a6", "198.18.0.6", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-b": 1} }))
	if n := len(r.commands("fw-a")); n != 0 {
		t.Errorf("%d commands were sent", n)
	}
}

// TestForged: permissions are granted by subject, so a body that says something
// else than its subject is refused.
func TestForged(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(nil))
	r.working()
	subject := func(rule, scope, key string) string { return events.AlertSubject(events.Firing, rule, scope, key) }
	only := func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }
	for i, f := range []struct {
		subject string
		change  func(*events.Alert)
	}{
		{subject("other", "fleet", "198-18-0-1"), nil},
		{subject("flood", "fleet", "198-18-0-2"), nil},
		{subject("flood", "fw-a", "198-18-0-1"), nil},
		{subject("flood", "fleet", "198-18-0-1_24"), nil},
		{subject("flood", "fleet", "198-18-0-1"), func(a *events.Alert) { a.State = events.Resolved }},
		{subject("flood", "fleet", "198-18-0-1"), func(a *events.Alert) { a.Realm = "elsewhere" }},
		{subject("flood", "realm_elsewhere", "198-18-0-1"), func(a *events.Alert) { a.Scope = "realm_elsewhere" }},
		{subject("flood", "fw-b", "198-18-0-1"), func(a *events.Alert) { a.Scope = "fw-b" }},
	} {
		a := alert("forged", "198.18.0.1", only)
		if f.change != nil {
			f.change(a)
		}
		r.publish(f.subject, a)
		r.settled("after-" + string(rune('a'+i)))
		if n := len(r.commands("fw-a")); n != 0 || len(r.decisions(0)) != 0 {
			t.Fatalf("%s with %+v: %d commands", f.subject, a, n)
		}
	}
	if _, err := r.conn.JS.Publish(t.Context(), subject("flood", "fleet", "198-18-0-1"), []byte("\xff no msgpack")); err != nil {
		t.Fatal(err)
	}
	r.publish(subject("flood", "fleet", "198-18-0-1"), alert("true", "198.18.0.1", only))
	r.until("the true one", func() bool { return len(r.commands("fw-a")) == 1 })
	// One firewall's own alert, well formed.
	r.publish(subject("flood", "fw-a", "198-18-0-9"), alert("own", "198.18.0.9", func(a *events.Alert) { only(a); a.Scope = "fw-a" }))
	r.until("that of one firewall", func() bool { return len(r.commands("fw-a")) == 2 })
}

// TestForgedHealth: a firewall speaks for itself only.
func TestForgedHealth(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	a := r.join(&firewall{name: "fw-a"})
	r.run(enforce(nil))
	r.working()
	forged := a.health
	forged.Boot, forged.Sent = "another", 1
	if err := r.conn.PublishMessage(t.Context(), events.HealthSubject("fw-b"), "", &forged); err != nil {
		t.Fatal(err)
	}
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 }) // join checks its boot
}

func TestCoolDown(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) { f.CoolDown = time.Second }))
	r.working()
	only := func(updated int64) func(*events.Alert) {
		return func(a *events.Alert) { a.Firewalls, a.Updated = map[string]float64{"fw-a": 200}, updated }
	}
	begun := time.Now()
	r.fire(alert("a1", "198.18.0.1", only(1)))
	r.fire(alert("a1", "198.18.0.1", only(2)))
	r.fire(alert("a2", "198.18.0.2", only(1)))
	r.settled("middle")
	r.until("two commands", func() bool { return len(r.commands("fw-a")) >= 2 })
	if n := len(r.commands("fw-a")); n != 2 && time.Since(begun) < time.Second {
		t.Errorf("%d commands, want one for each address", n)
	}
	// Still firing when the cool-down is over: another command, not a repetition.
	time.Sleep(time.Until(begun.Add(1200 * time.Millisecond)))
	r.fire(alert("a1", "198.18.0.1", only(3)))
	r.until("the third command", func() bool { return len(r.commands("fw-a")) == 3 })
	c := r.commands("fw-a")
	if c[0].ID == c[2].ID {
		t.Error("the second command for an alert has the id of the first: a guard would refuse it as a repetition")
	}
}

// TestTwoResponders share the alerts, and the cool-downs.
func TestTwoResponders(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	for range 2 {
		r.run(enforce(nil))
	}
	r.working()
	time.Sleep(100 * time.Millisecond) // until both fetch
	const n = 12
	for i := range n {
		key := netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String()
		r.fire(alert("a"+key, key, func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	}
	r.until("all commands", func() bool { return len(r.commands("fw-a")) == n })
	r.decisions(n)
	// Updates may reach the other one.
	for i := range n {
		key := netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String()
		r.fire(alert("a"+key, key, func(a *events.Alert) { a.Firewalls, a.Updated = map[string]float64{"fw-a": 400}, 2000 }))
	}
	r.settled("end")
	time.Sleep(50 * time.Millisecond)
	if got := len(r.commands("fw-a")); got != n {
		t.Errorf("%d commands for %d alerts", got, n)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.decs {
		if d.Outcome != events.OutcomeCommanded && !strings.Contains(d.Reason, "acted upon") {
			t.Errorf("decision: %+v", d)
		}
	}
}

// TestRestart: neither does a responder act twice, nor does it forget what came
// while it was away, though it knows nothing of the firewalls at first.
func TestRestart(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	only := func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }
	stop := r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", only))
	r.until("the first command", func() bool { return len(r.commands("fw-a")) == 1 })
	stop()
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { only(a); a.Updated = 2000 })) // still firing
	r.fire(alert("a2", "198.18.0.2", only))
	r.run(enforce(nil))
	r.until("the second command", func() bool { return len(r.commands("fw-a")) == 2 })
	r.settled("end")
	if c := r.commands("fw-a"); len(c) != 2 || c[1].Alert != "a2" {
		t.Errorf("commands: %+v", c)
	}
	ds := r.decisions(3)
	if ds[1].Alert != "a1" || ds[1].Outcome != events.OutcomeDeclined || !strings.Contains(ds[1].Reason, "acted upon") {
		t.Errorf("after the restart: %+v", ds[1])
	}
}

// TestBudgetAcrossARestart: a hundred alerts in a moment lead to as many commands as
// the budget allows, whoever is started again meanwhile.
func TestBudgetAcrossARestart(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	only := func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }
	const alerts, budget = 100, 10
	fire := func(from, to int) {
		for i := from; i < to; i++ {
			r.fire(alert(fmt.Sprint("a", i), netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String(), only))
		}
	}
	few := enforce(func(f *policy.File) { f.Budget.AddressesPerMinute = budget })
	stop := r.run(few)
	r.working()
	fire(0, budget/2)
	r.until("the first commands", func() bool { return len(r.commands("fw-a")) == budget/2 })
	stop()
	r.run(few)
	fire(budget/2, alerts)
	ds := r.decisions(alerts)
	r.settled("end")
	if n := len(r.commands("fw-a")); n != budget {
		t.Errorf("%d commands, want %d", n, budget)
	}
	if d := ds[alerts-1]; d.Outcome != events.OutcomeDeclined || !strings.Contains(d.Reason, "budget of 10 addresses a minute is spent") {
		t.Errorf("the last decision: %+v", d)
	}
}

// TestOldAlert: what fired while nobody was there is history after max_age.
func TestOldAlert(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	file := enforce(func(f *policy.File) { f.MaxAge = 300 * time.Millisecond })
	stop := r.run(file)
	r.working()
	stop()
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	time.Sleep(400 * time.Millisecond)
	r.run(file)
	if d := r.decisions(1)[0]; d.Outcome != events.OutcomeDeclined || !strings.Contains(d.Reason, "old, at most 300ms is acted upon") {
		t.Errorf("decision: %+v", d)
	}
	if n := len(r.commands("fw-a")); n != 0 {
		t.Errorf("%d commands were sent", n)
	}
}

// TestHealthComesLate: an alert that comes before the first report of its
// firewall waits for it.
func TestHealthComesLate(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	time.Sleep(100 * time.Millisecond)
	r.join(&firewall{name: "fw-a"})
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
}

// TestRecordFirst: without a record nothing is done, and it is done when the
// record can be made.
func TestRecordFirst(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(nil))
	r.working()
	st, err := r.conn.JS.Stream(t.Context(), bus.StreamAudit)
	if err != nil {
		t.Fatal(err)
	}
	full := st.CachedInfo().Config
	full.MaxMsgSize = 10
	if _, err := r.conn.JS.UpdateStream(t.Context(), full); err != nil {
		t.Fatal(err)
	}
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	r.until("the attempt", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.decs) > 0 }) // on its way to the stream
	time.Sleep(200 * time.Millisecond)
	if n := len(r.commands("fw-a")); n != 0 {
		t.Fatalf("%d commands were sent without a record", n)
	}
	if _, err := r.conn.Bootstrap(t.Context(), bus.DefaultLimits, true); err != nil {
		t.Fatal(err)
	}
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
}

// TestUnreachable: a firewall that does not answer is recorded, and holds up
// neither the other firewall nor the next alert.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.report(&firewall{name: "fw-b", realm: events.RealmDefault, boot: "b"}) // reports, but nobody listens
	release := make(chan struct{})
	r.join(&firewall{name: "fw-c", answer: func(*events.Command) (events.Message, error) {
		<-release
		return nil, &bus.RequestError{Err: context.DeadlineExceeded}
	}})
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", nil))
	ds := r.decisions(2)
	if ds[0].Outcome != events.OutcomeCommanded || ds[1].Outcome != events.OutcomeFailed || !strings.Contains(ds[1].Reason, "fw-b") || strings.Contains(ds[1].Reason, "fw-a") {
		t.Errorf("decisions: %+v", ds)
	}
	if n := len(r.commands("fw-a")); n != 1 {
		t.Errorf("%d commands went to the firewall that answers", n)
	}
	r.fire(alert("a2", "198.18.0.2", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-c": 200} }))
	r.fire(alert("a3", "198.18.0.3", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	r.until("the command behind the one that hangs", func() bool { return len(r.commands("fw-a")) == 2 })
	close(release)
	if ds := r.decisions(5); ds[4].Outcome != events.OutcomeFailed || ds[4].Alert != "a2" || !strings.Contains(ds[4].Reason, "fw-c") {
		t.Errorf("the one that failed late: %+v", ds[4])
	}
}

// TestRefusalIsAnAnswer: the firewall's receipt says why; nothing failed.
func TestRefusalIsAnAnswer(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a", answer: func(c *events.Command) (events.Message, error) {
		return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Refused: []events.Refusal{{Reason: "not-enabled"}}, Error: "this producer runs without --allow-flush"}, nil
	}})
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	r.settled("end")
	if d := r.decisions(1)[0]; d.Outcome != events.OutcomeCommanded {
		t.Errorf("decision: %+v", d)
	}
}

// TestStartBeforeTheStreams: a responder may start before bootstrap, and before
// the server.
func TestStartBeforeTheStreams(t *testing.T) {
	r := newRig(t)
	r.run(enforce(nil))
	time.Sleep(50 * time.Millisecond)
	r.bootstrap()
	r.working()
	r.join(&firewall{name: "fw-a"})
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }))
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
}

func TestLoad(t *testing.T) {
	var o Options
	if f, err := o.Load(); err != nil || f.Mode != policy.Observe || len(f.Policies) != 0 {
		t.Errorf("without a file: %+v, %v", f, err)
	}
	if _, err := New(policy.File{Mode: "never"}, Dependencies{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), "policy: mode") {
		t.Errorf("a file that is not valid: %v", err)
	}
}

func TestShort(t *testing.T) {
	long := strings.Repeat("ä", 1000)
	if got := short(long); len(got) > 1024 || !strings.HasSuffix(got, "ä…") {
		t.Errorf("%d bytes, ends with %q", len(got), got[len(got)-5:])
	}
	if got := short("x"); got != "x" {
		t.Error(got)
	}
}

package policy

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestVictim: an alert about a destination leads to the sources that contribute
// most, or to what nobody answered, never to all that the victim has.
func TestVictim(t *testing.T) {
	victim := func(change func(*events.Alert)) *events.Alert {
		return alert(func(a *events.Alert) {
			a.Track, a.Key, a.SampleSize = "by_dst", "203.0.113.9", 100
			a.Peers = []events.Share{{Value: "198.18.0.1", Count: 60}, {Value: "198.18.5.2", Count: 20}, {Value: "198.18.0.3", Count: 10}, {Value: "198.18.0.4", Count: 9}}
			if change != nil {
				change(a)
			}
		})
	}
	f := func(what string, a *events.Alert, p Policy, want ...string) {
		t.Helper()
		p.Rule = "flood"
		var got []string
		for _, d := range engine(t, func(f *File) { f.Policies[0] = p }).Propose(a, 0, known()) {
			s := fmt.Sprintf("%s by %s", d.Address, d.By)
			if d.Towards.IsValid() {
				s += " towards " + d.Towards.String()
			}
			if d.Unanswered {
				s += " unanswered"
			}
			if d.Outcome != "" {
				s = d.Outcome + ": " + d.Reason
			}
			got = append(got, s)
		}
		if strings.Join(got, "; ") != strings.Join(want, "; ") {
			t.Errorf("%s:\n%s, want\n%s", what, strings.Join(got, "; "), strings.Join(want, "; "))
		}
	}
	f("the sources", victim(nil), Policy{},
		"198.18.0.1/32 by src towards 203.0.113.9/32", "declined: 198.18.5.2/32 is on the allowlist: 198.18.5.0/24 (policy file)", "198.18.0.3/32 by src towards 203.0.113.9/32")
	f("blocked altogether", victim(nil), Policy{Action: ActionFlushBlock},
		"198.18.0.1/32 by src", "declined: 198.18.5.2/32 is on the allowlist: 198.18.5.0/24 (policy file)", "198.18.0.3/32 by src")
	f("what nobody answered", victim(nil), Policy{Unanswered: UnansweredDelete}, "203.0.113.9/32 by dst unanswered")
	f("an allowlisted victim", victim(func(a *events.Alert) { a.Key = "198.18.5.9" }), Policy{Unanswered: UnansweredDelete},
		"declined: 198.18.5.9/32 is on the allowlist: 198.18.5.0/24 (policy file)")
	f("a flood from everywhere", victim(func(a *events.Alert) { a.Peers = []events.Share{{Value: "198.18.0.1", Count: 1}} }), Policy{},
		"declined: no source makes a tenth of it, and the victim is not flushed")
	f("no sample", victim(func(a *events.Alert) { a.Peers = nil }), Policy{}, "declined: no source makes a tenth of it, and the victim is not flushed")
	f("from the victim itself", victim(func(a *events.Alert) { a.Peers = []events.Share{{Value: "203.0.113.9", Count: 99}} }), Policy{},
		"declined: no source makes a tenth of it, and the victim is not flushed")
	f("a peer that is none", victim(func(a *events.Alert) { a.Peers = []events.Share{{Value: "x", Count: 99}} }), Policy{},
		"declined: no source makes a tenth of it, and the victim is not flushed")
	many := victim(func(a *events.Alert) {
		a.Peers = nil
		for i := range 9 {
			a.Peers = append(a.Peers, events.Share{Value: fmt.Sprint("198.18.1.", i), Count: 11})
		}
	})
	if n := len(engine(t, nil).Propose(many, 0, known())); n != maxContributors {
		t.Errorf("%d of nine sources are acted upon", n)
	}
}

// TestRelieve: of a table that is too full the sources that hold most are proposed,
// the largest first.
func TestRelieve(t *testing.T) {
	full := func(a *events.Alert) {
		a.Track, a.Metric, a.Key, a.Scope, a.Value, a.Count = "table", events.MetricTablePercent, events.KeyTable, "fw-a", 93, 90
		a.Firewalls = map[string]float64{"fw-a": 93}
		a.Peers = []events.Share{{Value: "198.18.0.1", Count: 5000}, {Value: "198.18.5.2", Count: 4000}, {Value: "198.18.0.3", Count: 30}}
	}
	e := engine(t, func(f *File) { f.Policies[0].Action, f.Policies[0].UntilPercent = ActionRelieve, 70 })
	ds := e.Propose(alert(full), 0, known())
	if len(ds) != 3 || ds[1].Outcome != events.OutcomeDeclined || ds[0].Outcome != "" {
		t.Fatalf("%+v", ds)
	}
	d := ds[0]
	if d.Address.String() != "198.18.0.1/32" || !d.Unanswered || d.UntilPercent != 70 || len(d.Firewalls) != 1 || d.Firewalls[0] != "fw-a" || !strings.HasSuffix(d.Reason, "198.18.0.1 holds 5000 flows") {
		t.Errorf("%+v", d)
	}
	declined := func(what, reason string, e *Engine, change func(*events.Alert)) {
		t.Helper()
		if ds := e.Propose(alert(change), 0, known()); len(ds) != 1 || ds[0].Outcome != events.OutcomeDeclined || !strings.Contains(ds[0].Reason, reason) {
			t.Errorf("%s: %+v", what, ds)
		}
	}
	declined("an alert about an address", "about a table's fill", e, nil)
	declined("no sources", "names no source", e, func(a *events.Alert) { full(a); a.Peers = nil })
	declined("a flush of a table", `the action for it is "relieve"`, engine(t, nil), full)
	// What a file cannot say; but a circuit or a mode may come to it.
	f := file(func(f *File) { f.Mode, f.Policies[0].Action, f.Policies[0].UntilPercent = Approve, ActionRelieve, 70 })
	declined("with approval", "cannot wait for a person", New(f), full)
}

// TestFirewallsBudget: where more firewalls would be commanded at a time, none is.
func TestFirewallsBudget(t *testing.T) {
	for most, outcome := range map[int]string{0: "", 1: events.OutcomeDeclined, 2: ""} {
		ds := engine(t, func(f *File) { f.Budget.Firewalls = most }).Propose(alert(nil), 0, known())
		if len(ds) != 1 || ds[0].Outcome != outcome || outcome != "" && ds[0].Reason != "it would be on 2 firewalls at a time, the budget is 1" {
			t.Errorf("a budget of %d: %+v", most, ds)
		}
	}
}

func TestCommandID(t *testing.T) {
	base := func() []any { return []any{"a1", int64(1), "198.18.0.1", "fw-a", "flush"} }
	id := func(x []any) string {
		return CommandID(x[0].(string), x[1].(int64), x[2].(string), x[3].(string), x[4].(string))
	}
	first := id(base())
	if len(first) != 24 || first != id(base()) {
		t.Errorf("%q, then %q", first, id(base()))
	}
	seen := map[string]bool{first: true}
	for i, other := range []any{"a2", int64(2), "198.18.0.2", "fw-b", "block"} {
		x := base()
		x[i] = other
		if seen[id(x)] {
			t.Errorf("%v has the id of another", x)
		}
		seen[id(x)] = true
	}
}

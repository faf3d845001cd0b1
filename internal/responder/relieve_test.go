package responder

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestRelieve: a table that is too full loses the unanswered entries of its largest
// sources, one after the other, until it is no fuller than the policy says.
func TestRelieve(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	table := uint64(950)
	fw := &firewall{name: "fw-a", answer: func(c *events.Command) (events.Message, error) {
		table -= 120
		return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Matched: 120, Deleted: 120, TableBefore: table + 120, TableAfter: table}, nil
	}}
	fw.table = events.TableHealth{Count: 950, Limit: 1000, Percent: 95}
	r.join(fw)
	file := enforce(func(f *policy.File) {
		f.Policies = append(f.Policies, policy.Policy{Rule: "table-90", Action: policy.ActionRelieve, UntilPercent: 70})
		f.Budget = policy.Budget{AddressesPerMinute: 10, TablePercent: 20}
	})
	r.run(file)
	r.working()
	full := func(id string, updated int64) *events.Alert {
		a := alert(id, events.KeyTable, func(a *events.Alert) {
			a.Rule, a.Track, a.Metric, a.Scope, a.Value, a.Count, a.Updated = "table-90", "table", events.MetricTablePercent, "fw-a", 95, 90, updated
			a.Firewalls = map[string]float64{"fw-a": 95}
			for i := range 6 {
				a.Peers = append(a.Peers, events.Share{Value: fmt.Sprint("198.18.0.", i+1), Count: uint64(500 - i)})
			}
		})
		return a
	}
	subject := events.AlertSubject(events.Firing, "table-90", "fw-a", events.KeyTable)
	r.publish(subject, full("t1", 1))
	// 950 → 830 → 710 → 590, which is under 70 %.
	r.until("three commands", func() bool { return len(r.commands("fw-a")) == 3 })
	ds := r.decisions(3)
	r.settled("end")
	var got []string
	for _, c := range r.commands("fw-a") {
		got = append(got, strings.Join(c.Addresses, " "))
		if !c.Unanswered || c.By != events.BySrc || c.Most != 190 || c.Alert != "t1" {
			t.Errorf("command: %+v", c)
		}
	}
	if want := []string{"198.18.0.1", "198.18.0.2", "198.18.0.3"}; !slices.Equal(got, want) {
		t.Errorf("commands about %v, want %v", got, want)
	}
	for _, d := range ds {
		if d.Outcome != events.OutcomeCommanded || d.Action != policy.ActionRelieve || d.Key != events.KeyTable {
			t.Errorf("decision: %+v", d)
		}
	}
	r.decisions(3)
}

// TestRelieveSimulated: what is only observed ends with the first source: how far it
// would get is known to nobody.
func TestRelieveSimulated(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) {
		f.Mode = policy.Observe
		f.Policies = append(f.Policies, policy.Policy{Rule: "table-90", Action: policy.ActionRelieve, UntilPercent: 70})
	}))
	r.working()
	r.publish(events.AlertSubject(events.Firing, "table-90", "fw-a", events.KeyTable), alert("t1", events.KeyTable, func(a *events.Alert) {
		a.Rule, a.Track, a.Metric, a.Scope, a.Value, a.Count = "table-90", "table", events.MetricTablePercent, "fw-a", 95, 90
		a.Firewalls = map[string]float64{"fw-a": 95}
		a.Peers = []events.Share{{Value: "198.18.0.1", Count: 9}, {Value: "198.18.0.2", Count: 8}}
	}))
	if d := r.decisions(1)[0]; d.Outcome != events.OutcomeSimulated || d.Address != "198.18.0.1" {
		t.Errorf("decision: %+v", d)
	}
	r.settled("end")
	r.decisions(1)
}

package main

import (
	"regexp"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// publish sends messages to the streams that keep them.
func publish(t *testing.T, conn *bus.Conn, subject string, m events.Message) {
	t.Helper()
	data, err := events.Marshal(m)
	if err == nil {
		_, err = conn.JS.Publish(t.Context(), subject, data)
	}
	if err != nil {
		t.Fatal(err)
	}
}

var deedTime = regexp.MustCompile(`(responder\s+)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`)

// TestExplain holds why an alert fired, as a person and a script are told, and which
// one is meant.
func TestExplain(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	c.env = append(c.env, "TZ=UTC")
	const start = 1_790_000_000_000
	report := func(a events.Alert) {
		t.Helper()
		publish(t, conn, events.AlertSubject(a.State, a.Rule, a.Scope, map[string]string{"198.18.0.7": "198-18-0-7", "table": "table"}[a.Key]), &a)
	}
	first := events.Alert{
		ID: "0123456789abcdef", Rule: "new-flows", State: events.Firing, Severity: "critical", Scope: "fleet", Realm: "default", Key: "198.18.0.7",
		Track: "by_src", Metric: events.MetricNew, Value: 4000, Count: 3500, Seconds: 10, Peak: 4000, Started: start, Updated: start,
		Slots: []uint64{19: 2750, 18: 1200, 17: 0, 16: 50}, SlotMS: 500, SlotsEnd: start + 500,
		Firewalls: map[string]float64{"fw-a": 1500, "fw-b": 2500}, Peers: []events.Share{{Value: "203.0.113.4", Count: 9}}, Ports: []events.Share{{Value: "tcp/443", Count: 9}},
		SampleSize: 9, Unreplied: new(0.25), Lossy: true, Stale: true, Approximate: true, Allowlisted: true, Muted: true,
		Text: "new-flows: 198.18.0.7 opened 4000 flows within 10 s in the fleet, threshold 3500, through 2 firewalls",
	}
	before := first
	before.ID, before.Started, before.Updated = "0123456700000000", start-90_000, start-90_000
	report(before)
	before.State, before.Updated = events.Resolved, start-60_000
	report(before)
	report(first)
	last := first
	last.Value, last.Peak, last.Updated, last.Slots = 6000, 9000, start+15_000, nil
	report(last)
	report(events.Alert{
		ID: "fedcba9876543210", Rule: "table-90", State: events.Firing, Severity: "warning", Scope: "fw-a", Realm: "default", Key: "table", Track: "table",
		Metric: "table_percent", Value: 91.5, Count: 90, Peak: 91.5, Started: start, Updated: start, Firewalls: map[string]float64{"fw-a": 91.5}, Text: "table-90: the table is 91.5% full on fw-a, threshold 90",
	})
	if _, err := conn.JS.Publish(t.Context(), events.AlertSubject(events.Firing, "x", "fleet", "table"), []byte("no alert")); err != nil {
		t.Fatal(err)
	}
	for _, d := range []events.Decision{
		{ID: "d0", Alert: before.ID, Rule: "new-flows", Key: "198.18.0.7", Mode: "observe", Action: "flush", Outcome: events.OutcomeSimulated, Reason: "before"},
		{ID: "d1", Alert: first.ID, Rule: "new-flows", Key: "198.18.0.7", Mode: "approve", Action: "flush", Outcome: events.OutcomeCommanded, Reason: "4000 of 3500", Firewalls: []string{"fw-a", "fw-b"}},
	} {
		publish(t, conn, events.AuditSubject(events.ActorResponder, events.VerbDecision), &d)
	}
	publish(t, conn, events.AuditSubject(events.ActorOperator, events.VerbApproval), &events.Act{Verb: events.VerbApproval, ID: "d1", What: "approves d1", Reason: "go"})
	publish(t, conn, events.AuditSubject(events.ActorOperator, events.VerbApproval), &events.Act{Verb: events.VerbApproval, ID: "d2", What: "approves another"})
	publish(t, conn, events.AuditSubject("fw-a", events.VerbFlush), &events.Receipt{ID: "c1", Firewall: "fw-a", Verb: events.VerbFlush, Actor: events.ActorResponder, Alert: first.ID, Addresses: []string{"198.18.0.7"}, Matched: 10, Deleted: 9, Gone: 1, Refused: []events.Refusal{}, Reason: "new-flows"})

	explain := func(args ...string) string {
		t.Helper()
		r := c.run(t, "ctfleet", append([]string{"rules", "explain"}, args...)...)
		if r.code != 0 || !strings.Contains(r.stderr, `refused a message on "ct.v1.alerts.firing.x.fleet.table"`) {
			t.Errorf("%v: %+v", args, r)
		}
		return deedTime.ReplaceAllString(r.stdout, "${1}2006-01-02 15:04:05")
	}
	golden(t, "explain.txt", explain("012345678"))
	golden(t, "explain.raw", explain("0123456789abcdef", "-o", "raw"))
	golden(t, "explain-table.txt", explain("f"))
	for _, what := range []string{"198.18.0.7", "new-flows.fleet.198-18-0-7", "ct.v1.alerts.firing.new-flows.fleet.198-18-0-7"} {
		x := parse[explained](t, explain(what, "-o", "json"))
		if x.Alert.ID != first.ID || x.Alert.Slots[19] != 2750 || x.Last.Value != 6000 || len(x.Responder) != 3 || x.Rule == "" {
			t.Errorf("%s: %+v", what, x)
		}
	}
	if x := parse[explained](t, explain(before.ID, "-o", "json")); x.Last.State != events.Resolved || len(x.Responder) != 1 {
		t.Errorf("%+v", x)
	}
	for what, code := range map[string]int{"01234567": 2, "abc": 1, "": 1, "198.18.0.8": 1} {
		if r := c.run(t, "ctfleet", "rules", "explain", what); r.code != code || r.stdout != "" {
			t.Errorf("%q: %+v, want exit code %d", what, r, code)
		}
	}
}

// TestWhyItFires: every kind of alert in words.
func TestWhyItFires(t *testing.T) {
	f := func(a events.Alert, want string) {
		t.Helper()
		a.Realm = "default"
		if got := whyItFires(&a); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	f(events.Alert{Track: "by_src", Metric: "new", Count: 3500, Seconds: 10, Key: "198.18.0.7", Scope: "fleet"}, "3500 or more new flows from one source within 10 s, in the realm default")
	f(events.Alert{Track: "by_dst", Metric: "active", Count: 1_000_000, Key: "198.18.0.0/24", Scope: "fw-a"}, "1000000 or more flows at a time to the destinations of one /24, on fw-a alone")
	f(events.Alert{Track: "by_src", Metric: "unreplied", Count: 7, Seconds: 60, Key: "2001:db8::/64", Scope: "fw-a"}, "7 or more flows from the sources of one /64 that ended unanswered within 60 s, on fw-a alone")
	f(events.Alert{Track: "table", Metric: "silent_seconds", Count: 60, Key: "table", Scope: "fw-a"}, "silent_seconds is 60 or more, on fw-a alone")
}

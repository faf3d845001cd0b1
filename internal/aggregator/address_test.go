package aggregator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// story makes a fleet of two with an alert about 198.18.0.7, one that is over, and
// what was done; besides, things of others.
func story(t *testing.T) (*archive, *Aggregator) {
	a := newArchive(t)
	agg, _, _ := a.aggregator("")
	for _, fw := range []string{"fw-a", "fw-b", "fw-x"} {
		realm := map[bool]string{false: "default", true: "lisbon"}[fw == "fw-x"]
		a.send(events.HealthSubject(fw), &events.Health{Firewall: fw, Realm: realm, Boot: strings.Repeat("0", 32), Version: "t", Config: "t"})
		a.send(events.AuditSubject(fw, "flush"), &events.Receipt{ID: "r-" + fw, Firewall: fw, Verb: "flush", Addresses: []string{"198.18.0.0/24"}, Refused: []events.Refusal{}})
	}
	entry := &events.AllowEntry{Prefix: "198.18.0.0/16", Comment: "scanner", Time: time.Now().UnixMilli()}
	if err := a.conn.Put(t.Context(), nil, bus.BucketAllowlist, "_all.198-18-0-0_16", entry); err != nil {
		t.Fatal(err)
	}
	for _, al := range []events.Alert{
		{ID: "over", Realm: "default", Scope: "fleet", Key: "198.18.0.7"},
		{ID: "wide", Realm: "default", Scope: "fleet", Key: "198.18.0.0/24"},
		{ID: "other", Realm: "default", Scope: "fleet", Key: "198.18.1.7"},
		{ID: "elsewhere", Realm: "lisbon", Scope: "realm_lisbon", Key: "198.18.0.7"},
	} {
		al.Rule, al.State, al.Track, al.Metric = "new-flows", events.Resolved, rule.BySrc, rule.New
		a.send(alertSubject(&al), &al)
	}
	a.send(events.AuditSubject(events.ActorResponder, events.VerbDecision), &events.Decision{ID: "d1", Outcome: events.OutcomeSimulated, Rule: "new-flows", Realm: "default", Key: "198.18.0.7", Firewalls: []string{"fw-a"}})
	a.send(events.AuditSubject(events.ActorResponder, events.VerbDecision), &events.Decision{ID: "d2", Outcome: events.OutcomeDeclined, Rule: "new-flows", Realm: "lisbon", Key: "198.18.0.7"})
	a.send(events.AuditSubject(events.ActorOperator, events.VerbAllowlist), &events.Act{Verb: events.VerbAllowlist, What: "added", Key: "198.18.0.0/16", Who: "alice"})
	a.flows("fw-a", "198.18.0.7", 40)
	a.flows("fw-b", "198.18.0.7", 20)
	a.flows("fw-b", "198.19.0.9", 25)
	a.until("the counts", func() bool {
		top, err := agg.Top(&events.TopQuery{})
		firing, err2 := agg.Alerts(t.Context(), &events.AlertsQuery{})
		return err == nil && err2 == nil && len(top.Rows) == 2 && top.Rows[0].Value == 60 && len(firing.Alerts) == 1 && len(agg.Firewalls().Firewalls) == 3
	})
	a.until("the allowlist", func() bool {
		top, err := agg.Top(&events.TopQuery{Allowlisted: events.AllowlistedHide})
		return err == nil && len(top.Rows) == 1
	})
	return a, agg
}

func TestAddress(t *testing.T) {
	t.Parallel()
	a, agg := story(t)
	var r events.AddressReply
	if err := a.conn.Request(t.Context(), events.QuerySubject(events.QueryAddress), &events.AddressQuery{Address: "::ffff:198.18.0.7"}, &r); err != nil {
		t.Fatal(err)
	}
	counts := func(s *events.AddressSide) (out string) {
		for _, c := range s.Counts {
			value := "?"
			if c.Value != nil {
				value = fmt.Sprint(*c.Value)
			}
			out += fmt.Sprintf("%s %d=%s %v; ", c.Metric, c.WindowS, value, map[string]uint64(c.Firewalls))
		}
		return out
	}
	const known = "new 10=60 map[fw-a:40 fw-b:20]; new 60=60 map[fw-a:40 fw-b:20]; active 0=? map[]; unreplied 10=? map[]; unreplied 60=? map[]; "
	if got := counts(&r.Src); got != known {
		t.Errorf("as source: %s", got)
	}
	const nothing = "new 10=0 map[]; new 60=0 map[]; active 0=? map[]; unreplied 10=? map[]; unreplied 60=? map[]; "
	if got := counts(&r.Dst); got != nothing {
		t.Errorf("as destination: %s", got)
	}
	if r.Src.SampleSize != 60 || len(r.Src.Ports) != 1 || r.Src.Ports[0] != (events.Share{Value: "tcp/443", Count: 60}) || r.Src.Peers[0].Value != "203.0.113.4" || r.Dst.SampleSize != 0 {
		t.Errorf("samples: %+v, %+v", r.Src, r.Dst)
	}
	if r.Address != "198.18.0.7" || r.Allowlisted == nil || *r.Allowlisted != (events.AddressEntry{Prefix: "198.18.0.0/16", Why: "live allowlist: scanner"}) {
		t.Errorf("%s, %+v", r.Address, r.Allowlisted)
	}
	if len(r.Alerts) != 1 || r.Alerts[0].Value != 60 || len(r.Past) != 2 || r.Past[0].ID != "wide" || r.Past[1].ID != "over" {
		t.Errorf("alerts: %+v, %+v", r.Alerts, r.Past)
	}
	if len(r.Decisions) != 1 || r.Decisions[0].ID != "d1" || len(r.Receipts) != 2 || r.Receipts[0].ID != "r-fw-a" || len(r.Acts) != 1 || r.Acts[0].Who != "" || r.More {
		t.Errorf("deeds: %+v, %+v, %+v", r.Decisions, r.Receipts, r.Acts)
	}
	if !slices.Equal(r.Unknown, []string{"fw-a", "fw-b"}) {
		t.Errorf("unknown: %v", r.Unknown)
	}
	// Another realm is another host.
	far, err := agg.Address(t.Context(), &events.AddressQuery{Address: "198.18.0.7", Realm: "lisbon"})
	if err != nil || counts(&far.Src) != nothing || len(far.Alerts) != 0 || len(far.Past) != 1 || far.Past[0].ID != "elsewhere" || far.Decisions[0].ID != "d2" || far.Receipts[0].ID != "r-fw-x" {
		t.Errorf("elsewhere: %+v, %v", far, err)
	}
	if _, err := agg.Address(t.Context(), &events.AddressQuery{Address: "fw-a"}); err == nil {
		t.Error("a name is no address")
	}
}

// TestWatch hears what comes, and nothing that was before.
func TestWatch(t *testing.T) {
	t.Parallel()
	a, agg := story(t)
	heard := make(chan string, 100)
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- agg.Watch(ctx, func(al *events.Alert) { heard <- al.ID }, func(e *audit.Entry) { heard <- e.Receipt.ID })
	}()
	missing := map[string]bool{"alert": true, "receipt": true}
	for deadline := time.Now().Add(20 * time.Second); len(missing) > 0 && time.Now().Before(deadline); {
		// Again: it may not have begun to listen.
		al := events.Alert{ID: "alert", Rule: "new-flows", State: events.Resolved, Realm: "default", Scope: "fleet", Key: "198.18.0.9"}
		a.send(alertSubject(&al), &al)
		a.send(events.AuditSubject("fw-a", "flush"), &events.Receipt{ID: "forged", Firewall: "fw-b", Verb: "flush", Refused: []events.Refusal{}})
		a.send(events.AuditSubject("fw-a", "flush"), &events.Receipt{ID: "receipt", Firewall: "fw-a", Verb: "flush", Refused: []events.Refusal{}})
		for quiet := false; !quiet; {
			select {
			case got := <-heard:
				if got == "forged" || got == "over" || strings.HasPrefix(got, "r-") {
					t.Errorf("heard %s", got)
				}
				delete(missing, got)
			case <-time.After(100 * time.Millisecond):
				quiet = true
			}
		}
	}
	if len(missing) > 0 {
		t.Errorf("waited in vain for %v", missing)
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestRecent(t *testing.T) {
	t.Parallel()
	_, agg := story(t)
	alerts := func(q events.AlertsQuery) (ids []string) {
		t.Helper()
		r, err := agg.Alerts(t.Context(), &q)
		if err != nil {
			t.Fatal(err)
		}
		for _, al := range r.Alerts {
			ids = append(ids, al.ID)
		}
		return ids
	}
	if got := alerts(events.AlertsQuery{State: events.AlertsPast}); !slices.Equal(got, []string{"elsewhere", "other", "wide", "over"}) {
		t.Errorf("past: %v", got)
	}
	later := time.Now().Add(time.Hour).UnixMilli()
	if past, firing := alerts(events.AlertsQuery{State: events.AlertsPast, Since: later}), alerts(events.AlertsQuery{Since: later}); len(past) != 0 || len(firing) != 0 {
		t.Errorf("later: %v, %v", past, firing)
	}
	f := func(key, firewall string, limit int, more bool, want ...string) {
		t.Helper()
		list, err := agg.Audit(t.Context(), 0, key, firewall, limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range list.Entries {
			got = append(got, e.Actor+" "+e.Verb)
		}
		if !slices.Equal(got, want) || list.More != more {
			t.Errorf("%q, %q, %d: %v, more %t, want %v", key, firewall, limit, got, list.More, want)
		}
	}
	f("", "", 100, false, "fw-a flush", "fw-b flush", "fw-x flush", "responder decision", "responder decision", "operator allowlist")
	f("", "", 2, true, "responder decision", "operator allowlist")
	f("198.18.0.7", "", 100, false, "responder decision", "responder decision")
	f("", "fw-a", 100, false, "fw-a flush", "responder decision")
	f("198.18.0.0/24", "fw-b", 100, false, "fw-b flush")

	rows := func(q events.TopQuery) (keys []string) {
		t.Helper()
		r, err := agg.Top(&q)
		if err != nil {
			t.Fatal(err)
		}
		for _, row := range r.Rows {
			keys = append(keys, row.Key)
		}
		return keys
	}
	if got := rows(events.TopQuery{Prefix: "198.18.0.0/24"}); !slices.Equal(got, []string{"198.18.0.7"}) {
		t.Errorf("within a prefix: %v", got)
	}
	if got := rows(events.TopQuery{Allowlisted: events.AllowlistedHide, Limit: 1}); !slices.Equal(got, []string{"198.19.0.9"}) {
		t.Errorf("without what is allowlisted: %v", got)
	}
	if got := rows(events.TopQuery{Prefix: "2001:db8::/32"}); len(got) != 0 {
		t.Errorf("within another: %v", got)
	}
}

package aggregator

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	ruleStays = "  - {name: stays, track: by_src, metric: new, count: 50, seconds: 60}\n"
	ruleGoes  = "  - {name: goes, track: by_src, metric: new, count: 60, seconds: 60}\n"
	ruleHTTPS = "  - {name: https, track: by_src, metric: new, count: 30, seconds: 60, match: {protocol: tcp, dport: [443]}}\n"
	ruleLong  = "  - {name: long, track: by_src, metric: new, count: 40, seconds: 120}\n"
)

// reload reads the rules again, as the signal does.
func (r *busRig) reload(rules string) {
	r.t.Helper()
	r.write(rules)
	apply, err := r.Reload()
	if err != nil {
		r.t.Fatal(err)
	}
	apply(r.t.Context())
}

// TestReload changes the rules of an aggregator that counts.
func TestReload(t *testing.T) {
	before := "rules:\n" + ruleStays + ruleGoes
	r := newBusRig(t, before)
	var seq uint64
	r.open(&seq, 70, 443)
	r.until("both rules fire", func() bool { return slices.Equal(r.firingRules(), []string{"goes", "stays"}) })
	reply, err := r.Alerts(t.Context(), &events.AlertsQuery{})
	if err != nil {
		t.Fatal(err)
	}
	id := map[string]string{}
	for i := range reply.Alerts {
		id[reply.Alerts[i].Rule] = reply.Alerts[i].ID
	}

	// A bad file is refused with its line, and changes nothing.
	r.write("rules:\n  - {name: stays, track: by_src, metric: new, count: 50, secnds: 60}\n")
	if _, err := r.Reload(); err == nil || !strings.Contains(err.Error(), "rules.yaml:2:") || !strings.Contains(err.Error(), "secnds") || strings.Contains(err.Error(), "\n") {
		t.Errorf("a bad file: %v, want one line that names the file, its line and the key", err)
	}
	if got := r.firingRules(); !slices.Equal(got, []string{"goes", "stays"}) {
		t.Errorf("after a bad file %v fire", got)
	}

	after := "rules:\n" + ruleHTTPS + ruleLong + ruleStays
	r.reload(after)
	// At once: what was over a threshold that is new has crossed it.
	if got := r.firingRules(); !slices.Equal(got, []string{"long", "stays"}) {
		t.Errorf("after the change %v fire", got)
	}
	reply, err = r.Alerts(t.Context(), &events.AlertsQuery{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range reply.Alerts {
		switch al := &reply.Alerts[i]; al.Rule {
		case "stays":
			if al.ID != id["stays"] || al.Value != 70 {
				t.Errorf("the rule that stays has alert %s with %v, want %s with 70", al.ID, al.Value, id["stays"])
			}
		case "long":
			if !al.Partial {
				t.Error("the alert of a window that is new is not flagged as partial")
			}
		}
	}
	top, err := r.Top(&events.TopQuery{WindowS: 120})
	if err != nil || !top.Partial || !slices.Contains(top.Windows, 120) || len(top.Rows) != 1 || top.Rows[0].Value != 70 {
		t.Errorf("top of the new window: %+v, %v", top, err)
	}
	r.open(&seq, 29, 443)
	r.until("they are counted", func() bool { return r.counted("fw-a") == 99 })
	if got := r.firingRules(); slices.Contains(got, "https") {
		t.Errorf("with 29 of 30 %v fire: what was not counted before must not count", got)
	}
	r.open(&seq, 1, 443)
	r.until("the new rule fires", func() bool { return slices.Contains(r.firingRules(), "https") })

	// The alert of the rule that went was resolved, and says why.
	past, err := r.Alerts(t.Context(), &events.AlertsQuery{State: events.AlertsPast})
	r.until("it is in the past", func() bool {
		past, err = r.Alerts(t.Context(), &events.AlertsQuery{State: events.AlertsPast})
		return err == nil && len(past.Alerts) > 0
	})
	if al := &past.Alerts[0]; al.ID != id["goes"] || al.Text != "goes: the rule is no more" {
		t.Errorf("resolved: %+v, want that of the rule that is no more", al)
	}

	// The same file again is no change; the one before brings back what was.
	r.reload(after)
	r.reload(before)
	if got := r.firingRules(); !slices.Equal(got, []string{"goes", "stays"}) {
		t.Errorf("back at the rules before, %v fire", got)
	}
	if _, err := r.Top(&events.TopQuery{WindowS: 120}); err == nil {
		t.Error("a window that no rule needs is still there")
	}
	r.until("both changes are in the audit", func() bool { return len(r.acts()) == 2 })
	first := r.acts()[0]
	_, what, _ := first.Words()
	if first.Actor != events.ActorAggregator || first.Verb != events.VerbReload || first.Act.Before != config.Digest([]byte(before)) || first.Act.After != config.Digest([]byte(after)) {
		t.Errorf("audit: %+v %+v", first, first.Act)
	}
	for _, want := range []string{first.Act.Before, first.Act.After, "added https long", "removed goes"} {
		if !strings.Contains(what, want) {
			t.Errorf("the audit says %q, not %q", what, want)
		}
	}

	// An aggregator that starts now comes to the same.
	r.stop()
	r.start()
	r.until("it has adopted", func() bool { return slices.Equal(r.firingRules(), []string{"goes", "stays"}) })
}

// TestReloadUnderLoad changes rules again and again while batches come: nothing is
// counted twice or left out.
func TestReloadUnderLoad(t *testing.T) {
	r := newBusRig(t, "rules:\n"+ruleStays)
	var seq uint64
	for i := range 40 {
		r.open(&seq, 25, 443)
		if i%2 == 0 {
			r.reload("rules:\n" + ruleStays + ruleHTTPS + ruleLong)
		} else {
			r.reload("rules:\n" + ruleGoes + ruleStays)
		}
	}
	r.until("all are counted", func() bool { return r.counted("fw-a") == 1000 })
	top, err := r.Top(&events.TopQuery{WindowS: 60})
	if err != nil || len(top.Rows) != 1 || top.Rows[0].Value != 1000 {
		t.Errorf("top: %+v, %v, want 1000 flows of one address", top, err)
	}
	r.mu.Lock()
	acc, _ := r.counter.Account("fw-a")
	r.mu.Unlock()
	if acc.Duplicates+acc.Missing != 0 {
		t.Errorf("account %+v", acc)
	}
	for _, al := range r.firingRules() {
		if al != "stays" && al != "goes" {
			t.Errorf("%s fires, which is no rule", al)
		}
	}
	r.until("each change is in the audit", func() bool { time.Sleep(20 * time.Millisecond); return len(r.acts()) == 40 })
}

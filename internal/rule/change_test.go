package rule_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/rule"
)

// change gives the engine other rules.
func (l *life) change(seconds float64, maxFiring int, rules []rule.Rule, want ...string) {
	l.Helper()
	for _, r := range rules {
		if err := r.Validate(); err != nil {
			l.Fatal(err)
		}
	}
	got, err := l.Change(rules, maxFiring, at(seconds))
	if err != nil {
		l.Fatal(err)
	}
	l.expect(seconds, got, want)
}

// TestChange: alerts of rules that stay go on under other numbers, whatever their place
// in the file; those of rules that go, or count something else, are over.
func TestChange(t *testing.T) {
	named := func(name string, count float64, change func(*rule.Rule)) rule.Rule {
		r := newFlows(count, change)
		r.Name = name
		return r
	}
	stays := named("stays", 100, func(r *rule.Rule) { r.Recover = 0 })
	l := newLife(t, 10, named("goes", 100, nil), stays, named("waits", 100, func(r *rule.Rule) { r.For = time.Minute }))
	a := source(1)
	l.values[a] = 120
	for i, want := range []int{1, 1, 0} {
		if got := l.Observe(i, a, 120, at(0)); len(got) != want {
			t.Fatalf("rule %d: %v", i, got)
		}
	}
	ids := map[string]string{}
	for _, tr := range l.Firing() {
		ids[tr.Rule.Name] = tr.ID
	}

	higher := stays
	higher.Count, higher.Seconds = 110, 30
	l.change(1, 10, []rule.Rule{named("comes", 100, nil), higher}, "resolved goes 198.18.0.1/32 120")
	if s := l.Stats(); s != (rule.Stats{Firing: 1}) {
		t.Errorf("%+v, want one that fires and nothing that waits", s)
	}
	if f := l.Firing(); len(f) != 1 || f[0].Rule.Name != "stays" || f[0].ID != ids["stays"] || f[0].Rule.Count != 110 {
		t.Errorf("firing: %+v, want the same alert under the new rule", f)
	}
	l.tick(2)
	higher.Count = 200
	l.change(3, 10, []rule.Rule{higher})
	l.tick(3, "resolved stays 198.18.0.1/32 120")
	l.observe(4, a, 200, "fired stays 198.18.0.1/32 200")

	for what, change := range map[string]func(*rule.Rule){
		"another side":   func(r *rule.Rule) { r.Track = rule.ByDst },
		"another metric": func(r *rule.Rule) { r.Metric = rule.Unreplied },
		"other flows":    func(r *rule.Rule) { r.Match.DPort = rule.Ports{22} },
		"another scope":  func(r *rule.Rule) { r.Scope = rule.Firewall },
		"another prefix": func(r *rule.Rule) { r.Prefix.IPv4 = 24 },
	} {
		l := newLife(t, 10, stays)
		l.observe(0, a, 100, "fired stays 198.18.0.1/32 100")
		other := stays
		change(&other)
		l.change(1, 10, []rule.Rule{other}, "resolved stays 198.18.0.1/32 100")
		if s := l.Stats(); s != (rule.Stats{}) {
			t.Errorf("%s: %+v", what, s)
		}
	}
}

// TestChangeMaxFiring: what fires goes on, what is held fires when there is room.
func TestChangeMaxFiring(t *testing.T) {
	r := newFlows(100, nil)
	l := newLife(t, 1, r)
	l.observe(0, source(1), 100, "fired new-flows 198.18.0.1/32 100")
	l.observe(1, source(2), 100, "fired max-firing invalid Prefix 1")
	l.change(2, 2, []rule.Rule{r})
	l.tick(3, "fired new-flows 198.18.0.2/32 100", "updated max-firing invalid Prefix 0")
	if _, err := l.Change([]rule.Rule{r, r}, 2, at(4)); err == nil {
		t.Error("two rules of one name were taken")
	}
	if s := l.Stats(); s.Firing != 2 {
		t.Errorf("%+v after a change that was refused", s)
	}
}

func TestDifference(t *testing.T) {
	a, b, c := newFlows(1, nil), newFlows(2, nil), newFlows(3, nil)
	a.Name, b.Name, c.Name = "a", "b", "c"
	other := b
	other.Severity = rule.Critical
	added, removed, changed := rule.Difference([]rule.Rule{a, b}, []rule.Rule{other, c})
	if got := fmt.Sprint(added, removed, changed); got != "[c] [a] [b]" {
		t.Errorf("added, removed, changed: %s", got)
	}
}

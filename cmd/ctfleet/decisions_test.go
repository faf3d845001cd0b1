//go:build linux

package main

import (
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestDecisions: what a responder does not do, and why, stands in the audit
// beside what it does; and a firewall has the last word.
func TestDecisions(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", `rules:
  - {name: watched, track: by_src, metric: new, count: 100, seconds: 60}
  - {name: guarded, track: by_src, metric: new, count: 100, seconds: 60}
  - {name: ignored, track: by_src, metric: new, count: 100, seconds: 60}
`))
	f.producer("fw-a") // without --allow-flush
	resp := f.start(t, "responder", "--policy", file(t, "policy.yaml", `mode: observe
cool_down: 0s
policies:
  - rule: watched
  - {rule: guarded, mode: enforce}
allowlist:
  - 198.18.66.1
`))
	resp.says(&resp.stderr, `(waiting for alerts)`)
	f.flood("fw-a", attacker, 0, 100) // on the allowlist
	f.flood("fw-a", "198.18.5.5", 0, 950)

	want := map[string]bool{
		"watched " + attacker + ": declined, 198.18.66.1/32 is on the allowlist":                            true,
		"guarded " + attacker + ": declined, 198.18.66.1/32 is on the allowlist":                            true,
		"watched 198.18.5.5: simulated, watched":                                                            true,
		"guarded 198.18.5.5: commanded, guarded":                                                            true,
		"flush [198.18.5.5]: refused not-enabled, this producer runs without --allow-flush, 0 deleted of 0": true,
	}
	got := map[string]bool{}
	begin := time.Now()
	for !maps.Equal(got, want) {
		if time.Since(begin) > 20*time.Second {
			t.Fatalf("the audit says\n%s\nwant\n%s", lines(got), lines(want))
		}
		time.Sleep(100 * time.Millisecond)
		clear(got)
		r := f.run(t, "ctfleet", "audit", "list", "-o", "json")
		for _, e := range parse[struct{ Entries []audit.Entry }](t, r.stdout).Entries {
			switch d := e.Decision; {
			case e.Act != nil:
			case d == nil:
				for _, refused := range e.Receipt.Refused {
					got[fmt.Sprintf("%s %v: refused %s, %s, %d deleted of %d", e.Verb, e.Receipt.Addresses, refused.Reason, e.Receipt.Error, e.Receipt.Deleted, e.Receipt.Matched)] = true
				}
			default:
				// The reason begins with its cause, or with the rule of the alert.
				reason, _, _ := strings.Cut(d.Reason, ":")
				got[fmt.Sprintf("%s %s: %s, %s", d.Rule, d.Key, d.Outcome, reason)] = true
			}
		}
	}
	// The next health report comes within a second, and counts all of them.
	until(t, "all 1050 entries to be there still", func() bool { return f.firewalls()[0].Table.Count >= 1050 })
	if r := f.run(t, "ctfleet", "audit", "list"); r.code != 0 || !strings.Contains(r.stdout, events.OutcomeSimulated+": flush 198.18.5.5 on fw-a (observe)") {
		t.Errorf("audit for a person: %s", r.stdout)
	}
	resp.stop()
}

func lines(set map[string]bool) string {
	var b strings.Builder
	for s := range set {
		fmt.Fprintln(&b, " ", s)
	}
	return b.String()
}

//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestApprovals: what a policy proposes is done when an operator says so, and the
// circuit stops what goes over the budget until an operator closes it.
func TestApprovals(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", `rules:
  - {name: flood, track: by_src, metric: new, count: 100, seconds: 60}
`))
	f.producer("fw-a", "--allow-flush")
	f.responder(`mode: approve
policies: [{rule: flood, unanswered: delete}]
budget: {addresses_per_minute: 2}
`)
	do := func(code int, want string, args ...string) result {
		t.Helper()
		r := f.run(t, "ctfleet", args...)
		if r.code != code || !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("%q: exit code %d, %s%s, want %d and %q", args, r.code, r.stdout, r.stderr, code, want)
		}
		return r
	}
	// proposed waits for the proposal about an address.
	proposed := func(address string) events.Proposal {
		t.Helper()
		var found events.Proposal
		until(t, "the proposal about "+address, func() bool {
			list := parse[struct{ Approvals []events.Proposal }](t, f.run(t, "ctfleet", "approvals", "-o", "json").stdout)
			for _, p := range list.Approvals {
				if p.Decision.Address == address {
					found = p
				}
			}
			return found.Decision.ID != ""
		})
		return found
	}
	do(0, "circuit closed", "guard", "status")
	f.flood("fw-a", "198.18.1.1", 0, 100)
	p := proposed("198.18.1.1")
	do(0, "flush 198.18.1.1, unanswered entries only", "approvals", "list")
	do(1, `no proposal "nosuch" waits`, "approvals", "approve", "nosuch")
	unsigned := call{env: f.bus}
	if r := unsigned.run(t, "ctfleet", "approvals", "approve", p.Decision.ID); r.code != 1 || !strings.Contains(r.stderr, "no responder has taken the answer") {
		t.Errorf("an unsigned answer: %+v", r)
	}
	do(0, "commanded: flush 198.18.1.1", "approvals", "approve", p.Decision.ID[:6], "--reason", "seen")
	until(t, "the entries to go", func() bool { n, err := f.lab.Firewall("fw-a").Entries(); return err == nil && n == 0 })

	f.flood("fw-a", "198.18.1.2", 0, 100)
	p = proposed("198.18.1.2")
	do(0, "denied: flush 198.18.1.2", "approvals", "deny", p.Decision.ID, "--reason", "the backup")
	do(0, "PREFIX", "allowlist")

	// The third within a minute opens the circuit.
	f.flood("fw-a", "198.18.1.3", 0, 100)
	until(t, "the circuit to open", func() bool { return f.run(t, "ctfleet", "guard").code == 3 })
	do(3, "by a responder: the budget of 2 addresses a minute is spent", "guard", "status")
	do(3, `"open":true`, "guard", "status", "-o", "json")
	until(t, "the alarm", func() bool {
		return strings.Contains(f.run(t, "ctfleet", "alerts").stdout, "circuit-open")
	})
	do(0, "the circuit is closed", "guard", "close", "--reason", "looked")
	do(0, "by operator: looked", "guard", "status")
	until(t, "the alarm to end", func() bool {
		return !strings.Contains(f.run(t, "ctfleet", "alerts").stdout, "circuit-open")
	})
	do(0, "the circuit is open", "guard", "open")
	if n, err := f.lab.Firewall("fw-a").Entries(); err != nil || n != 200 {
		t.Errorf("%d entries, %v: want those of the address that was denied, and of the one over the budget", n, err)
	}

	all := do(0, "", "audit", "list", "--trust", f.trust).stdout
	for _, want := range []string{
		"a responder began, mode approve, policies: 1",
		"proposed: flush 198.18.1.1, unanswered entries only on fw-a (approve)",
		"approved flush 198.18.1.1, unanswered entries only on fw-a",
		"operator: seen", "NOT VERIFIED (it is not signed): ",
		"commanded: flush 198.18.1.1", "matched 100, deleted 100",
		"denied: flush 198.18.1.2", "operator: the backup",
		"opened: the budget of 2 addresses a minute is spent", "simulated: flush 198.18.1.3",
		"closes the circuit", "operator: looked",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("the audit does not say %q:\n%s", want, all)
		}
	}
}

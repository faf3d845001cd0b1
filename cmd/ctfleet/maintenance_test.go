//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestMaintenance mutes a firewall, ends that, and takes it out of the fleet and back.
func TestMaintenance(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator()
	p := f.producer("fw-a")
	f.key("mallory", "--role", "operator", "--verbs", "flush")
	do := func(want int, args ...string) string {
		t.Helper()
		r := f.run(t, "ctfleet", append([]string{"firewalls"}, args...)...)
		if r.code != want {
			t.Errorf("firewalls %v: %+v, want exit code %d", args, r, want)
		}
		return r.stderr + r.stdout
	}
	until(t, "the firewall", func() bool { return len(f.firewalls()) == 1 })
	if said := do(1, "mute", "fw-a", "--for", "1h"); !strings.Contains(said, "no responder has confirmed it") {
		t.Error(said)
	}
	f.responder("mode: observe\n")
	do(2, "mute", "fw-a")
	do(2, "mute", "fw-a", "--for", "721h")
	do(2, "mute", "fleet", "--for", "1h")
	do(1, "mute", "fw-x", "--for", "1h")
	do(1, "mute", "fw-a", "--for", "1h", "--sign-key", f.seed("mallory"))
	do(0, "mute", "fw-a", "--for", "1h", "--reason", "new disk")
	if list := do(0, "list"); !strings.Contains(list, "muted-until-") {
		t.Error(list)
	}
	do(0, "unmute", "fw-a")
	until(t, "it to be heard again", func() bool { return f.firewalls()[0].MutedUntil == 0 })
	do(0, "mute", "fw-a", "--for", "0")

	if said := do(3, "forget", "fw-a"); !strings.Contains(said, "fw-a is fresh") {
		t.Error(said)
	}
	do(1, "forget", "fw-x")
	p.stop()
	until(t, "the good-bye", func() bool { return f.firewalls()[0].State == events.StateStopped })
	do(0, "forget", "fw-a", "--reason", "sold")
	if left := f.firewalls(); len(left) != 0 {
		t.Errorf("still known: %+v", left)
	}
	f.producer("fw-a")
	until(t, "it to be back", func() bool { return len(f.firewalls()) == 1 })

	var acts []string
	for _, e := range parse[audit.List](t, f.run(t, "ctfleet", "audit", "list", "-o", "json").stdout).Entries {
		if e.Act != nil && e.Actor == events.ActorOperator {
			acts = append(acts, strings.TrimSpace(e.Act.Who+" "+e.Act.What+" "+e.Act.Reason))
		}
	}
	want := "operator mutes fw-a for 1h0m0s\nmutes fw-a for 1h0m0s\noperator mutes fw-a for 1h0m0s new disk\noperator unmutes fw-a\noperator unmutes fw-a\noperator forgets fw-a sold"
	if got := strings.Join(acts, "\n"); got != want {
		t.Errorf("the audit says\n%s\nwant\n%s", got, want)
	}
}

package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/demo"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestDemoRecording plays the recording, on any system: the alert fires, the flush is
// simulated, and nobody could take it for more.
func TestDemoRecording(t *testing.T) {
	t.Parallel()
	p := call{}.start(t, "ctfleet", "demo", "--recording", "--duration", "10s", "-o", "json")
	nats := p.says(&p.stderr, `--nats-url (nats://[0-9.:]+)`)
	var fleet []events.FirewallStatus
	p.until("all three firewalls to report", func() bool {
		r := call{env: []string{"NATS_URL=" + nats}}.run(t, "ctfleet", "firewalls", "list", "-o", "json")
		if r.code == 0 { // otherwise nobody answers yet
			fleet = parse[events.FirewallsReply](t, r.stdout).Firewalls
		}
		return len(fleet) == 3
	})
	for i := range fleet {
		if fleet[i].Source != "replay" {
			t.Errorf("%s: source %q, want replay", fleet[i].Firewall, fleet[i].Source)
		}
	}
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	stamped := 0
	for line := range strings.Lines(p.stderr.String()) {
		if !strings.Contains(line, "s  ") {
			continue
		}
		if stamped++; !strings.Contains(line, "RECORDING") {
			t.Errorf("a line that does not say that it is of a recording: %s", line)
		}
	}
	if stamped < 3 {
		t.Errorf("only %d lines with a time:\n%s", stamped, p.stderr.String())
	}
	if !strings.HasPrefix(p.stderr.String(), "RECORDING, ") {
		t.Errorf("the header does not say that it is a recording:\n%s", p.stderr.String())
	}
	if !strings.HasPrefix(p.stdout.String(), `{"recording":true,"why":"--recording was given",`) {
		t.Errorf("the result does not begin with what it is of: %s", p.stdout.String())
	}
	r := parse[demo.Result](t, p.stdout.String())
	if r.Lost != 0 || len(r.Alerts) != 1 || r.Alerts[0].Value != 2002 || len(r.Receipts) != 0 || len(r.Problems) != 0 {
		t.Errorf("result: %+v", r)
	}
	if len(r.Simulated) != 1 || !slices.Equal(r.Simulated[0].Firewalls, []string{"fw-a", "fw-b"}) || r.Simulated[0].Address != "198.18.66.2" {
		t.Errorf("simulated: %+v", r.Simulated)
	}
}

//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestKeysOfPersons: a viewer sees counts and alerts, an analyst also events and the audit; neither does
// anything, and each is told at once what his key is not for.
func TestKeysOfPersons(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.trespass = true
	f.bootstrap()
	f.producer("fw-a", "--allow-flush")
	f.aggregator("--rules", file(t, "rules.yaml", fleetRules))
	viewer, analyst := call{env: f.as("viewer")}, call{env: f.as("analyst")}

	watch := viewer.start(t, "ctfleet", "alerts", "watch", "-o", "json")
	seen := analyst.start(t, "ctfleet", "observe", "--since", "1m", "--follow", "-o", "json")
	f.flood("fw-a", attacker, 0, 700)
	f.becomes(topAnswer{By: "src", Metric: "new", WindowS: 60, Scope: "fleet", Rows: []topRow{{attacker, 700, map[string]uint64{"fw-a": 700}}}}, "--window", "60s")
	watch.until("the alert", func() bool { return strings.Contains(watch.stdout.String(), `"key":"`+attacker) })
	seen.until("the events", func() bool { return strings.Contains(seen.stdout.String(), attacker) })

	for _, c := range []struct {
		who  call
		args string
		code int
		says string
	}{
		{viewer, "top --once --window 60s", 0, attacker},
		{viewer, "firewalls list", 0, "fw-a"},
		{viewer, "alerts list", 0, attacker},
		{viewer, "audit list", 1, "does not permit"},
		{viewer, "observe --last 1", 1, "does not permit"},
		{viewer, "alerts watch --since 1m", 1, "does not permit"},
		{viewer, "flush " + attacker + " --yes", 1, "does not permit"},
		{viewer, "bootstrap", 1, "does not permit"},
		{analyst, "observe --last 1", 0, "fw-a"},
		{analyst, "audit list", 0, ""},
		{analyst, "flush " + attacker + " --yes --firewall fw-a", 1, "does not permit"},
		{analyst, "allowlist list", 1, "does not permit"},
		{analyst, "resync fw-a", 1, "does not permit"},
		{f.call, "bootstrap", 1, "does not permit"},
	} {
		begin := time.Now()
		r := c.who.run(t, "ctfleet", strings.Fields(c.args)...)
		if took := time.Since(begin); took > 3*time.Second {
			t.Errorf("%s took %s", c.args, took)
		}
		if r.code != c.code || !strings.Contains(r.stdout+r.stderr, c.says) {
			t.Errorf("%s: %+v, want exit code %d and %q", c.args, r, c.code, c.says)
		}
	}
	until(t, "the entries to be there still", func() bool { return f.firewalls()[0].Table.Count >= 700 })
}

// TestReplyIsNoInbox: who may only ask names the subject of an alert, and that of a command, as where the
// answer shall go: the aggregator may publish on the first, and does not.
func TestReplyIsNoInbox(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	agg, _ := f.aggregator()
	viewer := f.connection("viewer")
	for _, subject := range []string{"ct.v1.alerts.firing.forged.fleet.203-0-113-7", "ct.v1.cmd.fw-a.resync", "ct.v1.pace"} {
		if err := viewer.NC.PublishRequest(events.QuerySubject(events.QueryFirewalls), subject, []byte("\x80")); err != nil {
			t.Fatal(err)
		}
	}
	agg.says(&agg.stderr, `(its reply subject is no inbox)`)
	// One that is answered came after those.
	if err := viewer.Request(t.Context(), events.QuerySubject(events.QueryFirewalls), &events.FirewallsQuery{}, &events.FirewallsReply{}); err != nil {
		t.Fatal(err)
	}
	if st, err := f.conn.State(t.Context(), bus.StreamAlerts); err != nil || st.LastSeq != 0 {
		t.Errorf("an alert was forged: %+v %v", st, err)
	}
}

// TestDeployedChecks: with what auth init makes, --check of each daemon finds nothing that keeps it from working,
// before it runs and while it does.
func TestDeployedChecks(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	check := func(want int, says, program, who string, args ...string) {
		t.Helper()
		r := f.with(f.as(who)...).run(t, program, append(args, "--check")...)
		if r.code != want || strings.Contains(r.stdout, "FATAL") != (want != 0) || !strings.Contains(r.stdout, says) {
			t.Errorf("%s --check: exit code %d, want %d and %q:\n%s%s", program, r.code, want, says, r.stdout, r.stderr)
		}
	}
	producer := []string{"--name", "fw-a", "--netns", f.lab.Firewall("fw-a").NS.Path()}
	check(1, "ctfleet bootstrap", "responder", "responder", "--sign-key", f.seed("responder"), "--trust", f.trust)
	f.bootstrap()
	for range 2 {
		check(0, "ok", "aggregator", "aggregator", "--rules", "../../deploy/rules.yaml", "--listen", "127.0.0.1:0")
		check(0, "ok", "responder", "responder", "--policy", "../../deploy/policy.yaml", "--sign-key", f.seed("responder"), "--trust", f.trust)
		check(0, "ok", "producer", "firewalls/fw-a", producer...)
		f.aggregator()
		f.responder("mode: observe\n")
		f.producer("fw-a")
	}
	// Another firewall's name is one that this key may not use.
	f.trespass = true
	check(1, "ct.v1.events.fw-b", "producer", "firewalls/fw-a", append([]string{"--name", "fw-b"}, producer[2:]...)...)
	if r := f.run(t, "ctfleet", "version", "--fleet", "-o", "json"); r.code != 0 || strings.Count(r.stdout, `"role":`) < 3 {
		t.Errorf("version --fleet: %+v", r)
	}
}

func TestAuthCommands(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "fleet")
	do := func(code int, says string, args ...string) {
		t.Helper()
		r := call{}.run(t, "ctfleet", append([]string{"auth"}, args...)...)
		if r.code != code || !strings.Contains(r.stdout+r.stderr, says) {
			t.Errorf("auth %q: %+v, want exit code %d and %q", args, r, code, says)
		}
	}
	do(1, "identities.yaml is not there: ctfleet auth init makes it", "add-firewall", "fw1", "--dir", t.TempDir())
	do(2, `--owner: there is no service "nat"; there are: nats`, "init", dir, "--owner", "nat=1")
	do(2, `--owner: nats: "x" is not UID or UID:GID`, "init", dir, "--owner", "nats=x")
	do(0, "Next: ctfleet auth add-firewall NAME", "init", dir)
	do(1, "it holds the keys of a fleet already: --force", "init", dir)
	do(0, "nothing was changed", "init", dir, "--if-missing")
	do(2, "not allowed", "add-firewall", "Fw 1", "--dir", dir)
	do(2, "reserved", "add-firewall", "fleet", "--dir", dir)
	do(0, "export NATS_URL='tls://localhost:4222'\nexport NATS_NKEY='"+dir+"/operator/nats.nk'\n", "env", "operator", "--dir", dir)
	do(0, "export NATS_URL='tls://other:1'\n", "env", "viewer", "--dir", dir, "--nats-url", "tls://other:1")
	do(2, `there is no "nobody"; there are: system, bootstrap`, "env", "nobody", "--dir", dir)
	do(0, "take it to fw1", "add-firewall", "fw1", "--dir", dir)
	do(0, "send it SIGHUP", "add-firewall", "fw2", "--dir", dir, "--realm", "lis1")
	do(1, "--force gives it another key", "add-firewall", "fw2", "--dir", dir)
	do(1, "there are: fw1, fw2", "revoke-firewall", "fw3", "--dir", dir)
	do(0, "opens nothing any more", "revoke-firewall", "fw2", "--dir", dir)
	do(1, "connect to NATS at", "reload", "--dir", dir, "--nats-url", "tls://127.0.0.1:1")
	do(2, "--nats-url: where the servers are is needed", "reload", "--dir", dir)

	// The producer reads what was made for it; the paths are those on the firewall.
	made := filepath.Join(dir, "firewalls", "fw1")
	text, err := os.ReadFile(filepath.Join(made, "producer.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	local := file(t, "producer.yaml", strings.ReplaceAll(string(text), "/etc/ctfleet", made))
	if r := (call{}).run(t, "producer", "--config", local, "--check"); !strings.Contains(r.stdout, "name fw1, realm default") || !strings.Contains(r.stdout, "2 keys of") {
		t.Errorf("producer --check: %+v", r)
	}
}

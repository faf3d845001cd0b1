//go:build linux

package main

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestFleet is the whole path with every role a process of its own: capture,
// count, alert, flush, receipt; and every question that an operator can ask on
// the way.
func TestFleet(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a", "fw-b")
	bootstrap := f.with(f.as("bootstrap")...)
	if r := bootstrap.run(t, "ctfleet", "bootstrap", "-o", "json"); r.code != 0 || strings.Count(r.stdout, "CT_") != 8 {
		t.Fatalf("bootstrap: %+v", r)
	}
	if r := bootstrap.run(t, "ctfleet", "bootstrap", "-o", "json"); r.code != 0 || r.stdout != `{"changed":[]}`+"\n" {
		t.Fatalf("bootstrap again: %+v", r)
	}

	pa, pb := f.producer("fw-a", "--allow-flush", "--label", "site=lis1"), f.producer("fw-b", "--allow-flush", "--log-format", "json")
	agg, api := f.aggregator("--rules", file(t, "rules.yaml", fleetRules))
	resp := f.responder(fleetPolicy)
	watch := f.start(t, "ctfleet", "alerts", "watch", "--since", "10s", "-o", "json")

	// Below the threshold on each firewall, above it together.
	f.flood("fw-a", ordinary, 0, 100)
	f.flood("fw-b", ordinary, 0, 40)
	f.flood("fw-a", attacker, 0, 300)
	f.flood("fw-b", attacker, 0, 300)
	fleetTop := topAnswer{By: "src", Metric: "new", WindowS: 60, Scope: "fleet", Rows: []topRow{
		{attacker, 600, map[string]uint64{"fw-a": 300, "fw-b": 300}}, {ordinary, 140, map[string]uint64{"fw-a": 100, "fw-b": 40}},
	}}
	f.becomes(fleetTop, "--window", "60s")
	f.becomes(topAnswer{By: "src", Metric: "new", WindowS: 60, Scope: "fw-b", Rows: []topRow{
		{attacker, 300, map[string]uint64{"fw-b": 300}}, {ordinary, 40, map[string]uint64{"fw-b": 40}},
	}}, "--window", "60s", "--firewall", "fw-b")
	if byDst := f.top("--window", "60s", "--by", "dst", "--limit", "3"); len(byDst.Rows) != 3 || byDst.Rows[0].Value != 74 {
		t.Errorf("by destination: %+v", byDst) // 740 flows to 10 destinations in turn
	}
	if r := f.run(t, "ctfleet", "top", "--once", "--window", "60s"); r.code != 0 || !strings.Contains(r.stdout, attacker) {
		t.Errorf("top for a person: %+v", r)
	}
	if r := f.run(t, "ctfleet", "top", "--once", "--window", "60s", "-o", "raw"); r.stdout != "ADDRESS\tFLOWS\tFIREWALLS\n"+attacker+"\t600\tfw-a=300 fw-b=300\n"+ordinary+"\t140\tfw-a=100 fw-b=40\n" {
		t.Errorf("top, raw: %q", r.stdout)
	}

	// The alert fires, the responder has both tables flushed, and nothing else.
	var alert events.Alert
	watch.until("the alert", func() bool {
		line, _, found := strings.Cut(watch.stdout.String(), "\n")
		if found {
			alert = parse[events.Alert](t, line)
		}
		return found
	})
	if alert.State != events.Firing || alert.Rule != "new-flows-by-source" || alert.Key != attacker || alert.Scope != "fleet" || alert.Severity != "critical" ||
		alert.Value < 600 || alert.Count != 600 || alert.Lossy || alert.Stale {
		t.Errorf("the alert: %+v", alert)
	}
	f.becomes(topAnswer{By: "src", Metric: "active", Scope: "fleet", Rows: []topRow{{ordinary, 140, map[string]uint64{"fw-a": 100, "fw-b": 40}}}}, "--metric", "active")
	list := parse[struct{ Alerts []events.Alert }](t, f.run(t, "ctfleet", "alerts", "list", "-o", "json").stdout)
	if len(list.Alerts) != 1 || list.Alerts[0].ID != alert.ID {
		t.Errorf("alerts list: %+v", list)
	}
	if r := f.run(t, "ctfleet", "alerts", "inspect", alert.ID); r.code != 0 || !strings.Contains(r.stdout, "198.18.66.1 opened 600 flows within 60 s in the fleet, threshold 600, through 2 firewalls") {
		t.Errorf("alerts inspect: %+v", r)
	}
	if r := f.run(t, "ctfleet", "alerts", "inspect", "nosuch"); r.code != 1 || !strings.Contains(r.stderr, `no alert "nosuch" is firing`) {
		t.Errorf("alerts inspect of none: %+v", r)
	}

	t.Run("audit", func(t *testing.T) {
		verbs := map[string]int{}
		var entries []audit.Entry
		until(t, "what came back to be recorded", func() bool { // 2 s after the flush
			r := f.run(t, "ctfleet", "audit", "list", "-o", "json", "--address", attacker)
			entries = parse[struct{ Entries []audit.Entry }](t, r.stdout).Entries
			clear(verbs)
			for _, e := range entries {
				verbs[e.Actor+" "+e.Verb]++
			}
			return verbs["fw-a residual"]+verbs["fw-b residual"] == 2
		})
		want := map[string]int{"responder decision": 1, "fw-a flush": 1, "fw-b flush": 1, "fw-a residual": 1, "fw-b residual": 1}
		if !maps.Equal(verbs, want) {
			t.Errorf("audit: %v, want %v", verbs, want)
		}
		for _, e := range entries {
			switch {
			case e.Decision != nil:
				if e.Decision.Outcome != events.OutcomeCommanded || e.Decision.Mode != "enforce" || !slices.Equal(e.Decision.Firewalls, []string{"fw-a", "fw-b"}) {
					t.Errorf("decision: %+v", e.Decision)
				}
			case e.Receipt.Deleted != 300 || e.Receipt.Alert != alert.ID || e.Receipt.Actor != events.ActorResponder || e.Receipt.Who != "responder":
				t.Errorf("receipt: %+v", e.Receipt)
			case e.Verb == events.VerbResidual && (e.Receipt.Residual == nil || *e.Receipt.Residual != 0):
				t.Errorf("residual: %+v", e.Receipt)
			}
		}
		if r := f.run(t, "ctfleet", "audit", "list", "--firewall", "fw-b"); r.code != 0 || !strings.Contains(r.stdout, "198.18.66.1: matched 300, deleted 300, gone 0") || strings.Contains(r.stdout, "fw-a  flush") {
			t.Errorf("audit for a person: %+v", r)
		}
	})

	t.Run("flush", func(t *testing.T) { f.testFlush(t) })
	t.Run("flush at a terminal", func(t *testing.T) { f.testFlushAsks(t) })
	t.Run("firewalls", func(t *testing.T) { f.testFirewalls(t) })
	t.Run("decode", func(t *testing.T) { f.testDecode(t) })
	t.Run("http", func(t *testing.T) { f.testHTTP(t, api, pa, resp) })

	// A clean stop announces itself, and loses nothing.
	f.flood("fw-a", "198.18.3.3", 0, 50)
	for _, p := range []*process{pa, pb, resp} {
		p.stop()
	}
	for _, fw := range f.firewalls() {
		if fw.State != events.StateStopped || fw.Lost != 0 || fw.Missing != 0 {
			t.Errorf("%s after its stop: %s, lost %d, missing %d", fw.Firewall, fw.State, fw.Lost, fw.Missing)
		}
	}
	if rows := f.top("--window", "60s").Rows; len(rows) != 7 || rows[2].Key != "198.18.3.3" || rows[2].Value != 50 {
		t.Errorf("after the stop: %+v", rows)
	}
	agg.stop()
	watch.stop()
	if r := f.run(t, "ctfleet", "top", "--once"); r.code != 1 || !strings.Contains(r.stderr, "is the aggregator running?") {
		t.Errorf("top without an aggregator: %+v", r)
	}
}

func (f *fleet) firewalls() []events.FirewallStatus {
	f.t.Helper()
	r := f.run(f.t, "ctfleet", "firewalls", "-o", "json")
	if r.code != 0 {
		f.t.Fatalf("firewalls: %+v", r)
	}
	return parse[events.FirewallsReply](f.t, r.stdout).Firewalls
}

func (f *fleet) testFlush(t *testing.T) {
	deleted := func(args ...string) (string, int) {
		t.Helper()
		r := f.run(t, "ctfleet", append([]string{"flush", "-o", "json"}, args...)...)
		a := parse[receiptsAnswer](t, r.stdout)
		var s []string
		for _, x := range a.Receipts {
			s = append(s, fmt.Sprintf("%s %d/%d %v", x.Firewall, x.Deleted, x.Matched, x.Refused))
			if x.Gone == nil || x.DurationMS == nil || x.TCPLoose == nil || a.ID == "" {
				t.Errorf("flush %q: a key is missing: %s", args, r.stdout)
			}
		}
		return strings.Join(s, ", "), r.code
	}
	f.flood("fw-a", "198.18.2.2", 0, 30)
	f.flood("fw-a", "2001:db8:18::7", 0, 20)
	f.flood("fw-a", "2001:db8:18::8", 0, 10)
	for _, c := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{ordinary, "--dry-run"}, "fw-a 0/100 [], fw-b 0/40 []", 0},
		{[]string{ordinary, "--dry-run"}, "fw-a 0/100 [], fw-b 0/40 []", 0}, // the first one deleted nothing
		{[]string{"198.18.2.2", "-y", "--firewall", "fw-b"}, "fw-b 0/0 []", 0},
		{[]string{"198.18.2.2", "-y", "--firewall", "fw-a", "--firewall", "fw-a"}, "fw-a 30/30 []", 0},
		{[]string{"203.0.113.0", "-y", "--by", "dst", "--firewall", "fw-b"}, "fw-b 4/4 []", 0},
		{[]string{"198.18.1.0/24", "--yes", "--reason", "a test"}, "fw-a 100/100 [], fw-b 36/36 []", 0},
		{[]string{"198.18.1.0/24", "-y"}, "fw-a 0/0 [], fw-b 0/0 []", 0},
		{[]string{"2001:db8:18::7", "-y", "--firewall", "fw-a"}, "fw-a 20/20 []", 0},
		{[]string{"2001:db8:18::/64", "-y"}, "fw-a 10/10 [], fw-b 0/0 []", 0},
		{[]string{"2001:db8::/32", "-y", "--firewall", "fw-a"}, "fw-a 0/0 [{prefix-too-wide 0}]", 3},
		{[]string{"0.0.0.0/0", "-y"}, "fw-a 0/0 [{prefix-too-wide 0}], fw-b 0/0 [{prefix-too-wide 0}]", 3},
		{[]string{"::/0", "-y", "--firewall", "fw-a"}, "fw-a 0/0 [{prefix-too-wide 0}]", 3},
		{[]string{"127.0.0.1", "-y", "--firewall", "fw-a"}, "fw-a 0/0 [{protected 0}]", 3},
		{[]string{"198.18.2.2", "-y", "--firewall", "fw-a", "--firewall", "nosuch"}, "fw-a 0/0 [], nosuch 0/0 []", 1},
	} {
		if got, code := deleted(c.args...); got != c.want || code != c.code {
			t.Errorf("flush %q: %s, exit code %d, want %s, exit code %d", c.args, got, code, c.want, c.code)
		}
	}
	r := f.run(t, "ctfleet", "flush", "0.0.0.0/0", "-y")
	if r.code != 3 || !strings.Contains(r.stdout, "0.0.0.0/0 is wider than /24, the widest that is allowed here") {
		t.Errorf("flush of everything, for a person: %+v", r)
	}
	if r := f.run(t, "ctfleet", "flush", ordinary); r.code != 2 || !strings.Contains(r.stderr, "give --yes, or --dry-run") {
		t.Errorf("flush without --yes and without a terminal: %+v", r)
	}
	if r := f.run(t, "ctfleet", "flush", ordinary, "-y", "--realm", "nosuch"); r.code != 1 || !strings.Contains(r.stderr, `no firewall of realm "nosuch" is known`) {
		t.Errorf("flush in a realm that nobody is in: %+v", r)
	}
	if r := f.run(t, "ctfleet", "audit", "list", "-o", "raw", "--address", "198.18.1.0/24"); strings.Count(r.stdout, "operator (operator): a test") < 2 {
		t.Errorf("the reason of a flush is not in the audit:\n%s", r.stdout)
	}
}

// testFlushAsks sits at a terminal: the dry run is shown, and nothing but a yes
// deletes.
func (f *fleet) testFlushAsks(t *testing.T) {
	f.flood("fw-b", "198.18.4.4", 0, 25)
	for _, c := range []struct {
		typed string // "" is Ctrl-C
		code  int
		says  string
	}{
		{"n\n", 1, "nothing was deleted"},
		{"\n", 1, "nothing was deleted"},
		{"\x04", 1, "nothing was deleted"}, // end of input
		{"", 1, "nothing was deleted"},
		{"y\n", 0, ""},
	} {
		keyboard, tty := openTerminal(t)
		p := f.startWith(t, tty, "ctfleet", "flush", "198.18.4.4", "--firewall", "fw-b", "-o", "json")
		p.says(&p.stderr, `fw-b +25 +0 +0 .*dry run: nothing was deleted\s+(Delete these entries of 198.18.4.4 on 1 firewalls\? \[y/N\])`)
		if c.typed == "" {
			if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
				t.Fatal(err)
			}
		} else if _, err := keyboard.WriteString(c.typed); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.ended:
		case <-time.After(stopTime):
			t.Fatalf("after %q it still waits", c.typed)
		}
		if code := p.cmd.ProcessState.ExitCode(); code != c.code || !strings.Contains(p.stderr.String(), c.says) || (c.code == 0) != strings.Contains(p.stdout.String(), `"deleted":25`) {
			t.Errorf("after %q: exit code %d, want %d:\n%s%s", c.typed, code, c.code, p.stdout.String(), p.stderr.String())
		}
	}
}

func (f *fleet) testFirewalls(t *testing.T) {
	before := f.firewalls()
	r := f.run(t, "ctfleet", "resync", "fw-a", "-o", "json")
	if r.code != 0 || !strings.Contains(r.stdout, `"firewall":"fw-a","accepted":true`) || strings.Contains(r.stdout, "fw-b") {
		t.Errorf("resync: %+v", r)
	}
	var now []events.FirewallStatus
	until(t, "the resync", func() bool { now = f.firewalls(); return now[0].Stream.Resyncs > before[0].Stream.Resyncs })
	if len(now) != 2 {
		t.Fatalf("%d firewalls, want 2", len(now))
	}
	for i, fw := range now {
		if fw.Firewall != []string{"fw-a", "fw-b"}[i] || fw.Realm != "default" || fw.State != events.StateFresh || fw.Lost+fw.Missing+fw.Refused != 0 ||
			!fw.ActiveKnown || fw.Rivals || !fw.AllowFlush || fw.Table.Limit == 0 || fw.Version == "" {
			t.Errorf("%s: %+v", fw.Firewall, fw)
		}
	}
	if now[0].Labels["site"] != "lis1" {
		t.Errorf("labels of fw-a: %v", now[0].Labels)
	}
	if r := f.run(t, "ctfleet", "firewalls", "inspect", "fw-a"); r.code != 0 || !strings.Contains(r.stdout, "0 in the socket, 0 in the ring, 0 at the bus") {
		t.Errorf("firewalls inspect: %+v", r)
	}
	if r := f.run(t, "ctfleet", "firewalls"); r.code != 0 || strings.Count(r.stdout, "fresh") != 2 {
		t.Errorf("firewalls for a person: %+v", r)
	}
	if r := f.run(t, "ctfleet", "resync", "nosuch"); r.code != 1 || !strings.Contains(r.stderr, "nosuch: its producer is not connected") {
		t.Errorf("resync of nobody: %+v", r)
	}
	if r := f.run(t, "ctfleet", "firewalls", "inspect", "nosuch"); r.code != 1 || !strings.Contains(r.stderr, `no firewall "nosuch" is known`) {
		t.Errorf("firewalls inspect of nobody: %+v", r)
	}
}

// testDecode reads what is really on the bus.
func (f *fleet) testDecode(t *testing.T) {
	seen := 0
	for _, m := range f.stored(bus.StreamEvents) {
		r := call{stdin: m.Data}.run(t, "ctfleet", "decode")
		b := parse[decodedBatch](t, r.stdout)
		if r.code != 0 || len(b.Events) == 0 || b.Realm != "default" || "ct.v1.events."+b.Firewall != m.Subject {
			t.Fatalf("batch: %+v", r)
		}
		for _, e := range b.Events {
			if e.Type == "NEW" && e.Src == attacker && e.DstPort == 53 && e.Proto == 17 && strings.HasPrefix(e.Dst, "203.0.113.") {
				seen++
			}
		}
		if seen >= 300 {
			break // a process per batch: enough is enough
		}
	}
	if seen < 300 {
		t.Errorf("%d of the attacker's flows are in the batches, want at least 300", seen)
	}
	// Every other message is a map that reads as JSON.
	kinds := map[string]bool{}
	for _, stream := range []string{bus.StreamLast, bus.StreamAudit, bus.StreamAlerts, bus.StreamSnapshots} {
		for _, m := range f.stored(stream) {
			if _, err := decoded(t, m.Data); err != nil {
				t.Errorf("%s: %v", m.Subject, err)
			}
			kinds[strings.Split(m.Subject, ".")[2]] = true
		}
	}
	for _, kind := range []string{"health", "pace", "audit", "alerts", "snapshots"} {
		if !kinds[kind] {
			t.Errorf("no message of %s to decode", kind)
		}
	}
	alerts := f.stored(bus.StreamAlerts)
	r := call{stdin: alerts[0].Data}.run(t, "ctfleet", "decode")
	if a := parse[events.Alert](t, r.stdout); r.code != 0 || a.Key != attacker || a.Rule != "new-flows-by-source" {
		t.Errorf("alert: %+v", r)
	}
}

func (f *fleet) testHTTP(t *testing.T, api string, producer, responder *process) {
	for path, want := range map[string]string{
		"/api/v1/top?window=60&limit=1": `"key":"` + attacker + `","value":600`,
		"/api/v1/firewalls":             `"firewall":"fw-b"`,
		"/api/v1/alerts":                `"rule":"new-flows-by-source"`,
		"/api/v1/addresses/" + attacker: `"value":600,"firewalls":{"fw-a":300,"fw-b":300}`,
		"/api/v1/audit":                 `"verb":"decision"`,
		"/metrics":                      "\nctfleet_",
		"/healthz":                      "ok",
		"/readyz":                       "ready",
		"/api/v1/":                      "/api/v1/top",
		"/":                             "<title>ctfleet</title>",
	} {
		if code, body := get(t, api+path); code != 200 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %s:\n%s", path, code, want, body)
		}
	}
	for path, want := range map[string]string{
		"/api/v1/top?window=7":  `"detail":"window 7s is not kept, these are: 10s, 60s"}`,
		"/api/v1/top?windw=10":  `unknown parameter \"windw\"`,
		"/api/v1/top?window=-5": `"detail":"window_s: `,
		"/api/v1/top?by=source": `\"source\" is none of`,
	} {
		if code, body := get(t, api+path); code != 400 || !strings.Contains(body, want) {
			t.Errorf("%s: %d, without %s:\n%s", path, code, want, body)
		}
	}
	// A web page that points its own name at loopback gets nothing.
	if code, body := getAs(t, "rebound.example", api+"/api/v1/top"); code != http.StatusMisdirectedRequest {
		t.Errorf("a foreign Host header: %d %s", code, body)
	}
	metrics := func(p *process) string {
		_, body := get(t, p.says(&p.stderr, `msg=metrics url=(http://[0-9.:]+)`)+"/metrics")
		return body
	}
	if body := metrics(producer); !strings.Contains(body, `ctfleet_socket_lost_events_total{firewall="fw-a"} 0`) || !strings.Contains(body, `ctfleet_flushed_entries_total{firewall="fw-a"} 460`) {
		t.Errorf("metrics of fw-a: %s", body)
	}
	if body := metrics(responder); !strings.Contains(body, `ctfleet_decisions_total{outcome="commanded"} 1`) {
		t.Errorf("metrics of the responder: %s", body)
	}
}

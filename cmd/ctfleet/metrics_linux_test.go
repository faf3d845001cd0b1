package main

import (
	"io/fs"
	"maps"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/reference"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// onRequest is exported where it is asked for, since it has addresses.
const onRequest = "ctfleet_top_flows"

// TestMetricsTop: as many addresses are exported as were asked for, the largest, and
// not one more.
func TestMetricsTop(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a")
	f.producer("fw-a")
	_, api := f.aggregator("--metrics-top", "2")
	f.flood("fw-a", "198.18.5.5", 0, 30)
	f.flood("fw-a", "198.18.5.6", 0, 20)
	f.flood("fw-a", "198.18.5.7", 0, 10)
	var top []string
	until(t, "the largest", func() bool {
		_, body := get(t, api+"/metrics")
		top = regexp.MustCompile(`(?m)^ctfleet_top_flows\{.*`).FindAllString(body, -1)
		return len(top) == 8 && slices.Contains(top, `ctfleet_top_flows{address="198.18.5.5",by="src",metric="active",realm="default"} 30`) &&
			slices.Contains(top, `ctfleet_top_flows{address="198.18.5.6",by="src",metric="new",realm="default"} 20`)
	})
	if strings.Contains(strings.Join(top, "\n"), "198.18.5.7") {
		t.Errorf("more than the largest: %q", top)
	}
	for _, n := range []string{"-1", "101"} {
		if r := f.run(t, "aggregator", "--metrics-top="+n, "--nats-url", "nats://127.0.0.1:1"); r.code != 2 || !strings.Contains(r.stderr, "is not within 0 to 100") {
			t.Errorf("--metrics-top %s: %+v", n, r)
		}
	}
}

// TestMetrics: what the daemons export is what the reference names, no more and no
// less; what is deployed for Prometheus and Grafana, and every other page, use nothing
// else; and no traffic adds a series.
func TestMetrics(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a")
	producer := f.producer("fw-a", "--allow-flush")
	_, api := f.aggregator("--rules", file(t, "rules.yaml", fleetRules), "--history", filepath.Join(t.TempDir(), "history.db"))
	responder := f.responder("mode: observe\npolicies:\n  - {rule: new-flows-by-source, action: flush, unanswered: delete}\n", "--alertmanager", "http://"+freePort(t), "--webhook", "http://"+freePort(t))
	urls := map[string]string{
		"aggregator": api, "producer": producer.says(&producer.stderr, `msg=metrics url=(http://[0-9.:]+)`), "responder": responder.says(&responder.stderr, `msg=metrics url=(http://[0-9.:]+)`),
	}
	bodies := map[string]string{}
	scrape := func() map[string]bool {
		all := map[string]bool{}
		for daemon, url := range urls {
			code, body := get(t, url+"/metrics")
			if code != 200 {
				t.Fatalf("%s/metrics: %d %s", url, code, body)
			}
			bodies[daemon] = body
			maps.Copy(all, series(body))
		}
		return all
	}
	names := func(series map[string]bool) map[string]bool {
		out := map[string]bool{}
		for s := range series {
			name, _, _ := strings.Cut(s, "{")
			out[name] = true
		}
		return out
	}

	// What a rule watches for a rise has to be there before it rises.
	for _, s := range []string{
		`ctfleet_decisions_total{outcome="failed"}`, `ctfleet_notify_total{result="failed",target="webhook"}`, `ctfleet_notify_total{result="ok",target="alertmanager"}`,
		`ctfleet_firewall_stopped{firewall="fw-a"}`, `ctfleet_unrecorded_receipts_total{firewall="fw-a"}`, `ctfleet_history_dropped_total`, `ctfleet_alerts_dropped_total`,
	} {
		until(t, s, func() bool { return scrape()[s] })
	}

	// What counts by reason shows when there is one: an alert, a refusal, and messages
	// that nobody can read.
	f.flood("fw-a", attacker, 0, 600)
	until(t, "600 new flows", func() bool {
		_, body := get(t, api+"/metrics")
		return strings.Contains(body, "\nctfleet_new_flows_total{firewall=\"fw-a\"} 600\n")
	})
	if r := f.run(t, "ctfleet", "flush", "0.0.0.0/0", "--yes"); r.code != 3 {
		t.Errorf("a flush of everything: %+v", r)
	}
	nc, err := nats.Connect(f.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, subject := range []string{events.SubjectPace, events.HealthSubject("fw-a")} {
		if err := nc.Publish(subject, []byte("\xc1")); err != nil {
			t.Fatal(err)
		}
	}
	// What counts by kind is there once it has counted one.
	for _, name := range []string{"ctfleet_alerts_total", "ctfleet_flush_refused_total", "ctfleet_refused_messages_total", "ctfleet_aggregator_refused_messages_total", "ctfleet_responder_refused_messages_total"} {
		until(t, name, func() bool { return names(scrape())[name] })
	}
	const page = "../../docs/reference/metrics.md"
	documented := map[string]bool{}
	for _, name := range metricName.FindAllString(read(t, page), -1) {
		documented[name] = true
	}
	if !documented[onRequest] {
		t.Errorf("%s does not name %s", page, onRequest)
	}
	delete(documented, onRequest)
	var all, exported map[string]bool
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		all = scrape()
		if exported = names(all); missing(documented, exported) == nil || time.Now().After(deadline) {
			break
		}
	}
	if m := missing(documented, exported); m != nil && !*update {
		t.Errorf("%s names what is not exported: %q", page, m)
	}
	for daemon, body := range bodies {
		reference.Block(t, *update, page, "metrics of the "+daemon, "`go test ./cmd/ctfleet -run 'TestMetrics$' -update`", metricTable(body))
	}

	exported[onRequest] = true // see TestMetricsTop

	// Labels say who of the fleet, and which of a few kinds.
	labels := map[string]bool{}
	for s := range all {
		for _, l := range seriesLabel.FindAllStringSubmatch(s, -1) {
			labels[l[1]] = true
			_, notAddr := netip.ParseAddr(l[2])
			_, notPrefix := netip.ParsePrefix(l[2])
			if notAddr == nil || notPrefix == nil || dashed.MatchString(l[2]) {
				t.Errorf("an address in a label: %s", s)
			}
		}
	}
	bounded := map[string]bool{"firewall": true, "kind": true, "outcome": true, "reason": true, "result": true, "severity": true, "state": true, "target": true}
	if m := missing(labels, bounded); m != nil {
		t.Errorf("labels %q are new: say here that they are bounded", m)
	}
	rep, err := traffic.Flood{
		Protocol: 17, Sources: netip.MustParsePrefix("198.18.77.0/24"), Destinations: lab.ServerPrefix4, DestinationCount: 10, Port: 53, Count: 256,
	}.Run(t.Context(), f.lab.Firewall("fw-a"))
	if err != nil || rep.Lost != 0 {
		t.Fatalf("%+v: %v", rep, err)
	}
	until(t, "256 other sources to be counted", func() bool {
		n := 0
		for _, row := range f.top("--window", "60s", "--limit", "1000").Rows {
			if strings.HasPrefix(row.Key, "198.18.77.") {
				n++
			}
		}
		return n == 256
	})
	for _, s := range missing(scrape(), all) {
		if !strings.HasPrefix(s, "ctfleet_alerts_total{") { // one for each state and severity, as they come
			t.Errorf("256 sources added the series %s", s)
		}
	}

	t.Run("rules", func(t *testing.T) {
		var rules prometheusRules
		readYAML(t, filepath.Join(prometheusDir, "ctfleet.rules.yml"), &rules)
		known := maps.Clone(exported)
		known["up"] = true
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				known[r.Record] = true
			}
		}
		for _, g := range rules.Groups {
			for _, r := range g.Rules {
				for _, name := range metricsIn(r.Expr) {
					if !known[name] {
						t.Errorf("%s%s uses %s, which does not exist", r.Alert, r.Record, name)
					}
				}
			}
		}
	})
	t.Run("dashboard", func(t *testing.T) {
		for _, p := range readDashboard(t).Panels {
			for _, target := range p.Targets {
				for _, name := range metricsIn(target.Expr) {
					if !exported[name] {
						t.Errorf("%s uses %s, which does not exist", p.Title, name)
					}
				}
			}
		}
	})
	t.Run("pages", func(t *testing.T) {
		files := []string{"../../README.md", "../../CHANGELOG.md"}
		for _, dir := range []string{"../../docs", "../../deploy"} {
			err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && !d.IsDir() && slices.Contains([]string{".md", ".yml", ".json"}, filepath.Ext(path)) {
					files = append(files, path)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, path := range files {
			for _, name := range ownMetric.FindAllString(read(t, path), -1) {
				if !exported[name] {
					t.Errorf("%s names %s, which does not exist", path, name)
				}
			}
		}
	})
}

//go:build linux

package main

import (
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// prometheusAlert is one of /api/v1/alerts.
type prometheusAlert struct {
	Labels, Annotations map[string]string
	State               string
}

// startPrometheus starts a real one with what is deployed, and returns its URL. Only
// the addresses are others, it looks every second instead of every 15, and each `for`
// is a second: a test does not wait for five minutes.
func startPrometheus(t *testing.T, aggregator, responder, producer string) string {
	t.Helper()
	path := debian(t, "prometheus", "prometheus")
	dir := t.TempDir()
	write := func(name string, replace ...string) {
		t.Helper()
		text := read(t, filepath.Join(prometheusDir, name))
		for i := 0; i < len(replace); i += 2 {
			re := regexp.MustCompile(replace[i])
			if !re.MatchString(text) {
				t.Fatalf("%s: nothing like %q is there to be replaced", name, re)
			}
			text = re.ReplaceAllString(text, replace[i+1])
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("prometheus.yml", `_interval: 15s`, `_interval: 1s`, `"127.0.0.1:8080"`, `"`+aggregator+`"`, `"127.0.0.1:9472"`, `"`+responder+`"`, `127\.0\.0\.1:9093`, freePort(t))
	write("producers.yml", `127\.0\.0\.1:9471`, producer)
	write("ctfleet.rules.yml", `\bfor: \w+`, `for: 1s`)
	addr := freePort(t)
	foreign(t, path, "--config.file", filepath.Join(dir, "prometheus.yml"), "--storage.tsdb.path", filepath.Join(dir, "data"), "--web.listen-address", addr, "--log.level", "warn")
	api := "http://" + addr
	until(t, "Prometheus to be ready", func() bool { return answers(t, api+"/-/ready") })
	return api
}

// answers reports whether somebody listens and says 200.
func answers(t *testing.T, address string) bool {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	if !listens(u.Host) {
		return false
	}
	code, _ := get(t, address)
	return code == 200
}

// TestPrometheus: a real one scrapes a fleet, and the rules fire, and those that should
// not do not. It can answer all that the dashboard asks.
func TestPrometheus(t *testing.T) {
	t.Parallel()
	debian(t, "prometheus", "prometheus") // before a fleet is built
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	host := func(p *process, line string) string {
		return strings.TrimPrefix(p.says(&p.stderr, line), "http://")
	}
	const metricsAt = `msg=metrics url=(http://[0-9.:]+)`
	agg, _ := f.aggregator()
	producer := f.producer("fw-a", "--table-limit", "1000")
	responder := f.responder("mode: observe\n", "--webhook", "http://"+freePort(t), "--notify-every", "1s") // where nobody listens
	api := startPrometheus(t, host(agg, `msg=serving url=(http://[0-9.:]+)`), host(responder, metricsAt), host(producer, metricsAt))

	began := time.Now()
	var alerts map[string]prometheusAlert
	firing := func() []string {
		_, body := get(t, api+"/api/v1/alerts")
		alerts = map[string]prometheusAlert{}
		var names []string
		for _, a := range parse[struct {
			Data struct{ Alerts []prometheusAlert }
		}](t, body).Data.Alerts {
			if a.State == "firing" {
				names = append(names, a.Labels["alertname"])
				alerts[a.Labels["alertname"]] = a
			}
		}
		slices.Sort(names)
		return names
	}
	becomes := func(what string, want ...string) {
		t.Helper()
		got := firing()
		// The responder tries the webhook every 30 s in the end, and a rise is seen only then.
		for deadline := time.Now().Add(90 * time.Second); !slices.Equal(got, want); got = firing() {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain for %s: %q fire, want %q", what, got, want)
			}
			time.Sleep(100 * time.Millisecond)
		}
		t.Logf("%s: after %s", what, time.Since(began).Round(100*time.Millisecond))
	}
	becomes("nothing but the webhook to be complained of", "CtfleetNotifyFailing")
	f.flood("fw-a", attacker, 0, 820)
	becomes("the table", "CtfleetNotifyFailing", "CtfleetTableAbove75", "CtfleetTableFullSoon") // at this rate
	a := alerts["CtfleetTableAbove75"]
	if a.Labels["firewall"] != "fw-a" || a.Labels["severity"] != "info" || !strings.HasPrefix(a.Annotations["summary"], "Connection table of fw-a at 8") {
		t.Errorf("%+v", a)
	}

	// All that the dashboard asks has an answer, if not about what did not happen.
	query := func(expr string) (status string, results int) {
		_, body := get(t, api+"/api/v1/query?query="+url.QueryEscape(expr))
		r := parse[struct {
			Status string
			Data   struct{ Result []any }
		}](t, body)
		return r.Status, len(r.Data.Result)
	}
	silent := map[string]bool{
		"Time to full":                    true, // the table grows for a moment only
		"Alert messages":                  true, // counted by kind, from the first on
		"Refused":                         true,
		"Messages that could not be used": true,
		"History":                         true, // is not kept here
		"Size of the history":             true,
	}
	for _, p := range readDashboard(t).Panels {
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$__rate_interval", "1m", "$firewall", ".*").Replace(target.Expr)
			if status, n := query(expr); status != "success" || n == 0 && !silent[p.Title] {
				t.Errorf("%s: %s: %s, %d series", p.Title, expr, status, n)
			}
		}
	}

	responder.stop()
	becomes("the responder to be missed", "CtfleetNotifyFailing", "CtfleetResponderAbsent", "CtfleetTableAbove75", "CtfleetTableFullSoon") // what failed is within the last 5 min still
}

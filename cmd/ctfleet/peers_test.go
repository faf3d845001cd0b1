package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// hook is a webhook that counts how often it is told that an alert fires, and that it does
// no more.
type hook struct {
	mu   sync.Mutex
	told map[string]int // by id and state
}

func newHook(t *testing.T) (h *hook, url string) {
	h = &hook{told: map[string]int{}}
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var m struct {
			Alerts []events.Alert `json:"alerts"`
		}
		if err := json.NewDecoder(r.Body).Decode(&m); err != nil {
			t.Errorf("webhook: %v", err)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, a := range m.Alerts {
			h.told[a.ID+" "+a.State]++
		}
	}))
	t.Cleanup(s.Close)
	return h, s.URL
}

// box is a firewall that says of itself what a test wants.
type box struct {
	mu      sync.Mutex
	percent float64
	drop    uint64
}

func (f *box) set(percent float64, drop uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.percent, f.drop = percent, drop
}

func (f *box) run(ctx context.Context, t *testing.T, conn *bus.Conn, name string) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for sent := int64(1); ; sent++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		f.mu.Lock()
		h := &events.Health{
			Firewall: name, Realm: events.RealmDefault, Boot: strings.Repeat("0b", 16), Version: "synthetic", Source: "xml", Sent: sent * 2e8,
			Table: events.TableHealth{Limit: 1000, Count: uint64(10 * f.percent), Percent: f.percent}, Kernel: events.KernelHealth{Drop: f.drop},
		}
		f.mu.Unlock()
		if err := conn.Send(events.HealthSubject(name), h); err != nil {
			t.Errorf("health: %v", err)
		}
	}
}

// counts is what the aggregator at a URL has counted, and what it knows to be lost.
func counts(t *testing.T, url string) (counted, lost uint64) {
	t.Helper()
	_, body := get(t, url+"/api/v1/firewalls")
	for _, f := range parse[events.FirewallsReply](t, body).Firewalls {
		counted += f.Events
		lost += f.Lost + f.Missing
	}
	return counted, lost
}

// onceEach expects of what was published that there is one alert for each rule and key, which
// is said to fire once, unless it goes on, and to be over once.
func (w *watcher) onceEach(t *testing.T) (ids map[string]string) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	ids = map[string]string{}
	last := map[string]events.Alert{}
	for _, a := range w.alerts {
		about := a.Rule + " " + a.Key
		if had := ids[about]; had != "" && had != a.ID {
			t.Errorf("%s has two alerts, %s and %s", about, had, a.ID)
		}
		ids[about] = a.ID
		before, again := last[a.ID+a.State]
		pause := int64(repetition)
		if a.Value >= 1.5*before.Value || a.Value <= before.Value/1.5 {
			pause = change
		}
		if again && (a.State == events.Resolved || a.Updated-before.Updated < pause) {
			t.Errorf("%s is said to be %s again %d ms later: %v, before %v", about, a.State, a.Updated-before.Updated, a.Value, before.Value)
		}
		if over, was := last[a.ID+events.Resolved]; was && a.State == events.Firing {
			t.Errorf("%s fires %d ms after it was over", about, a.Updated-over.Updated)
		}
		last[a.ID+a.State] = a
	}
	return ids
}

// TestTwoAggregators runs two aggregators and two responders under load, and kills first one
// aggregator, which comes back, and then the other: every alert comes once, built-in ones
// and repetitions too, and leads to one command; none is missed.
func TestTwoAggregators(t *testing.T) {
	t.Parallel()
	const firewalls, rate = 5, 400
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	conn, err := bus.Connect(bus.Config{Server: server, Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	c := call{env: []string{"NATS_URL=" + server.URL()}}
	if r := c.run(t, "ctfleet", "bootstrap"); r.code != 0 {
		t.Fatalf("bootstrap: %+v", r)
	}
	rules := file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_src, metric: new, count: 500, seconds: 5, recover: 0s, severity: critical}\n")
	past := []string{filepath.Join(t.TempDir(), "history"), filepath.Join(t.TempDir(), "history")}
	aggregator := func(n int) (*process, string) {
		p := c.start(t, "aggregator", "--listen", "127.0.0.1:0", "--rules", rules, "--history", past[n])
		url := p.says(&p.stderr, `msg=serving url=(http://[0-9.:]+)`)
		p.until("it to be ready", func() bool { code, _ := get(t, url+"/readyz"); return code == 200 })
		return p, url
	}
	kill := func(p *process) {
		if err := p.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-p.ended
	}
	first, _ := aggregator(0)
	second, secondURL := aggregator(1)
	webhook, hookURL := newHook(t)
	policy := file(t, "policy.yaml", "mode: enforce\nbudget: {addresses_per_minute: 0, table_percent: 0}\npolicies: [{rule: flood, action: flush, unanswered: delete}]\n")
	for _, args := range [][]string{{"--webhook", hookURL}, nil} {
		p := c.start(t, "responder", append([]string{"--policy", policy, "--metrics-listen", "127.0.0.1:0"}, args...)...)
		p.until("it to be ready", func() bool {
			code, _ := get(t, p.says(&p.stderr, `msg=metrics url=(http://[0-9.:]+)`)+"/readyz")
			return code == 200
		})
	}
	cmds := &commands{got: map[string][]string{}}
	for i := range firewalls {
		cmds.serve(t, conn, fmt.Sprint("fw-", i))
	}
	w := watch(t, conn)
	fleet, err := synth.NewFleet(synth.FleetConfig{
		Firewalls: firewalls, Rate: rate, Sources: 100, Open: 200, Linger: 10 * time.Millisecond, Log: slog.New(slog.DiscardHandler),
		Bus: bus.Config{Flags: bus.Flags{NATSURL: server.URL()}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := fleet.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	odd := &box{percent: 10}
	running.Go(func() { odd.run(ctx, t, conn, "box") })
	defer running.Wait()
	defer cancel()

	lasting, lastingAddr := source(200)
	attacks := 0
	attack := func(n int) { // that many, four a second, and one that goes on
		for range n {
			_, addr := source(attacks)
			attacks++
			fleet.Attack(attacks%firewalls, addr, 600)
			fleet.Attack(0, lastingAddr, 150)
			time.Sleep(250 * time.Millisecond)
		}
	}
	came := func(upTo int) {
		t.Helper()
		for n := range upTo {
			key, _ := source(n)
			until(t, "the alert about "+key, func() bool { _, ok := w.fired(key); return ok })
		}
	}
	attack(4)
	odd.set(96, 5) // three alarms about the table, and one about what the kernel dropped
	attack(12)
	kill(first)
	attack(16)
	if r := c.run(t, "ctfleet", "top", "--once", "--window", "10s", "-o", "json"); r.code != 0 || !strings.Contains(r.stdout, lasting) {
		t.Errorf("one of two aggregators does not answer: %+v", r)
	}
	first, _ = aggregator(0)
	attack(32)
	fleet.Rest(true)
	came(attacks)
	until(t, "all events to be counted", func() bool { counted, _ := counts(t, secondURL); return counted == fleet.Totals().Made })
	if _, lost := counts(t, secondURL); lost != 0 || fleet.Totals().Lost != 0 {
		t.Errorf("%d events lost, and %d by the firewalls", lost, fleet.Totals().Lost)
	}
	kill(second)
	fleet.Rest(false)
	attack(4)
	fleet.Rest(true)
	came(attacks)
	until(t, "all to be over", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		over := map[string]bool{}
		for _, a := range w.alerts {
			if a.State == events.Resolved && a.Rule == "flood" {
				over[a.Key] = true
			}
		}
		return len(over) == attacks+1
	})
	ids := w.onceEach(t)
	if len(ids) != attacks+1+4 {
		t.Errorf("%d alerts, want those of %d attacks, and of a table that fills: %v", len(ids), attacks+1, ids)
	}
	for _, alarm := range []string{"table-75", "table-90", "table-95", "kernel-drop"} {
		if ids[alarm+" table"] == "" {
			t.Errorf("no alarm %s", alarm)
		}
	}
	for n := range attacks {
		key, _ := source(n)
		firewall := fmt.Sprint("fw-", (n+1)%firewalls)
		until(t, "the command about "+key, func() bool { return len(cmds.of(firewall, key)) > 0 })
		cmds.mu.Lock()
		if got := cmds.got[firewall+" "+key]; len(got) != 1 {
			t.Errorf("commands about %s: %v, want one", key, got)
		}
		cmds.mu.Unlock()
	}
	until(t, "the webhook to be told that all is over", func() bool {
		webhook.mu.Lock()
		defer webhook.mu.Unlock()
		for about, id := range ids {
			if strings.HasPrefix(about, "flood ") && webhook.told[id+" resolved"] == 0 {
				return false
			}
		}
		return true
	})
	webhook.mu.Lock()
	defer webhook.mu.Unlock()
	if len(webhook.told) != len(ids)+attacks+1 {
		t.Errorf("the webhook was told of %d beginnings and ends, want %d", len(webhook.told), len(ids)+attacks+1)
	}
	for what, n := range webhook.told {
		if n != 1 {
			t.Errorf("the webhook was told %d times that %s", n, what)
		}
	}
	first.stop()
	// The first was away for a while, and has read what it missed; the second was killed
	// before the last four.
	for n, want := range []int{len(ids), len(ids) - 4} {
		if got := historyAlerts(t, past[n]); got != want {
			t.Errorf("history %d has %d alerts, want %d", n, got, want)
		}
	}
}

// historyAlerts counts the alerts in a history.
func historyAlerts(t *testing.T, path string) (n int) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.QueryRow("SELECT count(*) FROM alerts").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

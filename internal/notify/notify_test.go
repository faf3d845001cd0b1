package notify

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// receiver takes what is posted, unless it is told to fail.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	fails  int // so many times
	tries  int
	bodies [][]byte
}

func newReceiver(t *testing.T, fails int) *receiver {
	r := &receiver{fails: fails}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tries++
		if err != nil || req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" {
			t.Errorf("%s %v, %v", req.Method, req.Header, err)
		}
		if r.fails > 0 {
			r.fails--
			http.Error(w, "not now", http.StatusServiceUnavailable)
			return
		}
		r.bodies = append(r.bodies, body)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) posts() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.bodies)
}

func run(t *testing.T, cfg Config, before ...func(*Notifier)) (*Notifier, func()) {
	t.Helper()
	cfg.Log, cfg.Registry = slog.New(slog.DiscardHandler), prometheus.NewRegistry()
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range before {
		f(n)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := n.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	stop := sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return n, stop
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(3 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func alert(id, state string, updated int64) *events.Alert {
	return &events.Alert{ID: id, Rule: "flood", State: state, Severity: "critical", Scope: "fleet", Realm: "default", Key: "198.18.0.1", Track: "by_src", Metric: "new", Value: 7, Count: 5, Started: 1000, Updated: updated, Text: "flood: …"}
}

// TestWebhook: what fires and resolves is told once each, although the other side
// fails at first, and the heartbeat comes without it.
func TestWebhook(t *testing.T) {
	r := newReceiver(t, 1)
	n, _ := run(t, Config{Webhook: r.URL})
	until(t, "the first heartbeat, at the second try", func() bool { return len(r.posts()) == 1 })
	n.Put(alert("a", events.Firing, 1))
	until(t, "the alert", func() bool { return len(r.posts()) == 2 })
	n.Put(alert("a", events.Firing, 2)) // an update
	n.Put(alert("a", events.Resolved, 3))
	n.Put(alert("b", events.Resolved, 3)) // fired before our time
	until(t, "the end", func() bool { return len(r.posts()) == 3 })
	var got []string
	for _, body := range r.posts() {
		var m webhookMessage
		if err := json.Unmarshal(body, &m); err != nil || m.EveryS != 60 || m.Time == 0 {
			t.Errorf("%s: %v", body, err)
		}
		var s []string
		for _, a := range m.Alerts {
			s = append(s, a.ID+" "+a.State)
		}
		got = append(got, strings.Join(s, ", "))
	}
	if want := []string{"", "a firing", "a resolved, b resolved"}; !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

// TestRepeats: what fires is told again and again, with its latest value, until it is
// resolved.
func TestRepeats(t *testing.T) {
	r := newReceiver(t, 0)
	n, _ := run(t, Config{Alertmanager: r.URL + "/am", Every: 50 * time.Millisecond})
	n.Put(alert("a", events.Firing, 1))
	n.Put(alert("a", events.Firing, 2))
	last := func() []alertmanagerAlert {
		posts := r.posts()
		var as []alertmanagerAlert
		if len(posts) > 0 {
			if err := json.Unmarshal(posts[len(posts)-1], &as); err != nil {
				t.Fatal(err)
			}
		}
		return as
	}
	until(t, "repetitions", func() bool { return len(r.posts()) > 4 && len(last()) == 2 })
	for _, a := range last() {
		if a.Labels["alertname"] == "" || !a.EndsAt.After(time.Now().Add(-time.Second)) || a.StartsAt.After(time.Now()) {
			t.Errorf("alert: %+v", a)
		}
	}
	n.Put(alert("a", events.Resolved, 3000))
	until(t, "its end", func() bool {
		for _, body := range r.posts() {
			if strings.Contains(string(body), `"endsAt":"1970-01-01T`) {
				return len(last()) == 1 && last()[0].Labels["alertname"] == Heartbeat
			}
		}
		return false
	})
}

// TestAway: what changed while the other side was away is told when it is back, the
// latest of each, and a stop does not wait for it.
func TestAway(t *testing.T) {
	r := newReceiver(t, 1_000_000)
	n, stop := run(t, Config{Webhook: r.URL})
	for i := range int64(100) {
		n.Put(alert("a", events.Firing, i))
		n.Put(alert("a", events.Resolved, i))
	}
	n.Put(alert("b", events.Firing, 1))
	until(t, "a try", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return r.tries > 0 })
	r.mu.Lock()
	r.fails = 0
	r.mu.Unlock()
	until(t, "what changed", func() bool { return len(r.posts()) == 1 })
	var m webhookMessage
	if err := json.Unmarshal(r.posts()[0], &m); err != nil || len(m.Alerts) != 2 || m.Alerts[0].State != events.Resolved || m.Alerts[0].Updated != 99 || m.Alerts[1].ID != "b" {
		t.Errorf("told %+v, %v", m.Alerts, err)
	}
	begin := time.Now()
	if stop(); time.Since(begin) > 2*time.Second {
		t.Errorf("the stop took %s", time.Since(begin))
	}
}

// TestMute: nobody is told of what is muted, repetitions included, until it is no more:
// then of what fires still, as it is by then, and of the end of what they had heard of.
func TestMute(t *testing.T) {
	r := newReceiver(t, 0)
	var muted atomic.Bool
	n, _ := run(t, Config{Webhook: r.URL, Every: 20 * time.Millisecond}, func(n *Notifier) {
		n.Mute(func(a *events.Alert) bool { return muted.Load() && a.Scope == "fw-a" })
	})
	put := func(id, scope, state string, updated int64) {
		a := alert(id, state, updated)
		a.Scope = scope
		n.Put(a)
	}
	told := func() string { // the last one
		posts := r.posts()
		if len(posts) == 0 {
			return "nothing"
		}
		var m webhookMessage
		if err := json.Unmarshal(posts[len(posts)-1], &m); err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, a := range m.Alerts {
			s = append(s, fmt.Sprint(a.ID, " ", a.State, " ", a.Updated))
		}
		return strings.Join(s, ", ")
	}
	put("heard", "fw-a", events.Firing, 1)
	put("other", "fleet", events.Firing, 1)
	until(t, "both", func() bool { return told() == "heard firing 1, other firing 1" })
	muted.Store(true)
	until(t, "only the other", func() bool { return told() == "other firing 1" })
	before := len(r.posts())
	put("waits", "fw-a", events.Firing, 1)
	put("waits", "fw-a", events.Firing, 2)
	put("never", "fw-a", events.Firing, 1)
	put("never", "fw-a", events.Resolved, 2)
	put("heard", "fw-a", events.Resolved, 5)
	until(t, "more repetitions", func() bool { return len(r.posts()) > before+5 })
	for _, body := range r.posts()[before+1:] {
		if strings.Contains(string(body), "fw-a") {
			t.Errorf("told %s", body)
		}
	}
	muted.Store(false)
	n.Wake()
	begin := len(r.posts())
	until(t, "what waited", func() bool { return told() == "other firing 1, waits firing 2" })
	all := ""
	for _, body := range r.posts()[max(begin-1, 0):] {
		all += string(body)
	}
	if strings.Count(all, `"resolved"`) != 1 || strings.Contains(all, `"never"`) {
		t.Errorf("told %s", all)
	}
}

func TestBadURL(t *testing.T) {
	for _, u := range []string{"localhost:9093", "ftp://x", "http://", "http://user:secret@", "://"} {
		_, err := New(Config{Webhook: u})
		if err == nil || !strings.Contains(err.Error(), "--webhook") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%q: %v", u, err)
		}
	}
	if n, err := New(Config{}); err != nil || !n.Idle() {
		t.Errorf("nobody: %v", err)
	}
}

package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// source answers with fixed views and remembers what it was asked.
type source struct {
	asked    *events.TopQuery
	question string // any other
	events   *observe.Question
	err      error
	alerts   chan *events.Alert
	entries  chan *audit.Entry
}

func (s *source) Top(q *events.TopQuery) (*events.TopReply, error) {
	s.asked = q
	return &events.TopReply{
		Head: events.Head{V: 1}, By: "src", Metric: "new", WindowS: 30, Scope: "fleet",
		Rows: []events.TopRow{{Key: "198.18.0.7", Value: 2002, Firewalls: map[string]uint64{"fw-a": 1001, "fw-b": 1001}}},
	}, s.err
}

func (*source) Firewalls() *events.FirewallsReply {
	return &events.FirewallsReply{Head: events.Head{V: 1}, Firewalls: []events.FirewallStatus{{Health: events.Health{Firewall: "fw-a", Realm: "default"}, State: events.StateFresh}}}
}

func (s *source) Alerts(_ context.Context, q *events.AlertsQuery) (*events.AlertsReply, error) {
	s.question = fmt.Sprintf("%s since %d", q.State, q.Since)
	return &events.AlertsReply{Head: events.Head{V: 1}, Alerts: []events.Alert{}}, s.err
}

func (s *source) Address(_ context.Context, q *events.AddressQuery) (*events.AddressReply, error) {
	s.question = fmt.Sprintf("%s in %q", q.Address, q.Realm)
	return &events.AddressReply{Head: events.Head{V: 1}, Address: q.Address}, s.err
}

// Watch passes on what a test sends.
func (s *source) Watch(ctx context.Context, alert func(*events.Alert), entry func(*audit.Entry)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case al := <-s.alerts:
			alert(al)
		case e := <-s.entries:
			entry(e)
		}
	}
}

func (s *source) Events(_ context.Context, q *observe.Question) (*observe.List, error) {
	s.events = q
	return &observe.List{Events: []observe.Shown{}}, s.err
}

func (s *source) Audit(_ context.Context, since int64, key, firewall string, limit int) (*audit.List, error) {
	s.question = fmt.Sprintf("%q on %q since %d, %d", key, firewall, since, limit)
	return &audit.List{Entries: []audit.Entry{}}, s.err
}

func get(t *testing.T, src Source, method, target string) *httptest.ResponseRecorder {
	t.Helper()
	mux := http.NewServeMux()
	Register(mux, src, nil)
	w := httptest.NewRecorder()
	daemon.Problems(mux).ServeHTTP(w, httptest.NewRequest(method, target, nil))
	return w
}

func TestTopParameters(t *testing.T) {
	f := func(query string, want events.TopQuery) {
		t.Helper()
		src := &source{}
		if w := get(t, src, http.MethodGet, "/api/v1/top"+query); w.Code != http.StatusOK || *src.asked != want {
			t.Errorf("%q: %d %s, asked %+v, want %+v", query, w.Code, w.Body, src.asked, want)
		}
	}
	f("", events.TopQuery{})
	f("?by=dst&metric=active&window=60&firewall=fw-a&realm=branch&limit=5",
		events.TopQuery{By: "dst", Metric: "active", WindowS: 60, Firewall: "fw-a", Realm: "branch", Limit: 5})
	f("?prefix=2001:DB8::/32&allowlisted=hide", events.TopQuery{Prefix: "2001:db8::/32", Allowlisted: "hide"})
	f("?prefix=198.51.100.7/32", events.TopQuery{Prefix: "198.51.100.7"})
	f("?realm=branch_z7", events.TopQuery{Realm: "branch_z7"})
	f("?at=1795615500000", events.TopQuery{At: 1795615500000})
	f("?at=2026-11-25T14:05:00Z&metric=active", events.TopQuery{Metric: "active", At: 1795615500000})
	f("?at=2026-11-25T15:05:00%2B01:00", events.TopQuery{At: 1795615500000})
}

func TestQuestions(t *testing.T) {
	f := func(path, want string) {
		t.Helper()
		src := &source{}
		if w := get(t, src, http.MethodGet, "/api/v1/"+path); w.Code != http.StatusOK || src.question != want {
			t.Errorf("%s: %d %s, asked %s, want %s", path, w.Code, w.Body, src.question, want)
		}
	}
	f("alerts", " since 0")
	f("alerts?state=past&since=2026-11-25T14:05:00Z", "past since 1795615500000")
	f("alerts?state=firing&since=1795615500000", "firing since 1795615500000")
	f("addresses/198.51.100.7", `198.51.100.7 in ""`)
	f("addresses/2001:db8::7?realm=branch", `2001:db8::7 in "branch"`)
	f("audit", `"" on "" since 0, 1000`)
	f("audit?since=1795615500000&address=2001:DB8::7&firewall=fw-a&limit=5", `"2001:db8::7" on "fw-a" since 1795615500000, 5`)

	src := &source{}
	get(t, src, http.MethodGet, "/api/v1/audit?since=90m")
	var since int64
	if _, err := fmt.Sscanf(src.question, `"" on "" since %d, 1000`, &since); err != nil || time.Since(time.UnixMilli(since)).Round(time.Minute) != 90*time.Minute {
		t.Errorf("%s: %v", src.question, err)
	}
	src = &source{err: daemon.Unavailable(errors.New("no connection"))}
	for _, path := range []string{"alerts", "addresses/198.51.100.7", "audit", "events"} {
		problem(t, get(t, src, http.MethodGet, "/api/v1/"+path), http.StatusServiceUnavailable)
	}
}

// TestEventsParameters: the filters are those of the operator's tool.
func TestEventsParameters(t *testing.T) {
	f := func(query string, want observe.Question) {
		t.Helper()
		src := &source{}
		if err := want.Compile(); err != nil {
			t.Fatal(err)
		}
		if w := get(t, src, http.MethodGet, "/api/v1/events"+query); w.Code != http.StatusOK || !reflect.DeepEqual(*src.events, want) {
			t.Errorf("%q: %d %s, asked %+v, want %+v", query, w.Code, w.Body, src.events, want)
		}
	}
	f("", observe.Question{Limit: 100})
	f("?firewall=fw-a,fw-b&since=1795615500000&limit=1000", observe.Question{Firewalls: []string{"fw-a", "fw-b"}, Since: 1795615500000, Limit: 1000})
	f("?ip=198.51.100.7&from-ip=2001:db8::/32,192.0.2.0/24&to-ip=192.0.2.1&protocol=tcp,17&port=22,443&type=new&not=true", observe.Question{Limit: 100, Filter: observe.Filter{
		IP: []string{"198.51.100.7"}, FromIP: []string{"2001:db8::/32", "192.0.2.0/24"}, ToIP: []string{"192.0.2.1"},
		Protocol: []string{"tcp", "17"}, Port: []uint16{22, 443}, Type: []string{"new"}, Not: true,
	}})
	f("?port=53&not=false", observe.Question{Limit: 100, Filter: observe.Filter{Port: []uint16{53}}})
}

func TestUnavailable(t *testing.T) {
	src := &source{err: fmt.Errorf("top: %w", daemon.Unavailable(errors.New("disk I/O error")))}
	if w := get(t, src, http.MethodGet, "/api/v1/top?at=1795615500000"); w.Code != http.StatusServiceUnavailable || !strings.Contains(w.Body.String(), "disk I/O error") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}

// problem returns the detail of an answer that must be one with this status.
func problem(t *testing.T, w *httptest.ResponseRecorder, status int) string {
	t.Helper()
	var p struct {
		Type, Title, Detail string
		Status              int
	}
	if err := json.Unmarshal(w.Body.Bytes(), &p); err != nil {
		t.Fatalf("%s: %v", w.Body, err)
	}
	if w.Code != status || p.Status != status || p.Type != "about:blank" || p.Title != http.StatusText(status) || p.Detail == "" ||
		w.Header().Get("Content-Type") != "application/problem+json" {
		t.Errorf("%d %v %s, want problem %d", w.Code, w.Header(), w.Body, status)
	}
	return p.Detail
}

func TestBadRequests(t *testing.T) {
	f := func(path, want string) {
		t.Helper()
		src := &source{}
		w := get(t, src, http.MethodGet, path)
		detail := problem(t, w, http.StatusBadRequest)
		if !strings.Contains(detail, want) || src.asked != nil {
			t.Errorf("%s: %s, want %q", path, detail, want)
		}
	}
	f("/api/v1/top?windw=10", `unknown parameter "windw"`)
	f("/api/v1/top?window=ten", `parameter window: "ten" is no number`)
	f("/api/v1/top?window=1e3", `parameter window`)
	f("/api/v1/top?limit=99999999999999999999", `parameter limit`)
	f("/api/v1/top?window=-1", "must not be negative")
	f("/api/v1/top?limit=10001", "limit: 10001")
	f("/api/v1/top?limit=-1", "limit: -1")
	f("/api/v1/top?at=yesterday", `parameter at: "yesterday" is no time`)
	f("/api/v1/top?at=-5", `parameter at: "-5" is no time`)
	f("/api/v1/top?at=9999999999999999", "is no time in Unix ms")
	f("/api/v1/top?by=moon", `by: "moon"`)
	f("/api/v1/top?metric=all", `metric: "all"`)
	f("/api/v1/top?firewall=Fw.A", "firewall name")
	f("/api/v1/top?firewall=fleet", "reserved")
	f("/api/v1/top?realm=%3Cscript%3E", "realm")
	f("/api/v1/top?by=src&by=dst", "given 2 times")
	f("/api/v1/top?by=%zz", "invalid URL escape")
	f("/api/v1/top?by=src;metric=new", "semicolon")
	f("/api/v1/top?prefix=x", `parameter prefix: "x" is neither`)
	f("/api/v1/top?prefix=198.51.100.7/24", `has bits beyond its length`)
	f("/api/v1/top?allowlisted=show", `allowlisted: "show"`)
	f("/api/v1/alerts?state=over", `state: "over"`)
	f("/api/v1/alerts?since=soon", `parameter since: "soon" is no time`)
	f("/api/v1/alerts?since=-1h", `parameter since: "-1h" is not how long ago`)
	f("/api/v1/alerts?since=9999999999999999", "is no time in Unix ms")
	f("/api/v1/addresses/198.51.100.0%2f24", `"198.51.100.0/24" is no IP address`)
	f("/api/v1/addresses/fe80::1%25eth0", "is no IP address")
	f("/api/v1/addresses/%1b[2J", `"\x1b[2J" is no IP address`)
	f("/api/v1/addresses/198.51.100.7?realm=A", "realm")
	f("/api/v1/addresses/198.51.100.7?window=10", `unknown parameter "window", these are known: realm`)
	f("/api/v1/audit?address=all", `parameter address: "all" is neither`)
	f("/api/v1/audit?firewall=fleet", "reserved")
	f("/api/v1/audit?limit=0", "parameter limit: 0 is not within 1 to 10000")
	f("/api/v1/audit?limit=10001", "parameter limit")
	f("/api/v1/events?limit=0", "parameter limit: 0 is not within 1 to 1000")
	f("/api/v1/events?limit=1001", "parameter limit")
	f("/api/v1/events?firewall=fw-a,fleet", "parameter firewall: ")
	f("/api/v1/events?ip=198.51.100.7,", "parameter ip: ")
	f("/api/v1/events?from-ip=198.51.100.7/24", "parameter from-ip: ")
	f("/api/v1/events?protocol=tpc", "parameter protocol: ")
	f("/api/v1/events?port=80,65536", `parameter port: "65536" is no port`)
	f("/api/v1/events?type=update", `parameter type: "update" is none of`)
	f("/api/v1/events?not=1", `parameter not: "1" is neither true nor false`)
	f("/api/v1/events?not=true", "parameter not: there is no filter")
	f("/api/v1/events?port=1"+strings.Repeat(",1", 100), "parameter port: has 101 values, 100 are allowed")
	f("/api/v1/firewalls?realm=a", `unknown parameter "realm"`)
	f("/api/v1/alerts?x", `unknown parameter "x"`)
	f("/api/v1/alerts?%zz", "invalid URL escape")
}

func TestSourceRefuses(t *testing.T) {
	w := get(t, &source{err: errors.New("windows kept: 10s, 60s")}, http.MethodGet, "/api/v1/top?window=11")
	if detail := problem(t, w, http.StatusBadRequest); detail != "windows kept: 10s, 60s" {
		t.Error(detail)
	}
}

func TestAnswers(t *testing.T) {
	f := func(path, want string) {
		t.Helper()
		w := get(t, &source{}, http.MethodGet, path)
		if w.Code != http.StatusOK || w.Body.String() != want+"\n" {
			t.Errorf("%s: %d %s, want %s", path, w.Code, w.Body, want)
		}
		h := w.Header()
		if h.Get("Content-Type") != "application/json" || h.Get("Cache-Control") != "no-store" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s: header %v", path, h)
		}
	}
	// Scripts depend on these keys.
	f("/api/v1/top", `{"v":1,"by":"src","metric":"new","window_s":30,"scope":"fleet","rows":[{"key":"198.18.0.7","value":2002,"firewalls":{"fw-a":1001,"fw-b":1001}}]}`)
	f("/api/v1/alerts", `{"v":1,"alerts":[]}`)
}

// TestFirewallKeys: what the firewall says of itself and what the centre knows
// stand side by side.
func TestFirewallKeys(t *testing.T) {
	var body struct {
		Firewalls []map[string]any `json:"firewalls"`
	}
	w := get(t, &source{}, http.MethodGet, "/api/v1/firewalls")
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil || len(body.Firewalls) != 1 {
		t.Fatalf("%s: %v", w.Body, err)
	}
	keys := slices.Collect(maps.Keys(body.Firewalls[0]))
	for _, want := range []string{"firewall", "realm", "boot", "table", "kernel", "stream", "state", "age_ms", "events", "events_per_s", "lost", "missing", "active_known", "active", "boots"} {
		if !slices.Contains(keys, want) {
			t.Errorf("key %q is missing among %v", want, keys)
		}
	}
}

func TestReadOnly(t *testing.T) {
	for _, path := range []string{"/api/v1/top", "/api/v1/firewalls", "/api/v1/alerts", "/api/v1/"} {
		for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete} {
			w := get(t, &source{}, method, path)
			problem(t, w, http.StatusMethodNotAllowed)
			if w.Header().Get("Allow") != "GET, HEAD" {
				t.Errorf("%s %s: %v", method, path, w.Header())
			}
		}
	}
	if w := get(t, &source{}, http.MethodGet, "/api/v1/"); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "/api/v1/top") {
		t.Errorf("/api/v1/: %d %s", w.Code, w.Body)
	}
	if detail := problem(t, get(t, &source{}, http.MethodGet, "/api/v1/none%1b"), http.StatusNotFound); detail != `there is nothing at "/api/v1/none\x1b"` {
		t.Error(detail)
	}
}

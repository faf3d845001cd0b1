package api

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// channel is a stream that runs, behind a server.
type channel struct {
	t    *testing.T
	src  *source
	reg  *prometheus.Registry
	s    *Stream
	url  string
	stop func()
}

func newChannel(t *testing.T) *channel {
	t.Helper()
	c := &channel{t: t, reg: prometheus.NewRegistry(), src: &source{alerts: make(chan *events.Alert), entries: make(chan *audit.Entry)}}
	mux := http.NewServeMux()
	c.s = Register(mux, c.src, c.reg)
	server := httptest.NewServer(daemon.Problems(mux))
	t.Cleanup(server.Close)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.s.Run(ctx) }()
	c.url, c.stop = server.URL+"/api/v1/stream", func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(cancel)
	return c
}

func (c *channel) metric(name string) float64 {
	c.t.Helper()
	families, err := c.reg.Gather()
	if err != nil {
		c.t.Fatal(err)
	}
	for _, f := range families {
		if m := f.Metric[0]; f.GetName() == "ctfleet_http_stream_"+name {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	c.t.Fatalf("there is no metric %s", name)
	return 0
}

// listener is who reads the stream.
type listener struct {
	t    *testing.T
	resp *http.Response
	in   *bufio.Scanner
}

func (c *channel) listen(after string) *listener {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	c.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, c.url, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if after != "" {
		req.Header.Set("Last-Event-ID", after)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { resp.Body.Close() })
	return &listener{c.t, resp, bufio.NewScanner(resp.Body)}
}

// next returns the next event, ticks left out unless they are wanted.
func (l *listener) next(ticks bool) (id, kind, data string) {
	l.t.Helper()
	for l.in.Scan() {
		field, value, _ := strings.Cut(l.in.Text(), ": ")
		switch field {
		case "id":
			id = value
		case "event":
			kind = value
		case "data":
			data = value
		case "":
			if kind != "" && (kind != "fleet" || ticks) {
				return id, kind, data
			}
			kind = ""
		}
	}
	return "", "end", fmt.Sprint(l.in.Err())
}

func (l *listener) want(kind, part string) (id string) {
	l.t.Helper()
	id, got, data := l.next(kind == "fleet")
	if got != kind || !strings.Contains(data, part) || kind != "end" && !json.Valid([]byte(data)) {
		l.t.Errorf("%s %s: %s, want %s with %q", id, got, data, kind, part)
	}
	return id
}

func (c *channel) alert(id string) { c.src.alerts <- &events.Alert{ID: id} }

func TestStream(t *testing.T) {
	t.Parallel()
	c := newChannel(t)
	l := c.listen("")
	if h := l.resp.Header; l.resp.StatusCode != http.StatusOK || h.Get("Content-Type") != "text/event-stream" || h.Get("Cache-Control") != "no-store" {
		t.Errorf("%d %v", l.resp.StatusCode, h)
	}
	first := l.want("fleet", `"firewalls":[{"firewall":"fw-a","realm":"default","state":"fresh",`)
	c.alert("a1\n\nevent: forged")
	c.src.entries <- &audit.Entry{Actor: "responder", Decision: &events.Decision{ID: "d1"}}
	c.src.entries <- &audit.Entry{Actor: "fw-a", Receipt: &events.Receipt{ID: "r1"}}
	c.src.entries <- &audit.Entry{Actor: "operator", Act: &events.Act{What: "added"}}
	second := l.want("alert", `"id":"a1\n\nevent: forged"`)
	l.want("decision", `"id":"d1"`)
	l.want("receipt", `"id":"r1"`)
	last := l.want("act", `"what":"added"`)
	if tick := l.want("fleet", `"state":"fresh"`); tick != last {
		t.Errorf("the id of a tick is %s, want the last event's, %s", tick, last)
	}

	// Who comes again gets what it has missed, once.
	again := c.listen(second)
	again.want("decision", `"id":"d1"`)
	again.want("receipt", `"id":"r1"`)
	again.want("act", `"what":"added"`)
	c.alert("a2")
	again.want("alert", `"id":"a2"`)
	l.want("alert", `"id":"a2"`)
	c.listen(first).want("alert", `"id":"a1\n`)

	c.stop()
	l.want("end", "")
	again.want("end", "")
	if late := c.listen(""); late.resp.StatusCode != http.StatusServiceUnavailable || late.resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("after the end: %d %v", late.resp.StatusCode, late.resp.Header)
	}
}

// TestGap: who cannot be told what it has missed is told so.
func TestGap(t *testing.T) {
	t.Parallel()
	c := newChannel(t)
	for range keptEvents + 2 {
		c.alert("a")
	}
	c.listen(c.s.run+"-2").want("alert", `"id":"a"`) // all that came after it is kept
	f := func(after, want string) {
		t.Helper()
		l := c.listen(after)
		id := l.want("gap", want)
		if tick := l.want("fleet", ""); tick != id || id != c.s.id(keptEvents+2) {
			t.Errorf("it goes on after %s, %s", id, tick)
		}
	}
	f(c.s.run+"-1", "4097 events came since, of which the last 4096 are kept")
	f(c.s.run+"-5000", "no id of this stream")
	f(c.s.run+"--1", "no id of this stream")
	f("x", "no id of this stream")
	f("0123456789ab-7", "started anew")
}

// TestSlowReader is sent away, and nobody waits for it.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	c := newChannel(t)
	slow, _, _, err := c.s.join("")
	if err != nil {
		t.Fatal(err)
	}
	quick := c.listen("")
	for i := range maxQueue + 1 {
		c.alert(fmt.Sprint(i))
		quick.want("alert", fmt.Sprintf(`"id":"%d"`, i))
	}
	select {
	case <-slow.gone:
	default:
		t.Error("it is still there")
	}
	if got := c.metric("slow_readers_total"); got != 1 {
		t.Errorf("%v slow readers were counted", got)
	}
	c.s.leave(slow)
}

func TestHeartbeat(t *testing.T) {
	t.Parallel()
	c := newChannel(t)
	c.s.beat = 10 * time.Millisecond
	l := c.listen("")
	l.want("fleet", "fw-a")
	for l.in.Scan() && l.in.Text() != ":" {
	}
	if err := l.in.Err(); err != nil || l.in.Text() != ":" {
		t.Errorf("no heartbeat came: %v", err)
	}
}

func TestReadersAreLimited(t *testing.T) {
	t.Parallel()
	c := newChannel(t)
	var last *reader
	for range maxReaders {
		r, _, _, err := c.s.join("")
		if err != nil {
			t.Fatal(err)
		}
		last = r
	}
	l := c.listen("")
	if l.resp.StatusCode != http.StatusServiceUnavailable || l.resp.Header.Get("Retry-After") == "" || c.metric("refused_readers_total") != 1 || c.metric("readers") != maxReaders {
		t.Errorf("one too many: %d %v", l.resp.StatusCode, l.resp.Header)
	}
	c.s.leave(last)
	c.listen("").want("fleet", "fw-a")
}

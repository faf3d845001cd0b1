package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestListen(t *testing.T) {
	for _, off := range []string{NoListen, ""} {
		if l, err := Listen(off); l != nil || err != nil {
			t.Errorf("%q: %v, %v", off, l, err)
		}
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	addr := l.Addr().String()
	if _, err := Listen(addr); err == nil || !strings.Contains(err.Error(), "listen on "+addr) {
		t.Errorf("a port that is taken: %v", err)
	}
}

func TestMux(t *testing.T) {
	reg := prometheus.NewRegistry()
	reg.MustRegister(prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctfleet_test"}))
	var missing error
	f := func(h Health, path string, code int, want string) {
		t.Helper()
		w := httptest.NewRecorder()
		Mux(reg, h).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
		if w.Code != code || !strings.Contains(w.Body.String(), want) {
			t.Errorf("%s: %d %q, want %d %q", path, w.Code, w.Body, code, want)
		}
	}
	h := Health{Ready: func() error { return missing }}
	f(h, "/metrics", 200, "ctfleet_test 0")
	f(h, "/readyz", 200, "ready")
	missing = errors.New("no connection to NATS")
	f(h, "/readyz", 503, "not ready: no connection to NATS")
	f(h, "/healthz", 200, "ok") // it lives, whatever it waits for
	f(Health{}, "/readyz", 200, "ready")
	f(h, "/", 404, "")
	w := httptest.NewRecorder()
	Mux(reg, h).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/metrics", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /metrics: %d, want read-only", w.Code)
	}
}

// serve runs Serve on a listener of its own.
func serve(t *testing.T, addr string, handler http.Handler) (at string, stop func() error) {
	t.Helper()
	l, err := Listen(addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, handler, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(cancel)
	return l.Addr().String(), func() error { cancel(); return <-done }
}

func TestServeChecksTheHost(t *testing.T) {
	ok := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "secret") })
	f := func(listen, host string, want int) {
		t.Helper()
		at, stop := serve(t, listen, ok)
		_, port, _ := net.SplitHostPort(at)
		if !strings.HasPrefix(listen, "127.") {
			at = "127.0.0.1:" + port
		}
		c, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", strings.ReplaceAll(host, "PORT", port))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != want || strings.Contains(string(body), "secret") != (want == 200) {
			t.Errorf("%s asked as %s: %d %q (%v), want %d", listen, host, resp.StatusCode, body, err, want)
		}
		if err := stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	const local = "127.0.0.1:0"
	f(local, "127.0.0.1:PORT", 200)
	f(local, "127.0.0.1", 200)
	f(local, "localhost:PORT", 200)
	f(local, "LocalHost", 200)
	f(local, "[::1]:PORT", 200)
	f(local, "evil.example:PORT", http.StatusMisdirectedRequest)
	f(local, "localhost.evil.example", http.StatusMisdirectedRequest)
	f(local, "127.0.0.1.evil.example", http.StatusMisdirectedRequest)
	f(local, "192.0.2.1:PORT", http.StatusMisdirectedRequest)
	f(local, "", http.StatusMisdirectedRequest)
	// Told to listen elsewhere, it answers to the names it is reached by.
	f("0.0.0.0:0", "fw.example", 200)
}

// TestServeStops: a request under way may finish, one that does not end does not
// keep the process.
func TestServeStops(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	defer close(finish)
	at, stop := serve(t, "127.0.0.1:0", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(begun)
		select {
		case <-finish:
		case <-r.Context().Done():
		}
	}))
	go func() {
		resp, err := http.Get("http://" + at)
		if err == nil {
			resp.Body.Close()
		}
	}()
	<-begun
	since := time.Now()
	if err := stop(); err != nil {
		t.Error(err)
	}
	if took := time.Since(since); took > 3*time.Second {
		t.Errorf("stopping took %s", took)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Serve(ctx, nil, nil, nil); err != nil {
		t.Errorf("without a listener: %v", err)
	}
	l, err := Listen("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	if err := Serve(t.Context(), l, http.NotFoundHandler(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), l.Addr().String()) {
		t.Errorf("a closed listener: %v", err)
	}
}

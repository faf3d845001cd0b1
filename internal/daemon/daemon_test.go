package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// helper is what the test binary does, instead of testing, when this variable
// names it: some behaviour is a process's.
const helper = "DAEMON_TEST_HELPER"

func TestMain(m *testing.M) {
	switch os.Getenv(helper) {
	case "":
		os.Exit(m.Run())
	case "drain":
		os.Exit(Run(slog.New(slog.DiscardHandler), func(ctx context.Context) error {
			fmt.Println("running")
			<-ctx.Done()
			fmt.Println("drained")
			return ctx.Err()
		}))
	case "hang":
		os.Exit(Run(slog.New(slog.DiscardHandler), func(ctx context.Context) error {
			fmt.Println("running")
			<-ctx.Done()
			fmt.Println("hanging")
			select {}
		}))
	}
}

// process is this test binary as a helper.
type process struct {
	t   *testing.T
	p   *os.Process
	out *bufio.Scanner
}

func start(t *testing.T, name string) *process {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := os.StartProcess(self, []string{self}, &os.ProcAttr{Env: append(os.Environ(), helper+"="+name), Files: []*os.File{nil, w, os.Stderr}})
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Kill() })
	h := &process{t, p, bufio.NewScanner(r)}
	h.says("running")
	return h
}

func (h *process) says(want string) {
	h.t.Helper()
	if !h.out.Scan() || h.out.Text() != want {
		h.t.Fatalf("the process says %q, want %q", h.out.Text(), want)
	}
}

func (h *process) signal(s os.Signal) {
	h.t.Helper()
	if err := h.p.Signal(s); err != nil {
		h.t.Fatal(err)
	}
}

func (h *process) wait() *os.ProcessState {
	h.t.Helper()
	state, err := h.p.Wait()
	if err != nil {
		h.t.Fatal(err)
	}
	return state
}

func TestSignalDrains(t *testing.T) {
	for _, s := range []os.Signal{syscall.SIGTERM, os.Interrupt} {
		h := start(t, "drain")
		h.signal(s)
		h.says("drained")
		if state := h.wait(); state.ExitCode() != 0 {
			t.Errorf("%v: %v, want exit code 0", s, state)
		}
	}
}

func TestSecondSignalKills(t *testing.T) {
	h := start(t, "hang")
	h.signal(syscall.SIGTERM)
	h.says("hanging")
	// The handler is gone a moment after the context has ended.
	deadline := time.Now().Add(3 * time.Second)
	done := make(chan *os.ProcessState, 1)
	go func() { done <- h.wait() }()
	for {
		select {
		case state := <-done:
			if status, ok := state.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGTERM {
				t.Errorf("%v, want killed by SIGTERM", state)
			}
			return
		case <-time.After(20 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("a second signal did not end the process")
			}
			_ = h.p.Signal(syscall.SIGTERM) // it may have ended meanwhile
		}
	}
}

func TestSupervise(t *testing.T) {
	boom := errors.New("boom")
	f := func(what string, code int, said string, run func(context.Context) error) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			var log bytes.Buffer
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			exit := func(code int) { t.Errorf("%s: exits with %d after %s", what, code, stopDeadline) }
			got := supervise(ctx, slog.New(slog.NewTextHandler(&log, nil)), run, exit)
			if got != code || strings.Contains(log.String(), "boom") != (said != "") {
				t.Errorf("%s: exit code %d, log %q; want %d", what, got, log.String(), code)
			}
			// Having returned, it must not end the process it is part of.
			time.Sleep(2 * stopDeadline)
		})
	}
	untilStopped := func(then time.Duration, err error) func(context.Context) error {
		return func(ctx context.Context) error {
			<-ctx.Done()
			time.Sleep(then)
			return err
		}
	}
	f("done", 0, "", func(context.Context) error { return nil })
	f("failed", 1, "boom", func(context.Context) error { return boom })
	f("stopped", 0, "", untilStopped(0, nil))
	f("stopped, and says so", 0, "", untilStopped(0, fmt.Errorf("read: %w", context.Canceled)))
	f("stopped, with an error", 1, "boom", untilStopped(0, boom))
	f("stopped, slowly", 0, "", untilStopped(stopDeadline-1, nil))
	f("cancelled by itself", 1, "", func(context.Context) error { return context.Canceled })
}

func TestStopDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		begun := time.Now()
		exited := make(chan int)
		go supervise(ctx, slog.New(slog.NewTextHandler(&log, nil)), func(context.Context) error {
			time.Sleep(time.Hour) // deaf
			return nil
		}, func(code int) { exited <- code })
		time.Sleep(time.Minute)
		cancel()
		if code := <-exited; code != 1 || time.Since(begun) != time.Minute+stopDeadline {
			t.Errorf("exit code %d after %s", code, time.Since(begun))
		}
		if !strings.Contains(log.String(), "stopping took too long") {
			t.Errorf("log: %q", log.String())
		}
		time.Sleep(time.Hour)
	})
}

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var buf bytes.Buffer
		log := slog.New(slog.NewTextHandler(&buf, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}}))
		said := func(want string) {
			t.Helper()
			if got := buf.String(); got != want {
				t.Errorf("at %s: logged %q, want %q", time.Now().Format("05.000"), got, want)
			}
			buf.Reset()
		}
		var th Throttle
		th.Warn(log, "down", "n", 1)
		said("level=WARN msg=down n=1\n")
		for n := range 3 {
			th.Warn(log, "down", "n", n+2)
		}
		time.Sleep(5*time.Second - 1)
		th.Warn(log, "down", "n", 5)
		said("")
		time.Sleep(time.Nanosecond)
		th.Warn(log, "down", "n", 6)
		said("level=WARN msg=down n=6 suppressed=4\n")
		time.Sleep(5 * time.Second)
		th.Warn(log, "down", "n", 7)
		said("level=WARN msg=down n=7\n")

		slow := Throttle{Interval: time.Minute}
		slow.Warn(log, "a")
		time.Sleep(59 * time.Second)
		slow.Warn(log, "b")
		time.Sleep(time.Second)
		slow.Warn(log, "c")
		said("level=WARN msg=a\nlevel=WARN msg=c suppressed=1\n")
	})
}

func TestConfigPath(t *testing.T) {
	f := func(env, want string, args ...string) {
		t.Helper()
		t.Setenv("CTFLEET_CONFIG", env)
		if got := configPath(args); got != want {
			t.Errorf("%q with CTFLEET_CONFIG=%q: %q, want %q", args, env, got, want)
		}
	}
	f("", "")
	f("", "a.yaml", "--config", "a.yaml")
	f("", "a.yaml", "--name=x", "--config=a.yaml", "--check")
	f("", "", "--config=")
	f("", "", "--config")
	f("", "", "--configuration=a.yaml")
	f("", "", "--", "--config=a.yaml")
	f("b.yaml", "b.yaml", "--check")
	f("b.yaml", "a.yaml", "--config=a.yaml")
}

func TestLogger(t *testing.T) {
	var buf bytes.Buffer
	(&Flags{LogFormat: "json", LogLevel: slog.LevelWarn}).Logger(&buf).Warn("a", "b", "\x1b[31m\n")
	if got := buf.String(); !strings.Contains(got, `"msg":"a"`) || strings.Contains(got, "\x1b") {
		t.Errorf("json: %q", got)
	}
	buf.Reset()
	log := (&Flags{LogFormat: "text", LogLevel: slog.LevelWarn}).Logger(&buf)
	log.Info("hidden")
	log.Warn("a", "b", "\x1b[31m\n")
	if got := buf.String(); strings.Contains(got, "hidden") || !strings.Contains(got, "msg=a") || strings.Contains(got, "\x1b") || strings.Count(got, "\n") != 1 {
		t.Errorf("text: %q", got)
	}
}

func TestProgramVersion(t *testing.T) {
	defer func(v string) { Version = v }(Version)
	Version = ""
	if v := ProgramVersion(); !strings.HasPrefix(v, "devel") {
		t.Errorf("without a release: %q", v)
	}
	Version = "1.2.3"
	if v := ProgramVersion(); v != "1.2.3" {
		t.Errorf("released: %q", v)
	}
}

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

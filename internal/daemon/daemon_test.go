package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
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

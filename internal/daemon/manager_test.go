package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// manager listens where a service manager does, at a path or, on Linux, under an
// abstract name.
func manager(t *testing.T, name string) (next func() string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	t.Setenv("NOTIFY_SOCKET", name)
	buf := make([]byte, 4096)
	return func() string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("the service manager hears nothing more: %v", err)
		}
		return string(buf[:n])
	}
}

// runManager runs what a daemon runs, until the test ends or stop is called.
func runManager(t *testing.T, h Health) (m *Manager, stop func()) {
	t.Helper()
	if m = OpenManager(slog.New(slog.DiscardHandler)); m == nil {
		t.Fatal("there is no manager")
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx, h) }()
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		done <- nil
	}
	t.Cleanup(stop)
	return m, stop
}

// TestManager: the manager is told that we are ready when we are and not before, of a
// reload, and of the end.
func TestManager(t *testing.T) {
	names := []string{filepath.Join(t.TempDir(), "notify")}
	if runtime.GOOS == "linux" {
		names = append(names, fmt.Sprintf("@ctfleet-test-%d", os.Getpid()))
	}
	for _, name := range names {
		t.Run(name[:1], func(t *testing.T) {
			next := manager(t, name)
			says := func(want string) {
				t.Helper()
				if got := next(); got != want {
					t.Fatalf("said %q, want %q", got, want)
				}
			}
			var why atomic.Pointer[error]
			set := func(err error) { why.Store(&err) }
			set(errors.New("no connection to NATS\nREADY=1")) // a line of somebody else's choosing
			m, stop := runManager(t, Health{Ready: func() error { return *why.Load() }})
			says("STATUS=waiting: no connection to NATS READY=1")
			m.Reloading() // nobody asks yet
			m.Reloaded()
			set(errors.New("the replay has not caught up"))
			says("STATUS=waiting: the replay has not caught up")
			set(nil)
			says("READY=1\nSTATUS=ready")
			m.Reloading()
			if got := next(); !strings.HasPrefix(got, "RELOADING=1") || runtime.GOOS == "linux" && !strings.Contains(got, "\nMONOTONIC_USEC=") {
				t.Errorf("at a reload: %q", got)
			}
			m.Reloaded()
			says("READY=1\nSTATUS=ready")
			set(errors.New("no connection to NATS"))
			says("STATUS=waiting: no connection to NATS") // ready once, it stays started
			set(nil)
			says("STATUS=ready")
			stop()
			says("STOPPING=1\nSTATUS=stopping")
		})
	}
}

// TestWatchdog: it is told that we are alive while the loop goes round, and hears no
// more of that when the loop hangs.
func TestWatchdog(t *testing.T) {
	next := manager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "100000") // told every 50 ms
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	pulse := NewPulse("the loop", 200*time.Millisecond)
	hang := make(chan struct{})
	go func() {
		for {
			select {
			case <-hang:
				return
			case <-time.After(10 * time.Millisecond):
				pulse.Beat()
			}
		}
	}()
	_, stop := runManager(t, Health{Alive: pulse.Alive})
	for beats := 0; beats < 10; {
		if next() == "WATCHDOG=1" {
			beats++
		}
	}
	close(hang)
	hung := time.Now()
	time.AfterFunc(time.Second, stop)
	for last := ""; ; {
		if last = next(); strings.HasPrefix(last, "STOPPING") {
			break
		}
		if since := time.Since(hung); since > 500*time.Millisecond {
			t.Fatalf("%s after the loop hung it hears %q", since, last)
		}
	}
	if err := pulse.Alive(); err == nil || !strings.Contains(err.Error(), "the loop stands still") {
		t.Errorf("alive: %v", err)
	}
}

// TestStandstill: a loop that stands still for longer than the limit, and goes on, is told of as soon as it
// does, and not only when the next beat is due.
func TestStandstill(t *testing.T) {
	next := manager(t, filepath.Join(t.TempDir(), "notify"))
	t.Setenv("WATCHDOG_USEC", "4000000") // a beat each 2 s
	t.Setenv("WATCHDOG_PID", fmt.Sprint(os.Getpid()))
	var stands atomic.Bool
	stands.Store(true)
	_, stop := runManager(t, Health{Alive: func() error {
		if stands.Load() {
			return errors.New("it stands still")
		}
		return nil
	}})
	defer stop()
	time.AfterFunc(2200*time.Millisecond, func() { stands.Store(false) }) // 200 ms after a beat was due
	begin := time.Now()
	for next() != "WATCHDOG=1" {
	}
	if took := time.Since(begin); took < 2200*time.Millisecond || took > 3500*time.Millisecond {
		t.Errorf("a beat %s after it began, want one soon after 2.2 s", took)
	}
}

// TestStartedWithoutTheBus: what waits for this program to start does not wait for ever for what it waits for.
func TestStartedWithoutTheBus(t *testing.T) {
	next := manager(t, filepath.Join(t.TempDir(), "notify"))
	m := OpenManager(slog.New(slog.DiscardHandler))
	m.patience = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = m.Run(ctx, Health{Ready: func() error { return errors.New("no connection to NATS") }}) }()
	for _, want := range []string{"STATUS=waiting: no connection to NATS", "READY=1\nSTATUS=waiting: no connection to NATS"} {
		if got := next(); got != want {
			t.Fatalf("said %q, want %q", got, want)
		}
	}
}

// TestManagerOfOthers: without a manager, or with one that is not ours or cannot be
// reached, a daemon works as it does.
func TestManagerOfOthers(t *testing.T) {
	f := func(socket, usec, pid string, want bool, watchdog time.Duration, said string) {
		t.Helper()
		t.Setenv("NOTIFY_SOCKET", socket)
		t.Setenv("WATCHDOG_USEC", usec)
		t.Setenv("WATCHDOG_PID", pid)
		var log bytes.Buffer
		m := OpenManager(slog.New(slog.NewTextHandler(&log, nil)))
		if (m != nil) != want || m != nil && m.watchdog != watchdog || (said == "") != (log.Len() == 0) || !strings.Contains(log.String(), said) {
			t.Errorf("%q, %q of %q: %+v, log %q", socket, usec, pid, m, log.String())
		}
		if m == nil {
			m.Reloading()
			m.Reloaded()
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if err := m.Run(ctx, Health{}); err != nil {
				t.Error(err)
			}
		}
	}
	f("", "1000000", "", false, 0, "")
	f("vsock:2:9999", "", "", false, 0, "names no socket")
	f(filepath.Join(t.TempDir(), "nobody"), "", "", false, 0, "cannot be told")
	path := filepath.Join(t.TempDir(), "notify")
	manager(t, path)
	f(path, "", "", true, 0, "")
	f(path, "soon", "", true, 0, "")
	f(path, "2000000", "", true, 2*time.Second, "")
	f(path, "2000000", "1", true, 0, "") // another process's
}

func TestPulse(t *testing.T) {
	p := NewPulse("counting", 50*time.Millisecond)
	time.Sleep(60 * time.Millisecond)
	if err := p.Alive(); err != nil {
		t.Errorf("before it has begun: %v", err)
	}
	p.Beat()
	if err := p.Alive(); err != nil {
		t.Errorf("after a beat: %v", err)
	}
	if n := testing.AllocsPerRun(100, p.Beat); n != 0 {
		t.Errorf("a beat allocates %v times", n)
	}
	time.Sleep(60 * time.Millisecond)
	if err := p.Alive(); err == nil {
		t.Error("it stands still and is said to be alive")
	}
	(*Pulse)(nil).Beat()
}

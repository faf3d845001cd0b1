package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// part is something that can be read again, or not while it fails.
type part struct {
	mu      sync.Mutex
	fails   error
	applied int
}

func (p *part) read() (func(context.Context), error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return func(context.Context) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.applied++
	}, p.fails
}

func (p *part) set(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fails = err
}

// TestReloads: at each SIGHUP all parts are put in force, or none.
func TestReloads(t *testing.T) {
	var log syncBuffer
	reg := prometheus.NewRegistry()
	ctx, cancel := context.WithCancel(t.Context())
	var one, two part
	done := make(chan error, 1)
	go func() { done <- Reloads(ctx, slog.New(slog.NewTextHandler(&log, nil)), reg, nil, one.read, two.read) }()
	metric := func(outcome string) float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == outcome {
					return m.GetCounter().GetValue()
				}
			}
		}
		return -1
	}
	until := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("waited in vain until %s; log %s", what, log.String())
			}
		}
	}
	until("the metric is there", func() bool { return metric(reloadApplied) == 0 && metric(reloadRefused) == 0 })
	hangup := func() {
		t.Helper()
		if err := syscall.Kill(syscall.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangup()
	until("it is applied", func() bool { return metric(reloadApplied) == 1 })
	two.set(errors.New("policy.yaml:3:1: unknown key"))
	hangup()
	until("it is refused", func() bool { return metric(reloadRefused) == 1 })
	if !strings.Contains(log.String(), "policy.yaml:3:1: unknown key") {
		t.Errorf("log %q", log.String())
	}
	if one.applied != 1 || two.applied != 1 {
		t.Errorf("applied %d and %d times, want once: the second was refused as a whole", one.applied, two.applied)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if left, err := reg.Gather(); err != nil || len(left) != 0 {
		t.Errorf("%v are left, %v", left, err)
	}
}

// TestEarlyHangup: who is asked to read again before he listens is not killed.
func TestEarlyHangup(t *testing.T) {
	h := start(t, "drain")
	h.signal(syscall.SIGHUP)
	time.Sleep(50 * time.Millisecond)
	h.signal(syscall.SIGTERM)
	h.says("drained")
	if state := h.wait(); state.ExitCode() != 0 {
		t.Errorf("%v, want exit code 0", state)
	}
}

// syncBuffer is a buffer for two goroutines.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(slices.Clone(p))
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

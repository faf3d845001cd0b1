package bus

import (
	"context"
	"errors"
	"maps"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func pace(ms int) *events.Pace { return &events.Pace{LingerMS: uint32(ms)} }

func TestBucket(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	key, _, err := seal.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	var p events.Pace
	if rev, err := c.Get(t.Context(), BucketGuard, "k", &p); rev != 0 || err != nil {
		t.Errorf("none: revision %d, %v", rev, err)
	}
	first, err := c.Update(t.Context(), key, BucketGuard, "k", pace(1), 0)
	if err != nil || first == 0 {
		t.Fatalf("first: revision %d, %v", first, err)
	}
	if _, err := c.Update(t.Context(), nil, BucketGuard, "k", pace(2), 0); !errors.Is(err, ErrChanged) {
		t.Errorf("made twice: %v", err)
	}
	second, err := c.Update(t.Context(), nil, BucketGuard, "k", pace(3), first)
	if err != nil || second <= first {
		t.Errorf("second: revision %d after %d, %v", second, first, err)
	}
	if _, err := c.Update(t.Context(), nil, BucketGuard, "k", pace(4), first); !errors.Is(err, ErrChanged) {
		t.Errorf("changed meanwhile: %v", err)
	}
	if rev, err := c.Get(t.Context(), BucketGuard, "k", &p); rev != second || err != nil || p.LingerMS != 3 {
		t.Errorf("revision %d, %+v, %v; want %d", rev, p, err, second)
	}
	if err := c.Put(t.Context(), key, BucketGuard, "l", pace(5)); err != nil {
		t.Fatal(err)
	}
	entries, err := c.Entries(t.Context(), BucketGuard)
	if err != nil || len(entries) != 2 || entries[0].Seal != (seal.Seal{}) || entries[1].Seal.Key != key.Public() || BucketKey(BucketGuard, entries[1].Subject) != "l" {
		t.Errorf("entries %+v, %v", entries, err)
	}
}

// TestNoBucket: what is missing is said, with who makes it.
func TestNoBucket(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	c := connect(t, Config{Server: s})
	_, getErr := c.Get(t.Context(), BucketGuard, "k", pace(0))
	_, entriesErr := c.Entries(t.Context(), BucketGuard)
	for what, err := range map[string]error{"put": c.Put(t.Context(), nil, BucketGuard, "k", pace(1)), "get": getErr, "entries": entriesErr} {
		if err == nil || !strings.Contains(err.Error(), "ctfleet bootstrap creates it") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestMirror: it says whether it has heard all, through a restart of the server and
// when it is asked to begin anew.
func TestMirror(t *testing.T) {
	s := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	c := connect(t, Config{Flags: Flags{NATSURL: s.URL()}})
	other := connect(t, Config{Flags: Flags{NATSURL: s.URL()}})
	var mu sync.Mutex
	begun, held := 0, map[string]int{}
	done := 0
	m := c.NewMirror(BucketAllowlist, Reflection{Begin: func() {
		mu.Lock()
		begun++
		clear(held)
		mu.Unlock()
	}, Put: func(msg Msg) {
		var p events.Pace
		if err := events.Unmarshal(msg.Data, &p); err != nil {
			t.Errorf("%s: %v", msg.Subject, err)
		}
		mu.Lock()
		held[BucketKey(BucketAllowlist, msg.Subject)] = int(p.LingerMS)
		mu.Unlock()
	}, Done: func() { mu.Lock(); done++; mu.Unlock() }})
	if err := m.Current(); err == nil {
		t.Error("current before it was read")
	}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := m.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); run.Wait() })
	holds := func(what string, runs int, want map[string]int) {
		t.Helper()
		until(t, what, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return m.Current() == nil && maps.Equal(held, want) && begun >= runs && done >= runs
		})
	}
	until(t, "the missing bucket to be named", func() bool { return strings.Contains(m.Current().Error(), "ctfleet bootstrap") })
	if _, err := other.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	holds("an empty bucket", 1, map[string]int{})
	put := func(key string, v int) {
		t.Helper()
		if err := other.Put(t.Context(), nil, BucketAllowlist, key, pace(v)); err != nil {
			t.Fatal(err)
		}
	}
	put("a", 1)
	put("b", 2)
	put("a", 3)
	holds("three changes", 1, map[string]int{"a": 3, "b": 2})
	m.Again()
	holds("all of it again", 2, map[string]int{"a": 3, "b": 2})
	s.Stop()
	until(t, "the connection to break", func() bool { return c.Connected() != nil })
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	until(t, "the other to be back", func() bool { return other.Connected() == nil })
	put("c", 4)
	holds("what came after the restart", 3, map[string]int{"a": 3, "b": 2, "c": 4})
	if age := time.Since(m.Now()).Abs(); age > 5*time.Second {
		t.Errorf("its clock is off by %s", age)
	}
}

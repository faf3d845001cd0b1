package bus

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestWorkIsShared(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	subject := events.AlertSubject(events.Firing, "r", "fleet", "table")
	store(t, c, subject, "history") // nothing to act upon
	var mu sync.Mutex
	by := map[string]int{}   // worker → messages
	done := map[string]int{} // message → how often
	tries := map[string]int{}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for _, name := range []string{"one", "two"} {
		wg.Go(func() {
			err := c.Work(ctx, StreamAlerts, "workers", events.SubjectAlerts+".>", func(_ context.Context, m Msg) error {
				time.Sleep(5 * time.Millisecond)
				mu.Lock()
				defer mu.Unlock()
				tries[string(m.Data)]++
				if string(m.Data) == "w7" && tries["w7"] == 1 {
					return errors.New("not now")
				}
				by[name]++
				done[string(m.Data)]++
				return nil
			})
			if err != nil {
				t.Errorf("Work ended with %v", err)
			}
		})
	}
	until(t, "the consumer", func() bool { return c.consumers(t, StreamAlerts) == 1 })
	const n = 60
	store(t, c, subject, texts("w", n)...)
	until(t, "all work", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(done) == n
	})
	cancel()
	wg.Wait()
	if done["history"] != 0 {
		t.Error("what was before the first start was worked upon")
	}
	for text, times := range done {
		if times != 1 {
			t.Errorf("%s was done %d times", text, times)
		}
	}
	if tries["w7"] != 2 {
		t.Errorf("what failed once was tried %d times, want 2", tries["w7"])
	}
	for _, name := range []string{"one", "two"} {
		if by[name] < n/4 {
			t.Errorf("worker %s did %d of %d", name, by[name], n)
		}
	}
}

// TestWorkGoesOn restarts the server, and the worker: each message is finished
// once.
func TestWorkGoesOn(t *testing.T) {
	s, c := bootstrapped(t, DefaultLimits)
	subject := events.AlertSubject(events.Firing, "r", "fleet", "table")
	done := make(chan string, 100)
	work := func() (stop func()) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			_ = c.Work(ctx, StreamAlerts, "worker", events.SubjectAlerts+".>", func(_ context.Context, m Msg) error {
				done <- string(m.Data)
				return nil
			})
		})
		return func() { cancel(); wg.Wait() }
	}
	next := func(want string) {
		t.Helper()
		select {
		case got := <-done:
			if got != want {
				t.Errorf("worked upon %s, want %s", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("nobody works upon %s", want)
		}
	}
	stop := work()
	until(t, "the consumer", func() bool { return c.consumers(t, StreamAlerts) == 1 })
	store(t, c, subject, "one")
	next("one")
	s.Stop()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	other := connect(t, Config{Server: s})
	store(t, other, subject, "two")
	next("two")
	stop()
	store(t, other, subject, "three") // nobody works now
	defer work()()
	next("three")
	select {
	case again := <-done:
		t.Errorf("%s was worked upon again", again)
	case <-time.After(50 * time.Millisecond):
	}
}

package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestOutbox publishes while the server is stopped and started: everything
// arrives, once, in order where it is about the same thing; and what can never
// be published is said and stands in nobody's way.
func TestOutbox(t *testing.T) {
	s := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	c := connect(t, Config{Flags: Flags{NATSURL: s.URL()}})
	if _, err := c.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	var refused atomic.Int64
	o := c.NewOutbox(4096, func(subject string, err error) {
		if !strings.Contains(subject, ".large.") || err == nil {
			t.Errorf("refused: %s: %v", subject, err)
		}
		refused.Add(1)
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := o.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	const things, each = 20, 30
	put := func(rule string, n int, text string) {
		t.Helper()
		a := &events.Alert{ID: rule, Rule: rule, State: events.Firing, Scope: "fleet", Realm: "default", Key: "192.0.2.1", Track: "by_src", Metric: "new", Value: float64(n), Text: text}
		if err := o.Put(events.AlertSubject(a.State, rule, a.Scope, "192-0-2-1"), fmt.Sprint(rule, ":", n), rule, a); err != nil {
			t.Fatal(err)
		}
	}
	for n := range each {
		for thing := range things {
			put(fmt.Sprint("rule-", thing), n, "")
		}
		switch n {
		case 5:
			put("large", n, strings.Repeat("x", events.MaxMessageBytes))
		case 10:
			s.Stop()
		case 20:
			time.Sleep(300 * time.Millisecond)
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
		}
	}
	seen, total := map[string]float64{}, 0
	follow, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	_ = c.Follow(follow, StreamAlerts, FollowFrom{All: true}, func(m Msg) {
		var a events.Alert
		if err := events.Unmarshal(m.Data, &a); err != nil {
			t.Error(err)
		}
		if a.Value != seen[a.Rule] {
			t.Errorf("%s: %v came, want %v", a.Rule, a.Value, seen[a.Rule])
		}
		seen[a.Rule] = a.Value + 1
		if total++; total == things*each {
			stop()
		}
	})
	if total != things*each || refused.Load() != 1 {
		t.Errorf("%d of %d messages arrived, %d were refused", total, things*each, refused.Load())
	}
	cancel()
	wg.Wait()
	full := c.NewOutbox(1, nil)
	for want := error(nil); ; want = ErrFull {
		if err := full.Put("x", "", "", &events.Pace{}); !errors.Is(err, want) {
			t.Errorf("put: %v, want %v", err, want)
		}
		if want != nil {
			break
		}
	}
}

// TestOutboxHoldsUpNoOthers: a message waits for those about the same thing that
// were put in before it, and for nothing else.
func TestOutboxHoldsUpNoOthers(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	pub, err := c.NewPublisher("")
	if err != nil {
		t.Fatal(err)
	}
	defer pub.Close()
	o := c.NewOutbox(8, nil)
	o.flying = []letter{{id: "a1", about: "a"}}
	for _, id := range []string{"a2", "b1", "a3", "b2", "c1"} {
		o.waiting = append(o.waiting, letter{subject: events.SubjectPace, id: id, about: id[:1]})
	}
	if err := o.sendWaiting(pub); err != nil {
		t.Fatal(err)
	}
	ids := func(letters []letter) (text string) {
		for _, l := range letters {
			text += l.id + " "
		}
		return text
	}
	if got := ids(o.flying) + "| " + ids(o.waiting); got != "a1 b1 c1 | a2 a3 b2 " {
		t.Errorf("on their way | waiting: %s", got)
	}
	o.flying = o.flying[1:]
	if err := o.sendWaiting(pub); err != nil {
		t.Fatal(err)
	}
	if got := ids(o.flying) + "| " + ids(o.waiting); got != "b1 c1 a2 | a3 b2 " {
		t.Errorf("on their way | waiting: %s", got)
	}
}

// TestOutboxOfTwo: of two processes that say the same at the same time one is kept, and
// the other finds out that there is nothing to add; what is new is kept, of whomever, in
// order; nothing waits for one that has gone.
func TestOutboxOfTwo(t *testing.T) {
	s := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if _, err := connect(t, Config{Server: s}).Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	const processes, things, steps = 2, 30, 20
	subject := func(thing, step int) string {
		return events.AlertSubject([]string{events.Firing, events.Resolved}[step%2], fmt.Sprint("rule-", thing), "fleet", "table")
	}
	var superfluous atomic.Int64
	var all sync.WaitGroup
	var stopSecond func()
	for p := range processes {
		c := connect(t, Config{Flags: Flags{NATSURL: s.URL()}})
		o := c.NewOutbox(things*steps, func(subject string, err error) { t.Errorf("refused: %s: %v", subject, err) })
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		all.Go(func() {
			if err := o.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		if p == 1 {
			stopSecond = cancel
		} else {
			defer all.Wait()
			defer cancel()
		}
		all.Go(func() {
			for step := range steps {
				for thing := range things {
					m := &events.Alert{ID: "x", Rule: "r", State: events.Firing, Scope: "fleet", Realm: "default", Key: "table", Value: float64(step)}
					about := events.SubjectAlerts + ".*." + events.SubjectAlert(subject(thing, step))
					err := o.PutUnless(subject(thing, step), fmt.Sprint(p, ":", thing, ":", step), about, m, func(last Msg) bool {
						var theirs events.Alert
						if err := events.Unmarshal(last.Data, &theirs); err != nil {
							t.Error(err)
						}
						if theirs.Value >= float64(step) {
							superfluous.Add(1)
							return true
						}
						return false
					})
					if err != nil {
						t.Error(err)
					}
				}
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	seen, total := map[string]float64{}, 0
	follow, stop := context.WithTimeout(t.Context(), 20*time.Second)
	defer stop()
	_ = connect(t, Config{Server: s}).Follow(follow, StreamAlerts, FollowFrom{All: true}, func(m Msg) {
		var a events.Alert
		if err := events.Unmarshal(m.Data, &a); err != nil {
			t.Error(err)
		}
		about := events.SubjectAlert(m.Subject)
		if a.Value != seen[about] {
			t.Errorf("%s: step %v came, want %v", about, a.Value, seen[about])
		}
		seen[about] = a.Value + 1
		if total > things*steps/2 && superfluous.Load() > 0 {
			stopSecond() // one stops in the middle
		}
		if total++; total == things*steps {
			time.AfterFunc(100*time.Millisecond, stop) // is there more?
		}
	})
	if total != things*steps {
		t.Errorf("%d messages are kept, want %d", total, things*steps)
	}
	if superfluous.Load() == 0 {
		t.Error("the two never met")
	}
}

package responder

import (
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// updated is an alert about what goes through fw-a, at its n-th update.
func updated(n int64) func(*events.Alert) {
	return func(a *events.Alert) { a.Firewalls, a.Updated = map[string]float64{"fw-a": 200}, 1000+n }
}

// TestSustained: an attack that goes on is flushed again after each cool-down,
// and in between its updates leave no trace.
func TestSustained(t *testing.T) {
	const coolDown = 1500 * time.Millisecond
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) { f.CoolDown = coolDown }))
	r.working()
	r.fire(alert("a1", "198.18.0.1", updated(0)))
	r.until("the first command", func() bool { return len(r.commands("fw-a")) == 1 })
	begun := time.UnixMilli(r.decisions(1)[0].Time)
	for n := range int64(3) {
		r.fire(alert("a1", "198.18.0.1", updated(1+n)))
	}
	r.settled("within")
	if since := time.Since(begun); since < coolDown {
		r.decisions(1)
		if n := len(r.commands("fw-a")); n != 1 {
			t.Errorf("%d commands %s after the first", n, since)
		}
	} else {
		t.Logf("this machine is too slow to look within the cool-down: %s", since)
	}
	time.Sleep(time.Until(begun.Add(coolDown + 10*time.Millisecond)))
	r.fire(alert("a1", "198.18.0.1", updated(4)))
	r.until("the second command", func() bool { return len(r.commands("fw-a")) == 2 })
	r.fire(alert("a1", "198.18.0.1", updated(5)))
	r.settled("end")
	ds, c := r.decisions(2), r.commands("fw-a")
	if apart := time.Duration(ds[1].Time-ds[0].Time) * time.Millisecond; apart < coolDown || ds[1].Outcome != events.OutcomeCommanded {
		t.Errorf("%s after the first decision: %+v", apart, ds[1])
	}
	if len(c) != 2 || c[0].ID == c[1].ID {
		t.Errorf("a guard would refuse the second command as a repetition: %+v", c)
	}
}

// TestAllFailed: when nothing came of any command, the next update tries again,
// also when another responder gets it, or this one after a restart.
func TestAllFailed(t *testing.T) {
	refused := func(reason string, deleted uint64) func(*events.Command) (events.Message, error) {
		return func(c *events.Command) (events.Message, error) {
			rec := &events.Receipt{ID: c.ID, Firewall: c.Firewall, Verb: c.Verb, Deleted: deleted, Refused: []events.Refusal{}, Error: "it went wrong"}
			if reason != "" {
				rec.Refused = append(rec.Refused, events.Refusal{Reason: reason})
			}
			return rec, nil
		}
	}
	for _, f := range []struct {
		what   string
		answer func(*events.Command) (events.Message, error)
		failed bool
	}{
		{"an error", func(*events.Command) (events.Message, error) { return nil, errors.New("it went wrong") }, true},
		{"a receipt with an error", refused("", 0), true},
		{"a command to the last boot", refused(guard.WrongBoot, 0), true},
		{"a refusal for good", refused(guard.Protected, 0), false},
		{"a flush that was cut short", refused("", 3), false},
	} {
		t.Run(f.what, func(t *testing.T) {
			t.Parallel()
			r := newRig(t)
			r.bootstrap()
			var broken atomic.Bool
			broken.Store(true)
			r.join(&firewall{name: "fw-a", answer: func(c *events.Command) (events.Message, error) {
				if broken.Load() {
					return f.answer(c)
				}
				return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Deleted: 7}, nil
			}})
			stop := r.run(enforce(nil))
			r.working()
			r.fire(alert("a1", "198.18.0.1", updated(0)))
			if !f.failed {
				r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
				r.fire(alert("a1", "198.18.0.1", updated(1)))
				r.settled("end")
				r.decisions(1)
				if n := len(r.commands("fw-a")); n != 1 {
					t.Errorf("%d commands within the cool-down", n)
				}
				return
			}
			check := func(n int) {
				t.Helper()
				ds := r.decisions(2 * n)
				d, was := ds[2*n-1], ds[2*n-2]
				if was.Outcome != events.OutcomeCommanded || d.Outcome != events.OutcomeFailed || d.Alert != "a1" || !slices.Equal(d.Firewalls, []string{"fw-a"}) ||
					!strings.HasPrefix(d.Reason, "nothing was done, an update of the alert tries again: fw-a: ") || !strings.HasSuffix(d.Reason, "it went wrong") {
					t.Errorf("attempt %d: %+v, then %+v", n, was, d)
				}
			}
			check(1)
			r.fire(alert("a1", "198.18.0.1", updated(1))) // the same responder
			check(2)
			stop()
			stop = r.run(enforce(nil))
			r.fire(alert("a1", "198.18.0.1", updated(2))) // one that recalls
			check(3)
			// One that hears it all, and is alone then.
			r.run(enforce(nil))
			r.settled("both")
			broken.Store(false)
			stop()
			r.fire(alert("a1", "198.18.0.1", updated(3)))
			r.until("the command that is carried out", func() bool { return len(r.commands("fw-a")) == 4 })
			r.fire(alert("a1", "198.18.0.1", updated(4)))
			r.settled("end")
			if ds, c := r.decisions(7), r.commands("fw-a"); ds[6].Outcome != events.OutcomeCommanded || len(c) != 4 {
				t.Errorf("%d commands, at last %+v", len(c), ds[6])
			}
		})
	}
}

// TestSomeFailed: the record says which, and the cool-down stays.
func TestSomeFailed(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.join(&firewall{name: "fw-b", answer: func(*events.Command) (events.Message, error) { return nil, errors.New("it went wrong") }})
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", nil))
	d := r.decisions(2)[1]
	if d.Outcome != events.OutcomeFailed || !slices.Equal(d.Firewalls, []string{"fw-b"}) || len(d.Commands) != 2 || !strings.HasPrefix(d.Reason, "1 of 2 commands failed: fw-b: ") {
		t.Errorf("decision: %+v", d)
	}
	r.fire(alert("a1", "198.18.0.1", func(a *events.Alert) { a.Updated = 2000 }))
	r.settled("end")
	r.decisions(2)
	if a, b := len(r.commands("fw-a")), len(r.commands("fw-b")); a != 1 || b != 1 {
		t.Errorf("%d and %d commands", a, b)
	}
}

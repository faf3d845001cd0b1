package responder

import (
	"context"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// sighting is the last health of a firewall and when it came.
type sighting struct {
	health events.Health
	at     time.Time // by our clock
	live   bool      // we heard it ourselves; otherwise it was recalled
}

// fresh reports whether the firewall can be commanded: its clock and its boot
// are known.
func (s sighting) fresh() bool { return time.Since(s.at) < freshFor && !s.health.Stopping }

// recall learns how things stand before the first alert is handled: an alert
// may wait for us already, and without knowing the firewalls, and what was done
// a moment ago, the decision about it would be wrong. It fails only when ctx
// ends.
func (r *Responder) recall(ctx context.Context) error {
	for {
		err := r.conn.WaitConnected(ctx)
		if err == nil {
			err = r.recallOnce(ctx)
		}
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		r.throttle.Warn(r.log, "cannot read how things stand, retrying", "error", err)
		daemon.Sleep(ctx, 300*time.Millisecond)
	}
}

func (r *Responder) recallOnce(ctx context.Context) error {
	if err := r.readClock(ctx); err != nil {
		return err
	}
	last, err := r.conn.Last(ctx, bus.StreamLast, events.SubjectHealth+".*")
	if err != nil {
		return err
	}
	for _, m := range last {
		r.recallHealth(m, time.Now())
	}
	return nil
}

// recallHealth notes a firewall's last health, unless it has reported since.
func (r *Responder) recallHealth(m bus.Msg, now time.Time) {
	r.sightAt(m.Subject, m.Data, now.Add(-r.clock.Age(m.Time, now)), false)
}

func (r *Responder) sight(subject string, data []byte) { r.sightAt(subject, data, time.Now(), true) }

// sightAt notes a firewall's health that was sent at the given time of our
// clock. What we hear ourselves is newer than whatever is recalled.
func (r *Responder) sightAt(subject string, data []byte, at time.Time, live bool) {
	var h events.Health
	name, err := events.SubjectFirewall(subject, events.SubjectHealth)
	if err == nil {
		err = events.Unmarshal(data, &h)
	}
	if err == nil && h.Firewall != name {
		err = fmt.Errorf("it says it is from %s", h.Firewall)
	}
	if err != nil {
		r.refuse("health", subject, err)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if live || !r.fleet[name].live {
		r.fleet[name] = sighting{h, at, live}
	}
}

// known lists the firewalls heard of, for the policy. r.mu is held.
func (r *Responder) known() []policy.Firewall {
	var out []policy.Firewall
	for name, s := range r.fleet {
		out = append(out, policy.Firewall{Name: name, Realm: s.health.Realm, Fresh: s.fresh()})
	}
	return out
}

// awaitFleet waits, for a moment after the start, until the firewalls of an
// alert have been heard.
func (r *Responder) awaitFleet(ctx context.Context, a *events.Alert) {
	for time.Since(r.listening) < fleetWait && ctx.Err() == nil {
		heard := 0
		r.mu.Lock()
		for name := range a.Firewalls {
			if r.fleet[name].fresh() {
				heard++
			}
		}
		r.mu.Unlock()
		if heard == len(a.Firewalls) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

package responder

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// notify hands all alerts to the notifier until ctx ends: first those that fire
// already, for whoever did not hear of them before.
func (r *Responder) notify(ctx context.Context) error {
	r.awaitMutes(ctx)
	var begin time.Time
	for {
		if r.conn.WaitConnected(ctx) != nil {
			return nil
		}
		begin = time.Now().Add(-time.Minute) // by whichever clock: the same alert again is one
		err := r.recallFiring(ctx)
		if err == nil {
			break
		}
		r.throttle.Warn(r.log, "cannot read which alerts fire, retrying", "error", err)
		if !daemon.Sleep(ctx, time.Second) {
			return nil
		}
	}
	return r.conn.Follow(ctx, bus.StreamAlerts, bus.FollowFrom{Time: begin}, r.tell)
}

// recallFiring tells of what fires.
func (r *Responder) recallFiring(ctx context.Context) error {
	last, err := r.conn.LastAlerts(ctx)
	if err != nil {
		return err
	}
	for _, m := range last {
		if events.SubjectTail(m.Subject, events.SubjectAlerts)[0] == events.Firing {
			r.tell(m)
		}
	}
	return nil
}

func (r *Responder) tell(m bus.Msg) {
	var a events.Alert
	err := events.Unmarshal(m.Data, &a)
	if err == nil {
		err = matches(m.Subject, &a)
	}
	if err != nil {
		r.refuse("alert", m.Subject, err)
		return
	}
	r.notifier.Put(&a)
}

package aggregator

import (
	"context"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// said is what operators said last of each firewall. The aggregator trusts no key: it
// shows what the bucket says of who is muted, and responders, who act by it, verify it;
// and dismisses whom the bucket says, so that who may write it is the server's to say.
type said struct {
	mutes      map[string]events.Mute
	dismissals map[string]events.Dismissal
}

func newSaid() said {
	return said{map[string]events.Mute{}, map[string]events.Dismissal{}}
}

// takeOrder takes a value of the bucket CT_GUARD. Whether the circuit is open is known
// to the responders, who may not raise alarms.
func (a *Aggregator) takeOrder(m bus.Msg) {
	key := bus.BucketKey(bus.BucketGuard, m.Subject)
	var ledger events.Ledger
	var mute events.Mute
	var dismissal events.Dismissal
	var err error
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case key == events.KeyLedger:
		if err = events.Unmarshal(m.Data, &ledger); err == nil {
			a.circuit = ledger.Circuit
		}
	case strings.HasPrefix(key, events.MuteKey("")):
		if err = events.Unmarshal(m.Data, &mute); err == nil && key == events.MuteKey(mute.Firewall) {
			a.said.mutes[mute.Firewall] = mute
		}
	case strings.HasPrefix(key, events.DismissKey("")):
		if err = events.Unmarshal(m.Data, &dismissal); err == nil && key == events.DismissKey(dismissal.Firewall) {
			a.said.dismissals[dismissal.Firewall] = dismissal
			if a.live && a.fleet[dismissal.Firewall] == nil {
				a.counter.Forget(dismissal.Firewall)
			}
		}
	}
	if err != nil {
		a.refuse("order", m.Subject, err)
	}
}

// mutedUntil is until when nobody is told of a firewall's alerts, in Unix ms; 0: it is
// not muted.
func (a *Aggregator) mutedUntil(firewall string, now time.Time) int64 {
	if until := a.said.mutes[firewall].Until; until > a.clock.At(now).UnixMilli() {
		return until
	}
	return 0
}

// dismissed reports whether a firewall is no part of the fleet any more: it is away,
// and has sent nothing since that was said.
func (s *said) dismissed(f *firewall, now time.Time) bool {
	d := s.dismissals[f.health.Firewall]
	state := f.state(now)
	return d.Covers(&f.health) && (state == events.StateSilent || state == events.StateStopped)
}

// leaveOut forgets the firewalls that were dismissed before, of which a replay has read
// something: no report is left of them, by which they would be forgotten.
func (a *Aggregator) leaveOut() {
	for name := range a.said.dismissals {
		if a.fleet[name] == nil {
			a.counter.Forget(name)
		}
	}
}

// maxPurges is how many firewalls may wait to be taken out of the stream.
const maxPurges = 64

// purge has a firewall's last report taken out of the stream, so that nobody who starts
// takes it for a part of the fleet. What is not is left out by its dismissal.
func (a *Aggregator) purge(name string) {
	select {
	case a.purges <- name:
	default:
	}
}

func (a *Aggregator) purgeLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case name := <-a.purges:
			if err := a.conn.PurgeSubject(ctx, bus.StreamLast, events.HealthSubject(name)); err != nil && ctx.Err() == nil {
				a.log.Warn("cannot take the last report of a firewall that was dismissed out of the stream", "firewall", name, "error", err)
			}
		}
	}
}

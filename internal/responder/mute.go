package responder

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// mutes are the firewalls of whose alerts nobody is told for a while: what operators
// said last of each.
type mutes struct {
	mu sync.Mutex
	of map[string]events.Mute
}

const (
	// muteLook is how often it is looked at whether a mute is over.
	muteLook = time.Second
	// muteSaid is how old an order may be that is confirmed in the audit: later it is
	// read again, at each start say.
	muteSaid = 10 * time.Second
	// muteAhead is how far the clock of who signed an order may be ahead.
	muteAhead = time.Minute
)

// takeMute takes what an operator said of a firewall. Where that cannot be verified
// people are told, whatever was said before: to be told too much does no harm.
func (r *Responder) takeMute(name string, m bus.Msg) {
	var mute events.Mute
	party, err := r.trust.Verify(m.Seal, seal.VerbGuard, m.Subject, m.Data)
	if err == nil {
		err = events.Unmarshal(m.Data, &mute)
	}
	if err == nil && mute.Firewall != name {
		err = fmt.Errorf("it is about %s", mute.Firewall)
	}
	r.mutes.mu.Lock()
	before, known := r.mutes.of[name]
	switch {
	case err != nil && known:
		r.mutes.of[name] = events.Mute{Firewall: name, Time: before.Time}
	case err != nil:
	case time.UnixMilli(mute.Time).Sub(r.orders.Now()) > muteAhead:
		// It would hold against every later order, and for longer than MaxMute.
		err = errors.New("it is of a time to come")
	case mute.Time < before.Time:
		err = errors.New("it is of before what is known")
	default:
		r.mutes.of[name] = mute
	}
	r.mutes.mu.Unlock()
	if r.notifier != nil {
		r.notifier.Wake() // it may be muted no more
	}
	if err != nil {
		r.refuse("mute", m.Subject, err)
		return
	}
	if mute == before || r.orders.Now().Sub(time.UnixMilli(mute.Time)) > muteSaid {
		return
	}
	what := "nobody is told of the alerts of " + name + " until " + time.UnixMilli(mute.Until).UTC().Format(time.RFC3339)
	if mute.Until == 0 {
		what = name + " is muted no more"
	}
	r.log.Warn(what, "who", party.Name, "reason", mute.Reason)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r.act(ctx, &events.Act{Verb: events.VerbMute, What: what, Who: party.Name, Reason: mute.Reason, Time: mute.Time})
}

// muted reports whether nobody is to be told of an alert for now.
func (r *Responder) muted(a *events.Alert) bool {
	r.mutes.mu.Lock()
	until := r.mutes.of[a.Scope].Until
	r.mutes.mu.Unlock()
	return until != 0 && time.UnixMilli(until).After(r.orders.Now())
}

// unmute has people told of what fires still when the time of a mute is over, until ctx
// ends.
func (r *Responder) unmute(ctx context.Context) error {
	looked := r.orders.Now()
	for daemon.Sleep(ctx, muteLook) {
		now, over := r.orders.Now(), false
		r.mutes.mu.Lock()
		for _, m := range r.mutes.of {
			until := time.UnixMilli(m.Until)
			over = over || until.After(looked) && !until.After(now)
		}
		r.mutes.mu.Unlock()
		if looked = now; over {
			r.notifier.Wake()
		}
	}
	return nil
}

// awaitMutes waits for a moment until it is known who is muted: after a restart, people
// are not to be told of them first.
func (r *Responder) awaitMutes(ctx context.Context) {
	for begin := time.Now(); r.orders.Current() != nil && time.Since(begin) < allowWait; {
		if !daemon.Sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}

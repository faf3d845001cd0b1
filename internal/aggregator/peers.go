package aggregator

import (
	"context"
	"maps"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Several aggregators may count the same fleet, so that one may be killed. None leads:
// each counts and judges all of it. What they say of alerts goes through one place, the
// stream of alerts, which takes a message only from who knows the last one about the
// same rule, scope and key; and each follows what the others have said.

// superfluous reports whether the last message about the subject of an alert of ours,
// which this aggregator did not publish, leaves nothing to add. before is when ours was
// last reported as far as we knew when we wrote it, in ms.
func (a *Aggregator) superfluous(ours *events.Alert, before int64, last bus.Msg) bool {
	var theirs events.Alert
	if events.Unmarshal(last.Data, &theirs) != nil {
		return false // it says nothing of alerts, whatever it is
	}
	// It may not have been followed yet; and where we had another alert for the same
	// subject, theirs is the one whose end we have to see to.
	a.hear(&theirs)
	same := theirs.ID == ours.ID
	switch {
	case theirs.State == events.Firing && !same:
		return true
	case theirs.State == events.Firing:
		return ours.State == events.Firing && theirs.Updated > before
	case ours.State == events.Resolved:
		return true
	}
	return same // it has come and gone before we knew: we are behind
}

// hear takes note of an alert that an aggregator has published, perhaps this one.
func (a *Aggregator) hear(al *events.Alert) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if al.State == events.Resolved {
		a.isOver(al.ID)
	} else if _, over := a.over[al.ID]; over {
		return // published before the end, and heard after it
	}
	if err := a.engine.Hear(adopted(al), al.State == events.Resolved); err != nil {
		a.log.Debug("an alert is not followed", "error", err)
	}
}

// maxOver bounds what is remembered of alerts that are over, and overFor for how long: what was
// published before an end comes within seconds after it.
const (
	maxOver = 1 << 14
	overFor = time.Minute
)

// isOver remembers that an alert is: each that fires has an id of its own, so it does not
// fire again.
func (a *Aggregator) isOver(id string) {
	now := time.Now()
	if len(a.over) >= maxOver {
		maps.DeleteFunc(a.over, func(_ string, since time.Time) bool { return now.Sub(since) > overFor })
	}
	if len(a.over) < maxOver {
		a.over[id] = now
	}
}

// hearAlerts follows what all aggregators publish, from where adopt began.
func (a *Aggregator) hearAlerts(ctx context.Context) error {
	return a.conn.Follow(ctx, bus.StreamAlerts, a.alertsFrom, func(m bus.Msg) {
		var al events.Alert
		if err := events.Unmarshal(m.Data, &al); err != nil {
			a.refuse("alert", m.Subject, err)
			return
		}
		a.hear(&al)
	})
}

// othersFirst is how long an aggregator that has not caught up waits before it answers a
// question: who asks takes the first answer, and another one's is better.
const othersFirst = 300 * time.Millisecond

// letOthersAnswer waits while there may be somebody who knows more.
func (a *Aggregator) letOthersAnswer(ctx context.Context) {
	if !a.ready.Load() {
		daemon.Sleep(ctx, othersFirst)
	}
}

package aggregator

import (
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// fleetMessages is how many messages a second all firewalls together may
	// send: a server was healthy at twice as many.
	fleetMessages = 10_000
	// While messages are counted later than lagging after the server took them, the
	// pace slows down at every look; while that is hardly any time it picks up
	// again, more gently, so that the two do not take turns.
	lagging  = 250 * time.Millisecond
	abreast  = lagging / 5
	slowDown = 1.25
	pickUp   = 0.95
)

// A pacer says how long producers shall linger: so that the fleet stays under
// fleetMessages, and longer where even that is too much for whoever serves and
// counts them. What matters to both is the number of messages more than what is in them.
type pacer struct {
	stretch float64 // at least 1
}

// next is asked at every look.
func (p *pacer) next(fleet int, behind time.Duration) *events.Pace {
	switch {
	case behind > lagging:
		p.stretch *= slowDown
	case behind < abreast:
		p.stretch *= pickUp
	}
	p.stretch = min(max(p.stretch, 1), events.MaxLingerMS)
	// Without a fleet to speak of there are a few milliseconds to stretch all the same.
	linger := float64(fleet) * 1000 / fleetMessages
	if p.stretch > 1 {
		linger = max(linger, 1) * p.stretch
	}
	return &events.Pace{LingerMS: uint32(min(linger, events.MaxLingerMS)), Fleet: uint32(fleet)}
}

// pace is asked for at every look.
func (a *Aggregator) pace(now time.Time) *events.Pace {
	a.mu.Lock()
	defer a.mu.Unlock()
	fleet := 0
	for _, f := range a.fleet {
		if f.state(now) == events.StateFresh {
			fleet++
		}
	}
	behind := a.behind
	if now.Sub(a.heard) > vanished {
		behind = 0 // nothing comes
	}
	return a.pacer.next(fleet, behind)
}

package aggregator

import (
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// fleetMessages is how many messages a second all firewalls together may
	// send: a server was healthy at twice as many.
	fleetMessages = 10_000
	// While more than lagging messages are not counted yet, a tenth of a second's,
	// the pace slows down at every look; while hardly any are it picks up again,
	// more gently, so that the two do not take turns.
	lagging  = fleetMessages / 10
	abreast  = lagging / 10
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
func (p *pacer) next(fleet int, lag uint64) *events.Pace {
	switch {
	case lag > lagging:
		p.stretch *= slowDown
	case lag < abreast:
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

// announce is the pace as of now.
func (a *Aggregator) announce(now time.Time) *events.Pace {
	a.mu.Lock()
	defer a.mu.Unlock()
	fleet := 0
	for _, f := range a.fleet {
		if f.state(now) == events.StateFresh {
			fleet++
		}
	}
	return a.pacer.next(fleet, a.lag)
}

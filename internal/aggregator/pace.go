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
	self    string  // by which we know our own announcements; others may not have the same
	stretch float64 // at least 1

	// What another aggregator said last, and when. Producers follow the last word, so of
	// several aggregators the one that needs the longest linger has it: the others keep
	// quiet for as long as they hear of that, and speak when they hear of less.
	other   uint32 // ms
	otherBy string
	heard   time.Time
}

// silence is after how long without a word another aggregator is taken to be gone.
const silence = 2 * paceInterval

// hear takes what was announced.
func (p *pacer) hear(said *events.Pace, now time.Time) {
	if said.By == p.self {
		return
	}
	// Two others may differ: the longer one counts, until its own aggregator says less.
	if said.LingerMS >= p.other || said.By == p.otherBy || now.Sub(p.heard) > silence {
		p.other, p.otherBy, p.heard = said.LingerMS, said.By, now
	}
}

// quiet reports whether another aggregator's word is enough. Of two that need the same
// one speaks.
func (p *pacer) quiet(need uint32, now time.Time) bool {
	if p.heard.IsZero() || now.Sub(p.heard) > silence {
		return false
	}
	return p.other > need || p.other == need && p.otherBy < p.self
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
	return &events.Pace{LingerMS: uint32(min(linger, events.MaxLingerMS)), Fleet: uint32(fleet), By: p.self}
}

func (a *Aggregator) hearPace(subject string, data []byte) {
	var said events.Pace
	if err := events.Unmarshal(data, &said); err != nil {
		a.refuse("pace", subject, err)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pacer.hear(&said, time.Now())
}

// pace is asked for at every look: what we need, and whether to say so.
func (a *Aggregator) pace(now time.Time) (pace *events.Pace, speak bool) {
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
	pace = a.pacer.next(fleet, behind)
	return pace, !a.pacer.quiet(pace.LingerMS, now)
}

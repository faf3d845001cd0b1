package aggregator

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// askGrace is how long a producer that has just come has for its first
	// snapshot, which it sends unasked.
	askGrace = 2 * time.Second
	// askPause is how long a firewall has to answer a resync before it is
	// asked again.
	askPause = 10 * time.Second
	// resyncBytesPerSecond bounds what all dumps together bring to the bus.
	resyncBytesPerSecond = 5 << 20
	// maxPause bounds the pause after one resync, whatever a firewall says of
	// its size.
	maxPause = 5 * time.Second
	// flowBytes is what one flow takes in a snapshot, roughly.
	flowBytes = 26
	// paceInterval is how often the pace is announced, for producers that come;
	// paceLook how often whether it has to be another.
	paceInterval = 5 * time.Second
	paceLook     = 200 * time.Millisecond
	// resyncLook is how often firewalls are looked at that may need a resync.
	resyncLook = 100 * time.Millisecond
)

// paceLoop says how long producers shall linger: at once when that has to be
// another, and again for producers that come.
func (a *Aggregator) paceLoop(ctx context.Context) error {
	stop, err := a.conn.Subscribe(events.SubjectPace, a.hearPace)
	if err != nil {
		return err
	}
	defer stop()
	var said events.Pace
	var paced, read time.Time
	for daemon.Sleep(ctx, paceLook) {
		if !a.ready.Load() || a.conn.Connected() != nil {
			continue
		}
		now := time.Now()
		if now.Sub(read) >= bus.ClockFor {
			read = now
			a.readClock(ctx)
		}
		pace, speak := a.pace(now)
		if !speak {
			said = events.Pace{} // to be said again when it falls to us
			continue
		}
		if *pace != said || now.Sub(paced) >= paceInterval {
			paced, said = now, *pace
			if err := a.conn.Send(events.SubjectPace, pace); err != nil {
				a.log.Debug("cannot announce the pace", "error", err)
			}
		}
	}
	return nil
}

// readClock reads the server's clock, by which we know how far behind we are.
// Without an answer the last reading is the best that there is.
func (a *Aggregator) readClock(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	clock, err := a.conn.Clock(ctx, bus.StreamEvents)
	if err != nil {
		a.log.Debug("goes on with an old reading", "error", err)
		return
	}
	a.mu.Lock()
	a.clock = clock
	a.mu.Unlock()
}

// resyncLoop asks for resyncs where active is not known or no longer right.
func (a *Aggregator) resyncLoop(ctx context.Context) error {
	var next time.Time
	for daemon.Sleep(ctx, resyncLook) {
		now := time.Now()
		if !a.ready.Load() || now.Before(next) || a.conn.Connected() != nil {
			continue
		}
		if name, flows := a.needsResync(now); name != "" && a.askResync(ctx, name) {
			seconds := float64(flows) * flowBytes / resyncBytesPerSecond
			next = now.Add(time.Duration(min(seconds, maxPause.Seconds()) * float64(time.Second)))
		}
	}
	return nil
}

// needsResync picks a firewall whose active count is not known, or no longer
// right, and that has not been asked a moment ago. What had to go for want of room
// is not asked for before there is some: it would only go again.
func (a *Aggregator) needsResync(now time.Time) (name string, flows uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	room := a.counter.Room()
	for n, f := range a.fleet {
		if f.health.Source != "" { // it cannot dump a table
			continue
		}
		if f.state(now) != events.StateFresh || f.health.Stream.Resyncing || now.Sub(f.since) < askGrace || now.Sub(f.asked) < askPause {
			continue
		}
		acc, ok := a.counter.Account(n)
		pending := acc.Pending && a.counter.Now()-acc.PendingSince < int64(askPause)
		if ok && acc.ActiveKnown && !acc.Approximate && !(acc.Short && room) || pending {
			continue
		}
		f.asked = now
		return n, f.health.Table.Count
	}
	return "", 0
}

// askResync reports whether the firewall granted it.
func (a *Aggregator) askResync(ctx context.Context, name string) bool {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	var r events.ResyncReply
	c := &events.Command{Verb: events.VerbResync, Firewall: name, Actor: "aggregator", Reason: "active is not known"}
	if err := a.conn.Request(ctx, events.CommandSubject(name, events.VerbResync), c, &r); err != nil {
		a.log.Debug("cannot ask for a resync, trying again", "firewall", name, "error", err)
		return false
	}
	return r.Accepted
}

package aggregator

import (
	"math"
	"time"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/rule"
)

// levelOf is what the counter must watch for a rule.
func levelOf(r *rule.Rule) count.Level {
	l := count.Level{Set: count.Set{Track: count.BySrc}, Scope: count.Fleet, Window: r.Window(), Count: uint64(max(math.Ceil(r.Count), 1))}
	if r.Track == rule.ByDst {
		l.Set.Track = count.ByDst
	}
	switch r.Metric {
	case rule.Active:
		l.Set.Metric = count.Active
	case rule.Unreplied:
		l.Set.Metric = count.Unreplied
	}
	if r.Prefix.IPv4 != 32 {
		l.Set.IPv4Bits = uint8(r.Prefix.IPv4)
	}
	if r.Prefix.IPv6 != 128 {
		l.Set.IPv6Bits = uint8(r.Prefix.IPv6)
	}
	switch {
	case r.Match.Protocol != 0:
		l.Set.Match = count.MatchProtocol(uint8(r.Match.Protocol), r.Match.DPort...)
	case len(r.Match.DPort) > 0:
		l.Set.Match = count.MatchPorts(r.Match.DPort...)
	}
	switch {
	case r.Scope == rule.Firewall:
		l.Scope = count.Firewall
	case r.Combine == rule.Max:
		l.Scope = count.FleetMax
	}
	return l
}

// judge publishes what follows from what has crossed a level.
func (a *Aggregator) judge(crossed []count.Crossing) {
	for i := range crossed {
		a.publish(a.observe(&crossed[i]))
	}
}

// value is what the engine asks for at a tick.
func (a *Aggregator) value(n int, s rule.Subject) (float64, bool) {
	r := &a.engine.Rules()[n]
	if r.Track == rule.Table {
		return a.fleetValue(r, s)
	}
	return a.counted(r, s)
}

// vanished is how long a lag without messages is believed: what was behind may
// have left the stream.
const vanished = 2 * time.Second

// tick lets time pass: counts fall, alerts resolve, silence is noticed.
func (a *Aggregator) tick(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.live {
		return
	}
	// While we lag behind the stream, its messages are the clock.
	if passed := now.Sub(a.heard); a.lag == 0 || passed > vanished {
		a.lag, a.heard = 0, now
		a.judge(a.counter.Advance(a.counter.Now() + int64(passed)))
	}
	if now.Sub(a.judged) >= time.Second {
		a.judged = now
		a.judgeFleet(now)
		a.judgeCircuit()
	}
	a.publish(a.engine.Tick(a.counter.Now(), a.value))
}

package aggregator

import (
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	staleAfter  = 3 * time.Second
	silentAfter = 60 * time.Second
	// A firewall that said good-bye is forgotten sooner than one that went
	// silent, about which an alarm should keep firing.
	forgetStopped = time.Hour
	forgetSilent  = 7 * 24 * time.Hour
)

// firewall is one entry of the inventory.
type firewall struct {
	health events.Health
	seen   time.Time // local time of the last health
	since  time.Time // local time of the first health of this boot
	asked  time.Time // when a resync was last asked for
	rises  rises
	peak   uint64             // entries, the most since the last minute was kept
	values map[string]float64 // of the built-in alarms, by metric

	rated          time.Time // when the rates were last taken
	events, opened uint64    // counted by then
	rate, opens    float64   // events and new flows, per second
}

// state says how fresh a firewall is at now.
func (f *firewall) state(now time.Time) string {
	switch age := now.Sub(f.seen); {
	case f.health.Stopping:
		return events.StateStopped
	case age > silentAfter:
		return events.StateSilent
	case age > staleAfter:
		return events.StateStale
	}
	return events.StateFresh
}

// rates takes how much was counted since it was last called.
func (f *firewall) rates(acc *count.Account, now time.Time) {
	f.rate, f.opens = 0, 0
	if !f.rated.IsZero() && acc.Events >= f.events && acc.Opened >= f.opened {
		seconds := now.Sub(f.rated).Seconds()
		f.rate, f.opens = float64(acc.Events-f.events)/seconds, float64(acc.Opened-f.opened)/seconds
	}
	f.events, f.opened, f.rated = acc.Events, acc.Opened, now
}

// gone reports whether a firewall has been away for so long that it is no part
// of the fleet any more.
func (f *firewall) gone(now time.Time) bool {
	if f.health.Stopping {
		return now.Sub(f.seen) > forgetStopped
	}
	return now.Sub(f.seen) > forgetSilent
}

// sight takes a health report into the inventory.
func (a *Aggregator) sight(h *events.Health, at time.Time) {
	f := a.fleet[h.Firewall]
	if f == nil {
		f = &firewall{}
		a.fleet[h.Firewall] = f
	}
	if f.health.Boot != h.Boot {
		f.since = at
		f.rises.reset() // counters of another run begin at 0
	}
	f.health, f.seen = *h, at
	f.peak = max(f.peak, h.Table.Count)
}

// stale names the firewalls of a realm (or the one named) that are silent, so
// that what they hold is missing from a count, by name.
func (a *Aggregator) stale(realm, name string, now time.Time) (out []string) {
	for n, f := range a.fleet {
		if name != "" && n != name || name == "" && f.health.Realm != realm {
			continue
		}
		if s := f.state(now); s == events.StateStale || s == events.StateSilent {
			out = append(out, n)
		}
	}
	slices.Sort(out)
	return out
}

// riseSeconds is how far back a rise of a counter is looked for.
const riseSeconds = 60

// rises holds a firewall's counters of the last minute, one value a second,
// to tell a rise from a total.
type rises struct {
	ring [riseSeconds]counters
	n    int // values taken
}

// full reports whether a rise is over the whole time.
func (r *rises) full() bool { return r.n > riseSeconds }

// counters are cumulative.
type counters struct{ drop, earlyDrop, insertFailed, lost uint64 }

func (r *rises) reset() { *r = rises{} }

// take adds the values of this second and returns the rise over the minute
// before. A counter that fell began anew.
func (r *rises) take(now counters) counters {
	oldest := now
	if r.n > 0 {
		oldest = r.ring[0]
		if r.n >= riseSeconds {
			oldest = r.ring[r.n%riseSeconds]
		}
	}
	r.ring[r.n%riseSeconds] = now
	r.n++
	rise := func(now, before uint64) uint64 { return now - min(now, before) }
	return counters{rise(now.drop, oldest.drop), rise(now.earlyDrop, oldest.earlyDrop), rise(now.insertFailed, oldest.insertFailed), rise(now.lost, oldest.lost)}
}

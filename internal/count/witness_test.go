package count

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// oracle counts by keeping every event.
type oracle struct {
	seen   map[string]bool // firewall, boot, subject, sequence
	clocks map[events.Boot]*naiveClock
	all    map[Place][]witnessed
}

// witnessed is one live event, when it happened by the rule of ADR 0004, and when
// it really did, on the stream's clock.
type witnessed struct {
	e          events.Event
	at, really int64
}

// naiveClock is the rule: the smallest of the last eight ways of batches that cannot have
// waited, or of all until there is one.
type naiveClock struct{ clean, any []int64 }

func (k *naiveClock) offset(b *events.Batch, stream int64) int64 {
	if b.Clean {
		k.clean = append(k.clean, stream-b.Sent)
	}
	k.any = append(k.any, stream-b.Sent)
	if n := len(k.clean); n > 0 {
		return slices.Min(k.clean[max(n-8, 0):])
	}
	return slices.Min(k.any)
}

func (o *oracle) take(m message, b *events.Batch, s *simulated, skew int64) {
	id := fmt.Sprint(m.firewall, b.Boot, m.snapshot, b.Seq)
	if o.seen[id] || m.snapshot {
		return
	}
	o.seen[id] = true
	if o.clocks[b.Boot] == nil {
		o.clocks[b.Boot] = &naiveClock{}
	}
	offset, origin := o.clocks[b.Boot].offset(b, m.stream), s.offsets[b.Boot]+skew
	var e events.Event
	for r := b.Events(); r.Next(&e); {
		realm := events.ZoneRealm(b.Realm, e.Zone)
		for _, p := range []Place{{Realm: realm}, {Realm: realm, Firewall: m.firewall}} {
			o.all[p] = append(o.all[p], witnessed{e, min(e.Time+offset, m.stream), min(e.Time+origin, m.stream)})
		}
	}
}

// key is the address of e that a set counts by, ok when e is in the set.
func key(set Set, e *events.Event) (netip.Prefix, bool) {
	if set.Match != (Match{}) && !(e.Proto == 6 && e.Orig.DstPort == 22) { // the match that the test uses
		return netip.Prefix{}, false
	}
	a := e.Src()
	if set.Track == ByDst {
		a = e.Dst()
	}
	bits := a.BitLen()
	if a.Is4() && set.IPv4Bits > 0 {
		bits = int(set.IPv4Bits)
	}
	if a.Is6() && set.IPv6Bits > 0 {
		bits = int(set.IPv6Bits)
	}
	p, err := a.Prefix(bits)
	return p, err == nil
}

// since returns for each key of a place how many events it has since a time, by the rule
// or in truth.
func (o *oracle) since(set Set, p Place, from, now int64, inTruth bool) map[netip.Prefix]uint64 {
	out := map[netip.Prefix]uint64{}
	for i := range o.all[p] {
		s := &o.all[p][i]
		at := s.at
		if inTruth {
			at = s.really
		}
		switch {
		case at <= from || at > now:
			continue
		case set.Metric == Opened && s.e.Type != events.New, set.Metric != Opened && s.e.Type != events.Destroy:
			continue
		case set.Metric == Unreplied && s.e.Replied():
			continue
		}
		if k, ok := key(set, &s.e); ok {
			out[k]++
		}
	}
	return out
}

// tabled returns how many flows each key has in the tables of a place.
func tabled(set Set, p Place, fleet []*simulated) map[netip.Prefix]uint64 {
	out := map[netip.Prefix]uint64{}
	for _, s := range fleet {
		if p.Firewall != "" && p.Firewall != s.name {
			continue
		}
		for _, e := range s.table {
			if events.ZoneRealm(s.realm, e.Zone) != p.Realm {
				continue
			}
			if k, ok := key(set, &e); ok {
				out[k]++
			}
		}
	}
	return out
}

func floorTo(v, unit int64) int64 { return v - v%unit }

// compare checks every key of a place against the truth.
func compare(t *testing.T, c *Counter, set Set, p Place, w time.Duration, least, most map[netip.Prefix]uint64) {
	t.Helper()
	top := c.Top(set, p, w, 1<<20)
	seen := map[netip.Prefix]bool{}
	for i, e := range top {
		seen[e.Key] = true
		if e.Value > most[e.Key] || e.Value < least[e.Key] {
			t.Errorf("%v %v %v in %v: %d, truth is %d to %d", p, set, e.Key, w, e.Value, least[e.Key], most[e.Key])
		}
		if i > 0 && e.Value > top[i-1].Value {
			t.Errorf("%v %v: not in order", p, set)
		}
		if v, ok := c.Value(set, scopeOf(p), p, e.Key, w); v != e.Value || !ok {
			t.Errorf("%v %v %v: Value is %d, %v, Top says %d", p, set, e.Key, v, ok, e.Value)
		}
		if p.Firewall == "" {
			sum, largest := uint64(0), uint64(0)
			for _, n := range c.Shares(set, p.Realm, e.Key, w) {
				sum += n
				largest = max(largest, n)
			}
			if sum != e.Value {
				t.Errorf("%v %v %v: shares are %d together, not %d", p, set, e.Key, sum, e.Value)
			}
			if v, _ := c.Value(set, FleetMax, p, e.Key, w); v != largest {
				t.Errorf("%v %v %v: the largest share is %d, FleetMax says %d", p, set, e.Key, largest, v)
			}
		}
	}
	for k, n := range least {
		if !seen[k] && n > 0 {
			t.Errorf("%v %v %v in %v: missing, truth is %d", p, set, k, w, n)
		}
	}
}

func scopeOf(p Place) Scope {
	if p.Firewall == "" {
		return Fleet
	}
	return Firewall
}

// active checks the gauges of a place, and reports whether they had to be
// exact.
func active(t *testing.T, c *Counter, set Set, p Place, fleet []*simulated, last bool) bool {
	t.Helper()
	for _, s := range fleet {
		if p.Firewall != "" && p.Firewall != s.name {
			continue
		}
		a, ok := c.Account(s.name)
		if last && (!ok || !a.ActiveKnown || a.Approximate || a.Pending) {
			t.Errorf("%s: after the last dump its account says %+v", s.name, a)
		}
		if !a.ActiveKnown || a.Approximate || s.lost != s.told {
			return false
		}
		if a.Pending && !s.begun {
			return false // the end of a dump was lost on its way: nothing follows it that would tell
		}
		if n := uint64(len(s.table)); a.Active != n {
			t.Errorf("%s: %d flows active, the table has %d", s.name, a.Active, n)
		}
	}
	want := tabled(set, p, fleet)
	for _, e := range c.Top(set, p, 0, 1<<20) {
		if want[e.Key] != e.Value {
			t.Errorf("%v %v %v: %d active, truth is %d", p, set, e.Key, e.Value, want[e.Key])
		}
		delete(want, e.Key)
	}
	for k, n := range want {
		t.Errorf("%v %v %v: missing, truth is %d", p, set, k, n)
	}
	return true
}

package count

import (
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A selector is the sets that share track, prefix and match: their key is made
// once per event.
type selector struct {
	set   Set // Metric is not used
	keeps [metrics]bool
	site  [metrics]levels
	realm [metrics]levels
}

// levels are what makes a key hot in one kind of table.
type levels struct {
	windows []window.Level // for window tables
	active  uint64         // for gauges, 0: none
	scopes  [FleetMax + 1]bool
}

func (l *levels) add(level Level) {
	l.scopes[level.Scope] = true
	if level.Set.Metric == Active {
		if l.active == 0 || level.Count < l.active {
			l.active = level.Count
		}
		return
	}
	l.windows = append(l.windows, window.Level{Window: level.Window, Count: level.Count})
}

// key makes the key of e, and reports whether e belongs to the set.
func (s *selector) key(e *events.Event) (window.Key, bool) {
	if !s.set.Match.takes(e) {
		return window.Key{}, false
	}
	a := e.Orig.Src
	if s.set.Track == ByDst {
		a = e.Orig.Dst
	}
	return maskKey(a, e.IPv6, s.set.bits(e.IPv6)), true
}

// place is one realm, or one firewall within one realm (a site), and what is
// counted there.
type place struct {
	Place
	tables [][metrics]*window.Table // by selector; nil until needed
	gauges []*gauge                 // by selector; nil until needed

	// Of a site:
	realm *place
	fw    *firewall
	// Of a realm:
	sites  map[string]*place // by firewall
	recent ring
}

func (c *Counter) newPlace(p Place) *place {
	return &place{Place: p, tables: make([][metrics]*window.Table, len(c.selectors)), gauges: make([]*gauge, len(c.selectors))}
}

// table returns the window table of one set, made when first needed: most
// firewalls never see a flow of most matches.
func (p *place) table(c *Counter, selector int, m Metric) *window.Table {
	t := p.tables[selector][m]
	if t == nil {
		s := &c.selectors[selector]
		l := &s.realm[m]
		if p.realm != nil {
			l = &s.site[m]
		}
		var err error
		t, err = window.New(window.Config{Windows: c.windows, Levels: l.windows, MaxKeys: c.maxKeys})
		if err != nil {
			panic(fmt.Sprintf("count: a configuration that New accepted: %v", err))
		}
		t.Advance(c.now)
		p.tables[selector][m] = t
	}
	return t
}

func (p *place) gauge(c *Counter, selector int) *gauge {
	g := p.gauges[selector]
	if g == nil {
		g = &gauge{seed: &c.seed}
		if p.realm != nil {
			g.limit = c.maxActive
		}
		p.gauges[selector] = g
	}
	return g
}

// advance moves the place's tables on.
func (p *place) advance(now int64) {
	for i := range p.tables {
		for _, t := range p.tables[i] {
			if t != nil {
				t.Advance(now)
			}
		}
	}
}

// empty reports whether nothing is counted here any more.
func (p *place) empty() bool {
	for i := range p.tables {
		for _, t := range p.tables[i] {
			if t != nil && t.Stats().Keys > 0 {
				return false
			}
		}
	}
	for _, g := range p.gauges {
		if g != nil && g.n > 0 {
			return false
		}
	}
	return true
}

// firewall is one sender.
type firewall struct {
	name   string
	realm  string
	boots  []*boot // in the order of their first batch
	nboots uint32
	newest *boot
	sites  map[site]*place
	epochs epochs
	held   [2]int64 // flows in each of the gauges' two sets

	// What boots that are no longer remembered came to.
	pastLost, pastMissing uint64
	pastLoss              int64

	events, batches, duplicates, tooOld, refused, zoneEvents uint64
	lastHeard                                                int64
}

// lastLoss is when events were last known to be lost or missing, stream time.
func (f *firewall) lastLoss() int64 {
	last := f.pastLoss
	for _, b := range f.boots {
		last = max(last, b.lastLoss)
		if b.missing > 0 {
			last = max(last, b.lastMiss)
		}
	}
	return last
}

// crowded reports whether a gauge is at its limit.
func (f *firewall) crowded() bool {
	for _, p := range f.sites {
		for _, g := range p.gauges {
			if g != nil && g.over > 0 {
				return true
			}
		}
	}
	return false
}

// site names a place of a firewall.
type site struct {
	realm string
	zone  uint16
}

// sender returns the firewall of that name, known or new.
func (c *Counter) sender(name string) (*firewall, error) {
	if f := c.firewalls[name]; f != nil {
		return f, nil
	}
	if err := events.CheckFirewall(name); err != nil {
		return nil, fmt.Errorf("count: %w", err)
	}
	if len(c.firewalls) >= c.maxFirewalls {
		return nil, fmt.Errorf("count: firewall %s: %d are known already, no more are allowed", name, c.maxFirewalls)
	}
	f := &firewall{name: name, sites: map[site]*place{}}
	c.firewalls[name] = f
	return f, nil
}

// boot returns the run that sent a batch, known or new.
func (f *firewall) boot(id events.Boot) *boot {
	for _, b := range f.boots {
		if b.id == id {
			return b
		}
	}
	if len(f.boots) == maxBoots {
		// The one heard longest ago goes, but not the one that is shown.
		old := -1
		for i, b := range f.boots {
			if b != f.epochs.shown.boot && (old < 0 || b.last < f.boots[old].last) {
				old = i
			}
		}
		gone := f.boots[old]
		f.pastLost += gone.lost
		f.pastMissing += gone.missing
		f.pastLoss = max(f.pastLoss, gone.lastLoss)
		if gone.missing > 0 {
			f.pastLoss = max(f.pastLoss, gone.lastMiss)
		}
		f.boots = append(f.boots[:old], f.boots[old+1:]...)
	}
	f.nboots++
	b := newBoot(id, f.nboots)
	f.boots = append(f.boots, b)
	f.newest = b
	return b
}

// site returns the place of a firewall's events in a zone, or nil when it has
// too many zones.
func (c *Counter) site(f *firewall, realm string, zone uint16) *place {
	at := site{realm, zone}
	if p := f.sites[at]; p != nil {
		return p
	}
	if len(f.sites) > MaxZones {
		return nil
	}
	name := events.ZoneRealm(realm, zone)
	r := c.realms[name]
	if r == nil {
		r = c.newPlace(Place{Realm: name})
		r.sites = map[string]*place{}
		c.realms[name] = r
	}
	p := c.newPlace(Place{Realm: name, Firewall: f.name})
	p.realm, p.fw = r, f
	f.sites[at] = p
	r.sites[f.name] = p
	return p
}

// dropSite takes a site out of its realm: what it holds leaves the sum.
func (c *Counter) dropSite(f *firewall, at site, p *place) {
	for i, g := range p.gauges {
		g.each(func(k window.Key, v [2]int32) {
			p.realm.gauge(c, i).add(k, [2]int32{-v[f.epochs.slot]})
		})
	}
	delete(f.sites, at)
	delete(p.realm.sites, f.name)
}

// Forget drops a firewall and all it contributed: its active flows leave the
// fleet's sum at once, its events leave the fleet's windows as they expire.
func (c *Counter) Forget(firewall string) {
	f := c.firewalls[firewall]
	if f == nil {
		return
	}
	for at, p := range f.sites {
		c.dropSite(f, at, p)
	}
	delete(c.firewalls, firewall)
}

// reclaimEvery is how often places are looked at that may have become empty.
const reclaimEvery = 10 * time.Second

// reclaim drops zones that have not been heard of for the longest window, and
// realms without firewalls.
func (c *Counter) reclaim() {
	if c.now-c.reclaimed < int64(reclaimEvery) {
		return
	}
	c.reclaimed = c.now
	for _, f := range c.firewalls {
		for at, p := range f.sites {
			if (at.zone != 0 || at.realm != f.realm) && p.empty() {
				c.dropSite(f, at, p)
			}
		}
	}
	for name, r := range c.realms {
		if len(r.sites) == 0 && r.empty() {
			delete(c.realms, name)
		}
	}
}

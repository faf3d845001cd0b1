package count

import (
	"fmt"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A realm is where an address names one host.
type realm struct {
	name   string
	tag    uint16           // its number: no two that have keys have the same
	sites  map[string]*site // by firewall
	recent ring
	left   int64 // stream's clock when the last site left
}

// A site is one firewall within one realm: what the window tables call a member.
type site struct {
	Place
	zone   zone
	realm  *realm
	fw     *firewall
	member window.Member
}

// maxRealms are as many as a tag tells apart.
const maxRealms = 1 << 15

// firewall is one sender.
type firewall struct {
	name   string
	realm  string
	boots  []*boot // in the order of their first batch
	nboots uint32
	newest *boot
	sites  map[zone]*site
	inTurn []*site // the same, in the order in which they were first heard of
	epochs epochs
	held   [2]int64 // flows in each of the gauges' two sets

	// What boots that are no longer remembered came to.
	pastLost, pastMissing uint64
	pastLoss              int64

	events, opened, batches, duplicates, tooOld, refused, zoneEvents uint64
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

// zone names a site of a firewall.
type zone struct {
	realm string
	id    uint16
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
	f := &firewall{name: name, sites: map[zone]*site{}}
	c.firewalls[name] = f
	c.heard = append(c.heard, f)
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

// site returns the place of a firewall's events in a zone, or nil when it, or
// the fleet, has too many.
func (c *Counter) site(f *firewall, realmName string, id uint16) *site {
	at := zone{realmName, id}
	if s := f.sites[at]; s != nil {
		return s
	}
	if len(f.sites) > MaxZones {
		return nil
	}
	if len(c.free) == 0 && len(c.sites) == window.MaxMembers {
		return nil
	}
	r := c.realm(events.ZoneRealm(realmName, id))
	if r == nil {
		return nil
	}
	s := &site{Place: Place{Realm: r.name, Firewall: f.name}, zone: at, realm: r, fw: f, member: window.Member(len(c.sites))}
	if last := len(c.free) - 1; last >= 0 {
		s.member, c.free = c.free[last], c.free[:last]
	} else {
		c.sites = append(c.sites, nil)
	}
	c.sites[s.member] = s
	f.sites[at], f.inTurn = s, append(f.inTurn, s)
	r.sites[f.name] = s
	for _, sel := range c.bySet {
		sel.table.Join(s.member)
	}
	c.change(s, f.epochs.slot, opShow)
	return s
}

// realm returns the realm of that name, known or new; nil when there are too many.
func (c *Counter) realm(name string) *realm {
	if r := c.realms[name]; r != nil {
		return r
	}
	tag := slices.Index(c.realmTags, nil)
	if tag < 0 {
		if len(c.realmTags) == maxRealms {
			return nil
		}
		tag = len(c.realmTags)
		c.realmTags = append(c.realmTags, nil)
	}
	r := &realm{name: name, tag: uint16(tag), sites: map[string]*site{}}
	c.realms[name], c.realmTags[tag] = r, r
	return r
}

// dropSite takes a site out of its realm: what it holds leaves the sum. Its number
// is free when its keys have expired.
func (c *Counter) dropSite(s *site) {
	c.change(s, s.fw.epochs.slot, opClear)
	c.change(s, 1-s.fw.epochs.slot, opClear)
	delete(s.fw.sites, s.zone)
	s.fw.inTurn = slices.DeleteFunc(s.fw.inTurn, func(o *site) bool { return o == s })
	delete(s.realm.sites, s.Firewall)
	c.sites[s.member] = nil
	c.leaving = append(c.leaving, s.member)
	s.realm.left = c.now
}

// Forget drops a firewall and all it contributed: its active flows leave the
// fleet's sum at once, its events leave the fleet's windows as they expire. Nothing
// admitted may be left to count.
func (c *Counter) Forget(name string) {
	f := c.firewalls[name]
	if f == nil {
		return
	}
	for _, s := range slices.Clone(f.inTurn) {
		c.dropSite(s)
	}
	delete(c.firewalls, name)
	c.heard = slices.DeleteFunc(c.heard, func(o *firewall) bool { return o == f })
	c.finish()
}

// reclaimEvery is how often places are looked at that may have become empty.
const reclaimEvery = 10 * time.Second

// reclaim drops zones of which nothing is left, and realms without firewalls.
func (c *Counter) reclaim() {
	if c.now-c.reclaimed < int64(reclaimEvery) {
		return
	}
	c.reclaimed = c.now
	for _, f := range c.heard {
		for _, s := range slices.Clone(f.inTurn) {
			if (s.zone.id != 0 || s.zone.realm != f.realm) && c.lines(s.member) == 0 {
				c.dropSite(s)
			}
		}
	}
	c.finish()
	c.leaving = slices.DeleteFunc(c.leaving, func(m window.Member) bool {
		gone := c.lines(m) == 0
		if gone {
			c.free = append(c.free, m)
		}
		return gone
	})
	for name, r := range c.realms {
		// Its number may be another's when no key has it any more.
		if len(r.sites) == 0 && c.now-r.left > int64(slices.Max(c.windows)+time.Minute) {
			delete(c.realms, name)
			c.realmTags[r.tag] = nil
		}
	}
}

// lines is how many lines in all tables are a member's.
func (c *Counter) lines(m window.Member) (n int) {
	for _, sel := range c.bySet {
		n += sel.table.Lines(m)
	}
	return n
}

package count

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
)

// value is a key's total.
func (s *selector) value(m Metric, k window.Key, w time.Duration, now int64) uint64 {
	if m == Active {
		return uint64(max(s.table.Gauge(k), 0))
	}
	return s.table.Count(k, m.series(), s.table.At(w, now))
}

// memberValue is what one site has of it.
func (s *selector) memberValue(m Metric, k window.Key, of window.Member, w time.Duration, now int64) uint64 {
	if m == Active {
		return uint64(max(s.table.MemberGauge(k, of), 0))
	}
	return s.table.MemberCount(k, of, m.series(), s.table.At(w, now))
}

// shares calls fn with what each site has of it, if anything.
func (s *selector) shares(m Metric, k window.Key, w time.Duration, now int64, fn func(window.Member, uint64)) {
	if m != Active {
		s.table.Shares(k, m.series(), s.table.At(w, now), fn)
		return
	}
	s.table.GaugeShares(k, func(of window.Member, n int32) {
		if n > 0 {
			fn(of, uint64(n))
		}
	})
}

// find returns the selector of a set; ok is false when it, or the window, is not kept.
func (c *Counter) find(set Set, w time.Duration) (s *selector, ok bool) {
	if set.check() != nil {
		return nil, false
	}
	s = c.bySet[set.selector()]
	return s, s != nil && s.keeps(set.Metric) && (set.Metric == Active || slices.Contains(c.windows, w))
}

// known reports whether the active count of a site is known.
func (s *site) known() bool { return s.fw.epochs.shown.epoch != 0 }

// known reports whether the active count of a realm is known, of one of its firewalls at least.
func (r *realm) known() bool {
	for _, s := range r.sites {
		if s.known() {
			return true
		}
	}
	return false
}

// Value is the count of key now. For Active known is false while no firewall
// of the place has a complete snapshot; see Unknown for those that the sum
// lacks. Other values are known, and 0 where nothing was counted. window is
// ignored for Active and must otherwise be one of Config.Windows; a set or a
// window that is not kept, and a key of another length than the set's, is
// unknown.
func (c *Counter) Value(set Set, scope Scope, place Place, key netip.Prefix, window time.Duration) (value uint64, known bool) {
	sel, ok := c.find(set, window)
	if !ok {
		return 0, false
	}
	r := c.realms[place.Realm]
	if r == nil {
		return 0, set.Metric != Active
	}
	k, ok := keyFrom(key, &set, r.tag)
	if !ok {
		return 0, false
	}
	if place.Firewall != "" {
		s := r.sites[place.Firewall]
		if s == nil {
			return 0, set.Metric != Active
		}
		return sel.memberValue(set.Metric, k, s.member, window, c.now), set.Metric != Active || s.known()
	}
	known = set.Metric != Active || r.known()
	if scope != FleetMax {
		return sel.value(set.Metric, k, window, c.now), known
	}
	for _, n := range c.shares(sel, set.Metric, k, window) {
		value = max(value, n)
	}
	return value, known
}

// NumSlots is in how many slots a window is cut.
const NumSlots = window.NumSlots

// Slots are the parts of [Counter.Value] that fell into each slot of the window, oldest
// first, and when the newest slot ends (ns of the stream's clock): of FleetMax, of the
// firewall that has most. nil for Active, which has no window, and for what is not kept.
func (c *Counter) Slots(set Set, scope Scope, place Place, key netip.Prefix, w time.Duration) (slots []uint64, end int64) {
	sel, ok := c.find(set, w)
	r := c.realms[place.Realm]
	if !ok || r == nil || set.Metric == Active {
		return nil, 0
	}
	k, ok := keyFrom(key, &set, r.tag)
	if !ok {
		return nil, 0
	}
	firewall := place.Firewall
	if scope == FleetMax && firewall == "" {
		var most uint64
		for name, n := range c.shares(sel, set.Metric, k, w) {
			if n > most || n == most && name < firewall {
				firewall, most = name, n
			}
		}
	}
	at, series := sel.table.At(w, c.now), set.Metric.series()
	var parts [NumSlots]uint64
	if firewall == "" {
		parts = sel.table.Slots(k, series, at)
	} else if s := r.sites[firewall]; s != nil {
		parts = sel.table.MemberSlots(k, s.member, series, at)
	}
	slot := int64(w) / NumSlots
	return parts[:], c.now - c.now%slot + slot
}

// Shares is what each firewall contributes to key in the realm; firewalls
// without any are left out.
func (c *Counter) Shares(set Set, realm string, key netip.Prefix, window time.Duration) map[string]uint64 {
	sel, ok := c.find(set, window)
	r := c.realms[realm]
	if !ok || r == nil {
		return nil
	}
	k, ok := keyFrom(key, &set, r.tag)
	if !ok {
		return nil
	}
	return c.shares(sel, set.Metric, k, window)
}

func (c *Counter) shares(sel *selector, m Metric, k window.Key, w time.Duration) map[string]uint64 {
	shares := map[string]uint64{}
	sel.shares(m, k, w, c.now, func(of window.Member, n uint64) {
		if s := c.sites[of]; s != nil { // not one that is leaving
			shares[s.Firewall] = n
		}
	})
	return shares
}

// Entry is one row of Top.
type Entry struct {
	Key   netip.Prefix
	Value uint64
}

// Top returns the largest keys of a place, largest first, ties by key; nil for
// a set or a window that is not kept.
func (c *Counter) Top(set Set, place Place, w time.Duration, limit int) []Entry {
	return c.TopOf(set, place, w, limit, nil)
}

// TopOf is [Counter.Top] among the keys that want returns true for; nil: all.
func (c *Counter) TopOf(set Set, place Place, w time.Duration, limit int, want func(netip.Prefix) bool) []Entry {
	sel, ok := c.find(set, w)
	r := c.realms[place.Realm]
	if !ok || r == nil || limit <= 0 {
		return nil
	}
	filter := window.Filter{Keep: func(tag uint16) bool { return tag>>1 == r.tag }}
	if place.Firewall != "" {
		s := r.sites[place.Firewall]
		if s == nil {
			return nil
		}
		filter = window.Filter{Members: true, Member: s.member}
	}
	if want != nil {
		filter.Want = func(k window.Key) bool { return want(prefixOf(k, &set)) }
	}
	top := sel.top(set.Metric, w, c.now, filter, limit)
	out := make([]Entry, len(top))
	for i, e := range top {
		out[i] = Entry{prefixOf(e.Key, &set), e.Count}
	}
	return out
}

// top returns the largest entries of a table.
func (s *selector) top(m Metric, w time.Duration, now int64, filter window.Filter, limit int) []window.Entry {
	if m == Active {
		return s.table.TopGauge(filter, limit)
	}
	return s.table.Top(m.series(), s.table.At(w, now), filter, limit)
}

// RealmEntry is one row of TopOfAll.
type RealmEntry struct {
	Realm string
	Entry
}

// TopOfAll returns the largest keys of all realms, each realm's sum over its
// firewalls, largest first, in one pass; nil for a set or a window that is not kept.
func (c *Counter) TopOfAll(set Set, w time.Duration, limit int) []RealmEntry {
	sel, ok := c.find(set, w)
	if !ok {
		return nil
	}
	realmOf := func(tag uint16) *realm {
		if n := int(tag >> 1); n < len(c.realmTags) {
			return c.realmTags[n]
		}
		return nil
	}
	filter := window.Filter{Keep: func(tag uint16) bool { return realmOf(tag) != nil }}
	var out []RealmEntry
	for _, e := range sel.top(set.Metric, w, c.now, filter, limit) {
		out = append(out, RealmEntry{realmOf(e.Key.Tag).name, Entry{prefixOf(e.Key, &set), e.Count}})
	}
	return out
}

// UnrepliedShare is the part, 0 to 1, of key's flows that ended within the
// window without an answer; nil when none has ended.
func (c *Counter) UnrepliedShare(track Track, place Place, key netip.Prefix, window time.Duration) *float64 {
	ended, _ := c.Value(Set{Track: track, Metric: Ended}, Fleet, place, key, window)
	if ended == 0 {
		return nil
	}
	unreplied, _ := c.Value(Set{Track: track, Metric: Unreplied}, Fleet, place, key, window)
	share := float64(min(unreplied, ended)) / float64(ended)
	return &share
}

// members returns the sites of a place by firewall.
func (c *Counter) members(p Place) map[string]*site {
	r := c.realms[p.Realm]
	if r == nil || p.Firewall == "" {
		if r == nil {
			return nil
		}
		return r.sites
	}
	if s := r.sites[p.Firewall]; s != nil {
		return map[string]*site{p.Firewall: s}
	}
	return nil
}

// Unknown names the firewalls of a place whose active count is not known, in
// order.
func (c *Counter) Unknown(place Place) []string {
	var names []string
	for name, s := range c.members(place) {
		if !s.known() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Lossy reports whether a firewall of the place lost events, as its producer
// or a gap says, within the window before now.
func (c *Counter) Lossy(place Place, window time.Duration) bool {
	for _, s := range c.members(place) {
		if last := s.fw.lastLoss(); last != 0 && last > c.now-int64(window) {
			return true
		}
	}
	return false
}

// Partial reports whether counting within this window began less than window ago.
func (c *Counter) Partial(window time.Duration) bool {
	return c.first == 0 || c.now-max(c.first, c.since[window]) < int64(window)
}

// Places lists where something is counted: every realm, each followed by its
// firewalls, in order.
func (c *Counter) Places() []Place {
	var out []Place
	for _, realm := range slices.Sorted(maps.Keys(c.realms)) {
		out = append(out, Place{Realm: realm})
		for _, fw := range slices.Sorted(maps.Keys(c.realms[realm].sites)) {
			out = append(out, Place{Realm: realm, Firewall: fw})
		}
	}
	return out
}

package count

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
)

// view is a set as it is kept at one place.
type view struct {
	at       *place // nil where nothing was counted yet
	selector int
	set      Set
	window   time.Duration
}

// view finds a set; ok is false when it, or the window, is not kept.
func (c *Counter) view(set Set, place Place, w time.Duration) (v view, ok bool) {
	v = view{set: set, window: w}
	if v.selector, ok = c.find(set); !ok || set.Metric != Active && !slices.Contains(c.windows, w) {
		return v, false
	}
	v.at = c.place(place)
	return v, true
}

// place returns a realm or a site, nil where there is none.
func (c *Counter) place(p Place) *place {
	r := c.realms[p.Realm]
	if r == nil || p.Firewall == "" {
		return r
	}
	return r.sites[p.Firewall]
}

// find returns the selector of a set that is kept.
func (c *Counter) find(set Set) (int, bool) {
	if set.check() != nil {
		return 0, false
	}
	m := set.Metric
	i, ok := c.bySet[set.selector()]
	return i, ok && c.selectors[i].keeps[m]
}

// value is a key's count at a place.
func (c *Counter) value(v *view, at *place, k window.Key) (n uint64, known bool) {
	if at == nil {
		return 0, v.set.Metric != Active
	}
	if v.set.Metric != Active {
		if t := at.tables[v.selector][v.set.Metric]; t != nil {
			n = t.Count(k, v.window, c.now)
		}
		return n, true
	}
	return uint64(max(at.gauges[v.selector].get(k)[at.slot()], 0)), at.known()
}

// slot is the index of what is shown in the numbers of the place's gauges.
func (p *place) slot() int {
	if p.realm == nil {
		return 0
	}
	return p.fw.epochs.slot
}

// known reports whether the active count of a place is known, of one of a
// realm's firewalls at least.
func (p *place) known() bool {
	if p.realm != nil {
		return p.fw.epochs.shown.epoch != 0
	}
	for _, s := range p.sites {
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
	v, ok := c.view(set, place, window)
	if !ok {
		return 0, false
	}
	k, ok := keyFrom(key, &set)
	if !ok {
		return 0, false
	}
	if scope != FleetMax || v.at == nil || v.at.realm != nil {
		return c.value(&v, v.at, k)
	}
	known = set.Metric != Active
	for _, s := range v.at.sites {
		n, ok := c.value(&v, s, k)
		known = known || ok
		value = max(value, n)
	}
	return value, known
}

// Shares is what each firewall contributes to key in the realm; firewalls
// without any are left out.
func (c *Counter) Shares(set Set, realm string, key netip.Prefix, window time.Duration) map[string]uint64 {
	v, ok := c.view(set, Place{Realm: realm}, window)
	if !ok || v.at == nil {
		return nil
	}
	k, ok := keyFrom(key, &set)
	if !ok {
		return nil
	}
	shares := map[string]uint64{}
	for name, s := range v.at.sites {
		if n, _ := c.value(&v, s, k); n > 0 {
			shares[name] = n
		}
	}
	return shares
}

// Entry is one row of Top.
type Entry struct {
	Key   netip.Prefix
	Value uint64
}

// Top returns the largest keys of a place, largest first, ties by key; nil for
// a set or a window that is not kept.
func (c *Counter) Top(set Set, place Place, window time.Duration, limit int) []Entry {
	v, ok := c.view(set, place, window)
	if !ok || v.at == nil || limit <= 0 {
		return nil
	}
	top := c.top(&v, limit)
	out := make([]Entry, len(top))
	for i, e := range top {
		out[i] = Entry{prefixOf(e.Key, &set), e.Count}
	}
	return out
}

func (c *Counter) top(v *view, limit int) []window.Entry {
	if v.set.Metric == Active {
		if g := v.at.gauges[v.selector]; g != nil {
			return g.top(v.at.slot(), limit)
		}
		return nil
	}
	if t := v.at.tables[v.selector][v.set.Metric]; t != nil {
		return t.Top(v.window, c.now, limit, nil)
	}
	return nil
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

// members returns the firewalls of a place by name.
func (c *Counter) members(p Place) map[string]*place {
	at := c.place(p)
	switch {
	case at == nil:
		return nil
	case at.realm != nil:
		return map[string]*place{p.Firewall: at}
	}
	return at.sites
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

// Partial reports whether counting began less than window ago.
func (c *Counter) Partial(window time.Duration) bool {
	return c.first == 0 || c.now-c.first < int64(window)
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

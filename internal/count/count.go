package count

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Config of a [Counter].
type Config struct {
	// Windows are kept for every set but Active: 1 s to 1 h each.
	Windows []time.Duration
	// Sets to keep beside those that are always kept.
	Sets []Set
	// Levels are the values that someone judges: Apply reports a key as hot
	// when it could have reached one. A level's set need not be in Sets too.
	Levels []Level
	// MaxKeys bounds each table: one set on one firewall, or one set in one
	// realm. So a flood through one firewall cannot push out the others' keys.
	// 0 means DefaultMaxKeys.
	MaxKeys int
	// MaxActive bounds the keys of each gauge of active flows on a firewall,
	// which cannot evict: at the bound new keys are not counted, and the
	// firewall's active count is marked approximate. 0 means DefaultMaxActive.
	MaxActive int
	// MaxFirewalls bounds how many senders are known at a time; batches of
	// others are refused. 0 means DefaultMaxFirewalls.
	MaxFirewalls int
}

// Level is a value worth judging.
type Level struct {
	Set    Set
	Scope  Scope
	Window time.Duration // one of Config.Windows; ignored for Active
	Count  uint64        // at least 1
}

// Defaults of Config, and the bound on zones.
const (
	DefaultMaxKeys      = 1 << 20
	DefaultMaxActive    = 1 << 22
	DefaultMaxFirewalls = 4096
	// MaxZones is how many non-zero conntrack zones of one firewall are
	// counted; events of further ones are refused, and counted as such.
	MaxZones = 256
)

// Counter is the fleet's counts. It belongs to one goroutine.
type Counter struct {
	windows      []time.Duration
	maxKeys      int
	maxActive    int
	maxFirewalls int
	selectors    []selector
	bySet        map[Set]int // selector of a set without its metric
	seed         [2]uint64

	firewalls map[string]*firewall
	realms    map[string]*place

	now, first int64 // stream's clock, ns
	reclaimed  int64 // when reclaim last looked

	// Scratch, so that counting does not allocate.
	event    events.Event
	tallies  []tally
	hotIndex []int
	hot      []Hot
	hotSeen  map[hotKey]struct{}
	lastHot  hotKey
}

// New returns an empty counter, or an error naming what is wrong with cfg.
func New(cfg Config) (*Counter, error) {
	c := &Counter{
		windows: slices.Clone(cfg.Windows), maxKeys: cfg.MaxKeys, maxActive: cfg.MaxActive, maxFirewalls: cfg.MaxFirewalls,
		bySet: map[Set]int{}, seed: [2]uint64{rand.Uint64(), rand.Uint64()},
		firewalls: map[string]*firewall{}, realms: map[string]*place{}, hotSeen: map[hotKey]struct{}{},
	}
	if c.maxKeys == 0 {
		c.maxKeys = DefaultMaxKeys
	}
	if c.maxActive == 0 {
		c.maxActive = DefaultMaxActive
	}
	if c.maxFirewalls == 0 {
		c.maxFirewalls = DefaultMaxFirewalls
	}
	if c.maxActive < 0 || c.maxFirewalls < 0 {
		return nil, fmt.Errorf("count: max active %d, max firewalls %d: neither may be negative", c.maxActive, c.maxFirewalls)
	}
	for _, track := range []Track{BySrc, ByDst} {
		for m := range metrics {
			if err := c.keep(Set{Track: track, Metric: m}); err != nil {
				return nil, err
			}
		}
	}
	for _, set := range cfg.Sets {
		if err := c.keep(set); err != nil {
			return nil, err
		}
	}
	for i, l := range cfg.Levels {
		if err := c.watch(l); err != nil {
			return nil, fmt.Errorf("count: level %d: %w", i+1, err)
		}
	}
	// A table says what is wrong with windows, levels and bounds.
	for i := range c.selectors {
		for m := range Active {
			for _, l := range [][]window.Level{c.selectors[i].site[m].windows, c.selectors[i].realm[m].windows} {
				if _, err := window.New(window.Config{Windows: c.windows, Levels: l, MaxKeys: c.maxKeys}); err != nil {
					return nil, fmt.Errorf("count: %w", err)
				}
			}
		}
	}
	c.tallies = make([]tally, len(c.selectors))
	return c, nil
}

// keep makes set one of those that are counted.
func (c *Counter) keep(set Set) error {
	if err := set.check(); err != nil {
		return fmt.Errorf("count: %w", err)
	}
	key := set.selector()
	i, ok := c.bySet[key]
	if !ok {
		i = len(c.selectors)
		c.bySet[key] = i
		c.selectors = append(c.selectors, selector{set: key})
	}
	c.selectors[i].keeps[set.Metric] = true
	return nil
}

// watch makes a level one that keys are judged by.
func (c *Counter) watch(l Level) error {
	switch {
	case l.Scope > FleetMax:
		return fmt.Errorf("unknown scope %d", l.Scope)
	case l.Count == 0:
		return errors.New("a count of 0 is always reached")
	case l.Set.Metric != Active && !slices.Contains(c.windows, l.Window):
		return fmt.Errorf("window %v is not kept", l.Window)
	}
	if err := c.keep(l.Set); err != nil {
		return err
	}
	s := &c.selectors[c.bySet[l.Set.selector()]]
	if l.Scope == Fleet {
		s.realm[l.Set.Metric].add(l)
	} else {
		s.site[l.Set.Metric].add(l)
	}
	return nil
}

// Now is the fleet's clock in Unix ns: the largest stream time seen, or what
// Advance made of it. It is 0 until there is a message.
func (c *Counter) Now() int64 { return c.now }

// Advance moves the clock on (never back) and reclaims what has expired.
// Callers do so from local time a few times a second, so that counts fall when
// no batch arrives; in a replay they do not. Snapshots that waited in vain for a
// live batch become visible: their hot keys are returned, valid until the next
// call.
func (c *Counter) Advance(now int64) []Hot {
	c.now = max(c.now, now)
	for _, r := range c.realms {
		r.advance(c.now)
		for _, s := range r.sites {
			s.advance(c.now)
		}
	}
	for _, f := range c.firewalls {
		c.settle(f)
	}
	c.reclaim()
	return c.takeHot()
}

// Account is what is known of one sender and of how completely it was heard.
// All numbers are since this counter first heard it, over all its boots.
type Account struct {
	Firewall string
	Realm    string      // of its newest boot
	Boot     events.Boot // the newest
	Boots    uint64      // runs of its producer seen
	Rivals   bool        // two producers use the name at the same time

	Seq        uint64 // highest live sequence of the newest boot
	Events     uint64 // counted from live batches
	Batches    uint64 // live batches applied
	Lost       uint64 // as its producers know
	Missing    uint64 // sent, by the producers' totals, but never arrived here
	Duplicates uint64 // batches seen before
	TooOld     uint64 // batches too far behind to tell whether they were seen
	Refused    uint64 // messages that could not be read or made no sense
	ZoneEvents uint64 // events refused because of MaxZones
	LastHeard  int64  // stream time of the newest batch, Unix ns
	LastLoss   int64  // stream time when Lost or Missing last grew, 0: never

	Epoch       uint32 // the epoch that Active counts
	Active      uint64 // flows held, all realms and zones
	ActiveKnown bool   // a snapshot has been completed
	// Approximate: the active count may differ from the table until the next
	// complete snapshot (events of its epoch are missing, or its producer
	// restarted). A resync mends it.
	Approximate bool
	// Pending: a newer snapshot is on its way here. Since is when it began, or
	// when the first sign of it was seen; one that takes long was lost.
	Pending      bool
	PendingSince int64
}

// Firewalls returns every sender's account by name.
func (c *Counter) Firewalls() []Account {
	out := make([]Account, 0, len(c.firewalls))
	for _, name := range slices.Sorted(maps.Keys(c.firewalls)) {
		out = append(out, c.account(c.firewalls[name]))
	}
	return out
}

// Account returns the account of one sender.
func (c *Counter) Account(firewall string) (Account, bool) {
	f := c.firewalls[firewall]
	if f == nil {
		return Account{}, false
	}
	return c.account(f), true
}

func (c *Counter) account(f *firewall) Account {
	a := Account{
		Firewall: f.name, Realm: f.realm, Boots: uint64(f.nboots), Rivals: rivals(f.boots, c.now),
		Events: f.events, Batches: f.batches, Lost: f.pastLost, Missing: f.pastMissing, Duplicates: f.duplicates,
		TooOld: f.tooOld, Refused: f.refused, ZoneEvents: f.zoneEvents, LastHeard: f.lastHeard, LastLoss: f.lastLoss(),
		Epoch: f.epochs.shown.epoch.number(), ActiveKnown: f.epochs.shown.epoch != 0,
		Approximate: f.epochs.approximate(f.newest, c.now) || f.crowded(),
		Pending:     f.epochs.pending.epoch != 0, PendingSince: f.epochs.pending.since,
	}
	for _, b := range f.boots {
		a.Lost += b.lost
		a.Missing += b.missing
	}
	if f.newest != nil {
		a.Boot, a.Seq = f.newest.id, f.newest.live.highest
	}
	if a.ActiveKnown {
		a.Active = uint64(max(f.held[f.epochs.slot], 0))
	}
	return a
}

// Stats is what the counter holds, for metrics.
type Stats struct {
	Firewalls, Places int
	Keys              int    // in all tables
	Bytes             int    // of all tables
	Evicted           uint64 // keys pushed out at MaxKeys, of the tables that there are now
	TooLate           uint64 // events older than the longest window when they came
}

// Stats sums over all tables; it costs a pass over the places.
func (c *Counter) Stats() Stats {
	s := Stats{Firewalls: len(c.firewalls), Places: len(c.realms)}
	for _, r := range c.realms {
		s.add(r)
		s.Places += len(r.sites)
		for _, p := range r.sites {
			s.add(p)
		}
	}
	return s
}

func (s *Stats) add(p *place) {
	for i := range p.tables {
		for m, t := range p.tables[i] {
			if t == nil {
				continue
			}
			one := t.Stats()
			s.Keys += one.Keys
			s.Bytes += one.Bytes
			s.Evicted += one.Evicted
			if p.realm == nil && i == 0 && Metric(m) != Unreplied {
				s.TooLate += one.TooLate
			}
		}
	}
	for _, g := range p.gauges {
		if g != nil {
			s.Keys += g.n
			s.Bytes += g.bytes()
		}
	}
}

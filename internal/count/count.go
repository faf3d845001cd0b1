package count

import (
	"errors"
	"fmt"
	"maps"
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
	// Levels are the values that someone judges. A level's set need not be in
	// Sets too.
	Levels []Level
	// MaxKeys bounds the addresses of each track, prefix and match, over the
	// whole fleet. At the bound each firewall keeps its equal share, so that a
	// flood through one cannot push out the others' (see [window.Table]). 0
	// means DefaultMaxKeys.
	MaxKeys int
	// MaxFirewalls bounds how many senders are known at a time; batches of
	// others are refused. 0 means DefaultMaxFirewalls.
	MaxFirewalls int
}

// Defaults of Config, and the bound on zones.
const (
	DefaultMaxKeys      = 1 << 21
	DefaultMaxFirewalls = 4096
	// MaxZones is how many non-zero conntrack zones of one firewall are
	// counted; events of further ones are refused, and counted as such.
	MaxZones = 256
)

// Counter is the fleet's counts. It belongs to one goroutine, but for [Counter.Run].
type Counter struct {
	windows      []time.Duration
	levels       []Level
	maxFirewalls int
	lanes        [2]lane // by track
	bySet        map[Set]*selector
	since        map[time.Duration]int64 // when a window was first kept, if later than the counter; stream's clock, ns

	firewalls map[string]*firewall
	heard     []*firewall // the same, in the order in which they were first heard
	realms    map[string]*realm
	sites     []*site         // by their number as members of the tables; nil where a number is leaving or free
	leaving   []window.Member // their site is gone, not yet their keys
	free      []window.Member
	realmTags []*realm // by number; nil: free

	now, first int64 // stream's clock, ns
	reclaimed  int64 // when reclaim last looked

	// What was admitted and is not counted yet.
	jobs   []job
	briefs []events.Brief // of all jobs
	out    []Crossing
}

// New returns an empty counter, or an error naming what is wrong with cfg.
func New(cfg Config) (*Counter, error) {
	c := &Counter{
		windows: slices.Clone(cfg.Windows), levels: slices.Clone(cfg.Levels), maxFirewalls: cfg.MaxFirewalls,
		bySet: map[Set]*selector{}, firewalls: map[string]*firewall{}, realms: map[string]*realm{},
	}
	if c.maxFirewalls == 0 {
		c.maxFirewalls = DefaultMaxFirewalls
	}
	if c.maxFirewalls < 0 {
		return nil, fmt.Errorf("count: max firewalls %d: must not be negative", c.maxFirewalls)
	}
	for i := range c.lanes {
		c.lanes[i] = lane{c: c, seen: map[hotKey]struct{}{}}
	}
	for _, track := range []Track{BySrc, ByDst} {
		for m := range metrics {
			if _, err := c.keep(Set{Track: track, Metric: m}); err != nil {
				return nil, err
			}
		}
	}
	for _, set := range cfg.Sets {
		if _, err := c.keep(set); err != nil {
			return nil, err
		}
	}
	for i := range c.levels {
		if err := c.watch(i); err != nil {
			return nil, fmt.Errorf("count: level %d: %w", i+1, err)
		}
	}
	if cfg.MaxKeys == 0 {
		cfg.MaxKeys = DefaultMaxKeys
	}
	for i := range c.lanes {
		for _, s := range c.lanes[i].selectors {
			if err := s.open(c, cfg.MaxKeys); err != nil {
				return nil, fmt.Errorf("count: %w", err)
			}
		}
	}
	return c, nil
}

// keep makes set one of those that are counted.
func (c *Counter) keep(set Set) (*selector, error) {
	if err := set.check(); err != nil {
		return nil, fmt.Errorf("count: %w", err)
	}
	key := set.selector()
	s, ok := c.bySet[key]
	if !ok {
		s = &selector{set: key}
		c.bySet[key] = s
		l := &c.lanes[set.Track]
		l.selectors = append(l.selectors, s)
	}
	s.keep(set.Metric)
	return s, nil
}

// watch makes a level one that keys are judged by.
func (c *Counter) watch(i int) error {
	l := &c.levels[i]
	switch {
	case l.Scope > FleetMax:
		return fmt.Errorf("unknown scope %d", l.Scope)
	case l.Count == 0:
		return errors.New("a count of 0 is always reached")
	case l.Set.Metric != Active && !slices.Contains(c.windows, l.Window):
		return fmt.Errorf("window %v is not kept", l.Window)
	}
	s, err := c.keep(l.Set)
	if err != nil {
		return err
	}
	s.levels[l.Set.Metric] = append(s.levels[l.Set.Metric], i)
	return nil
}

// Now is the fleet's clock in Unix ns: the largest stream time seen, or what
// Advance made of it. It is 0 until there is a message.
func (c *Counter) Now() int64 { return c.now }

// Advance moves the clock on (never back) and reclaims what has expired.
// Callers do so from local time a few times a second, so that counts fall when
// no batch arrives; in a replay they do not. Snapshots that waited in vain for a
// live batch become visible: what thereby crosses a level is returned, valid until the next
// call. Nothing admitted may be left to count.
func (c *Counter) Advance(now int64) []Crossing {
	c.now = max(c.now, now)
	c.jobs = append(c.jobs, job{now: c.now, at: c.now})
	for _, f := range c.heard {
		c.settle(f, c.now)
	}
	out := c.finish()
	c.reclaim()
	return out
}

// Review returns everything that is at a level now, as if it had crossed it at
// this moment, in one pass for each level; valid until the next call. Nothing
// admitted may be left to count.
func (c *Counter) Review() []Crossing {
	c.jobs = append(c.jobs, job{now: c.now, at: c.now, op: opReview})
	return c.finish()
}

// Apply counts a batch of ct.v1.events.<firewall> by itself: it is Admit, Run and Commit.
func (c *Counter) Apply(firewall string, b *events.Batch, stream int64) ([]Crossing, error) {
	err := c.Admit(firewall, b, stream)
	return c.finish(), err
}

// ApplySnapshot does the same with a batch of ct.v1.snapshots.<firewall>.
func (c *Counter) ApplySnapshot(firewall string, b *events.Batch, stream int64) ([]Crossing, error) {
	err := c.AdmitSnapshot(firewall, b, stream)
	return c.finish(), err
}

// finish counts what was admitted.
func (c *Counter) finish() []Crossing {
	for i := range c.lanes {
		c.Run(i)
	}
	return c.Commit()
}

// Account is what is known of one sender and of how completely it was heard.
// All numbers are since this counter first heard it, over all its boots.
type Account struct {
	Firewall string
	Boot     events.Boot // the newest
	Boots    uint64      // runs of its producer seen
	Rivals   bool        // two producers use the name at the same time

	Seq        uint64 // highest live sequence of the newest boot
	Events     uint64 // counted from live batches
	Opened     uint64 // of these, new flows
	Batches    uint64 // live batches applied
	Lost       uint64 // as its producers know
	Missing    uint64 // sent, by the producers' totals, but never arrived here
	Duplicates uint64 // batches seen before
	TooOld     uint64 // batches too far behind to tell whether they were seen
	Refused    uint64 // messages that could not be read or made no sense
	ZoneEvents uint64 // events refused because of MaxZones
	LastLoss   int64  // stream time when Lost or Missing last grew, 0: never

	Epoch       uint32 // the epoch that Active counts
	Active      uint64 // flows held, all realms and zones
	ActiveKnown bool   // a snapshot has been completed
	// Approximate: the active count may differ from the table until the next
	// complete snapshot (events of its epoch are missing, or its producer
	// restarted). A resync mends it.
	Approximate bool
	// Short: it is less than what the table holds, because addresses had to go at
	// MaxKeys. A resync mends it when there is Room again.
	Short bool
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
		Firewall: f.name, Boots: uint64(f.nboots), Rivals: rivals(f.boots, c.now),
		Events: f.events, Opened: f.opened, Batches: f.batches, Lost: f.pastLost, Missing: f.pastMissing, Duplicates: f.duplicates,
		TooOld: f.tooOld, Refused: f.refused, ZoneEvents: f.zoneEvents, LastLoss: f.lastLoss(),
		Epoch: f.epochs.shown.epoch.number(), ActiveKnown: f.epochs.shown.epoch != 0,
		Approximate: f.epochs.approximate(f.newest, c.now), Short: f.epochs.shown.epoch != 0 && c.short(f),
		Pending: f.epochs.pending.epoch != 0, PendingSince: f.epochs.pending.since,
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

// short reports whether some of what a firewall holds had to go at MaxKeys.
func (c *Counter) short(f *firewall) bool {
	for _, s := range f.sites {
		for _, sel := range c.bySet {
			if sel.table.Short(s.member) {
				return true
			}
		}
	}
	return false
}

// Room reports whether a quarter of every table is free.
func (c *Counter) Room() bool {
	for _, sel := range c.bySet {
		if !sel.table.Room() {
			return false
		}
	}
	return true
}

// Stats is what the counter holds, for metrics.
type Stats struct {
	Firewalls, Places int
	Keys              int    // in all tables, those of members too
	Bytes             int    // of all tables
	Evicted           uint64 // keys pushed out at MaxKeys
	TooLate           uint64 // events older than the longest window when they came
}

// Stats sums over all tables.
func (c *Counter) Stats() Stats {
	s := Stats{Firewalls: len(c.firewalls), Places: len(c.realms)}
	for _, r := range c.realms {
		s.Places += len(r.sites)
	}
	for key, sel := range c.bySet {
		one := sel.table.Stats()
		s.Keys += one.Keys + one.Shares
		s.Bytes += one.Bytes
		s.Evicted += one.Evicted
		if key == (Set{}) { // it takes every event once
			s.TooLate = one.TooLate
		}
	}
	return s
}

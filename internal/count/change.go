package count

import (
	"maps"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
)

// Become takes over what another counter, which has counted nothing, was configured
// to keep and to watch. What both keep goes on with all that was counted; what the
// other keeps in addition begins now (see [Counter.PartialSet]), and what it does not
// keep is dropped. It takes time in proportion to what is held, see
// [window.Table.Change]. MaxKeys and MaxFirewalls stay. Nothing admitted may be left
// to count.
//
// Of a set that begins now, active is short until each firewall's next snapshot (see
// [Account.Short]); which a resync brings.
func (c *Counter) Become(other *Counter) error {
	// Every table of the other was made from this very configuration, so none refuses
	// it: an error here would leave some changed.
	since := map[time.Duration]int64{}
	for _, w := range other.windows {
		if slices.Contains(c.windows, w) {
			since[w] = c.since[w]
		} else {
			since[w] = c.now
		}
	}
	for key, s := range other.bySet {
		old := c.bySet[key]
		if old == nil {
			c.begin(s)
			continue
		}
		if err := old.table.Change(other.tableConfig(s)); err != nil {
			return err
		}
		s.table, s.since = old.table, maps.Clone(old.since)
		if old.active && !s.active {
			c.emptyGauges(s)
		}
		for m := range metrics {
			if s.keeps(m) && !old.keeps(m) {
				s.beginMetric(c, m)
			}
		}
	}
	c.windows, c.levels, c.bySet, c.since = other.windows, other.levels, other.bySet, since
	for i := range c.lanes {
		c.lanes[i].selectors = other.lanes[i].selectors
	}
	return nil
}

// emptyGauges forgets what is held: nobody keeps it true any more.
func (c *Counter) emptyGauges(s *selector) {
	for _, at := range c.sites {
		if at != nil {
			s.table.Clear(at.member, 0)
			s.table.Clear(at.member, 1)
		}
	}
}

// begin makes the table of a selector one that has not seen what was counted so far.
func (c *Counter) begin(s *selector) {
	if c.now != 0 {
		s.table.Advance(c.now)
	}
	for m, at := range c.sites {
		s.table.Join(window.Member(m))
		if at != nil {
			s.table.Begin(at.member, at.fw.epochs.slot)
		}
	}
	for m := range metrics {
		if s.keeps(m) {
			s.beginMetric(c, m)
		}
	}
}

// beginMetric notes that a selector counts a metric from now on.
func (s *selector) beginMetric(c *Counter, m Metric) {
	if m != Active {
		if s.since == nil {
			s.since = map[Metric]int64{}
		}
		s.since[m] = c.now
		return
	}
	for _, f := range c.firewalls {
		for _, at := range f.inTurn {
			s.table.Lack(at.member, f.epochs.slot)
			if f.epochs.dirty { // part of a snapshot is there already
				s.table.Lack(at.member, 1-f.epochs.slot)
			}
		}
	}
}

// PartialSet reports whether counting a set began less than window ago: where it did,
// a value may be less than the truth.
func (c *Counter) PartialSet(set Set, window time.Duration) bool {
	if set.Metric == Active {
		return false // its accounts say how complete it is
	}
	s := c.bySet[set.selector()]
	return c.Partial(window) || s != nil && s.since[set.Metric] != 0 && c.now-s.since[set.Metric] < int64(window)
}

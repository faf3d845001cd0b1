package count

import (
	"cmp"
	"slices"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A lane counts what is counted by one side of the flows.
type lane struct {
	c         *Counter
	selectors []*selector

	// Scratch, so that counting does not allocate.
	events  []window.Event
	hot     []window.Hot
	crossed []crossing
	seen    map[hotKey]struct{}
}

// A selector is the sets that share track, prefix and match. They share a table
// too: their key is looked up once per event.
type selector struct {
	set    Set   // Metric is not used
	series uint8 // bits of those that are kept
	active bool
	levels [metrics][]int // indexes in Counter.levels
	table  *window.Table
	since  map[Metric]int64 // when it began to count a metric, if later than the counter; stream's clock, ns
}

// crossing is a Crossing before it is put in order.
type crossing struct {
	job int
	Crossing
}

// hotKey is what may have crossed a level, so that it is looked at once per batch.
type hotKey struct {
	key    window.Key
	member window.Member
	metric Metric
	total  bool
}

func (s *selector) keep(m Metric) {
	if m == Active {
		s.active = true
	} else {
		s.series |= m.series().Bit()
	}
}

func (s *selector) keeps(m Metric) bool {
	return m == Active && s.active || m < Active && s.series&m.series().Bit() != 0
}

// open makes the table.
func (s *selector) open(c *Counter, maxKeys int) (err error) {
	cfg := c.tableConfig(s)
	cfg.MaxKeys = maxKeys
	s.table, err = window.New(cfg)
	return err
}

// tableConfig is what a selector's table must keep and report.
func (c *Counter) tableConfig(s *selector) window.Config {
	cfg := window.Config{Windows: c.windows}
	for m := range Active {
		for _, i := range s.levels[m] {
			l := &c.levels[i]
			cfg.Levels = append(cfg.Levels, window.Level{Series: m.series(), Members: l.Scope != Fleet, Window: l.Window, Count: l.Count})
		}
	}
	for _, i := range s.levels[Active] {
		l := &c.levels[i]
		level := &cfg.GaugeMember
		if l.Scope == Fleet {
			level = &cfg.GaugeTotal
		}
		if n := uint32(min(l.Count, 1<<31-1)); *level == 0 || n < *level {
			*level = n
		}
	}
	return cfg
}

// Lanes is how many lanes there are: Run takes their numbers, from 0.
func (c *Counter) Lanes() int { return len(c.lanes) }

// Run counts all that was admitted in one lane. Each lane must run once between the
// last Admit and Commit; different lanes may run at the same time, and nothing else
// meanwhile.
func (c *Counter) Run(number int) {
	l := &c.lanes[number]
	for i := range c.jobs {
		j, before := &c.jobs[i], len(l.crossed)
		for _, s := range l.selectors {
			switch j.op {
			case opCount:
				s.table.Advance(j.now)
				l.count(s, i)
			case opClear:
				s.table.Clear(j.member, j.slot)
			case opReview:
				l.review(s, i)
			case opShow:
				s.table.Show(j.member, j.slot, func(k window.Key, h window.Hot) { l.look(s, k, j.member, h, i) })
			}
			if len(l.seen) > 0 {
				clear(l.seen)
			}
		}
		// The order in which a table reports is its own.
		slices.SortFunc(l.crossed[before:], crossing.compare)
		if j.op == opReview { // several firewalls may have found the same key for the fleet
			l.crossed = l.crossed[:before+len(slices.Compact(l.crossed[before:]))]
		}
	}
}

func (c crossing) compare(o crossing) int {
	return cmp.Or(cmp.Compare(c.Level, o.Level), cmp.Compare(c.Place.Realm, o.Place.Realm), cmp.Compare(c.Place.Firewall, o.Place.Firewall),
		c.Key.Addr().Compare(o.Key.Addr()), cmp.Compare(c.Key.Bits(), o.Key.Bits()))
}

// Commit returns what crossed a level, batch by batch, valid until the next call, and begins anew.
func (c *Counter) Commit() []Crossing {
	c.out = c.out[:0]
	var at [len(c.lanes)]int
	for i := range c.jobs {
		for n := range c.lanes {
			for l := &c.lanes[n]; at[n] < len(l.crossed) && l.crossed[at[n]].job == i; at[n]++ {
				c.out = append(c.out, l.crossed[at[n]].Crossing)
			}
		}
	}
	for n := range c.lanes {
		c.lanes[n].crossed = c.lanes[n].crossed[:0]
	}
	c.jobs, c.briefs = c.jobs[:0], c.briefs[:0]
	return c.out
}

// count adds a job's events to a selector's table, and looks at what became hot.
func (l *lane) count(s *selector, number int) {
	l.collect(s, &l.c.jobs[number])
	l.hot = s.table.AddBatch(l.events, l.hot[:0])
	for _, h := range l.hot {
		e := &l.events[h.Event]
		l.look(s, e.Key, e.Member, h, number)
	}
}

// collect makes window events of those that belong to the selector.
func (l *lane) collect(s *selector, j *job) {
	all := l.c.briefs[j.from:j.to]
	if cap(l.events) < len(all) {
		l.events = make([]window.Event, 0, events.MaxBatchEvents)
	}
	out := l.events[:len(all)]
	n := 0
	v4, v6 := s.set.bits(false), s.set.bits(true)
	matches := s.set.Match != Match{}
	for i := range all {
		b := &all[i]
		does := &j.meaning[kindOf(b)%kinds] // which it is below: so the compiler need not check
		e := &out[n]
		e.Series, e.Gauge = does.series&s.series, does.gauge
		if !s.active {
			e.Gauge = [2]int8{}
		}
		if e.Series == 0 && e.Gauge == [2]int8{} || matches && !s.set.Match.takes(b.Proto, b.DstPort) {
			continue
		}
		addr := &b.Src
		if s.set.Track == ByDst {
			addr = &b.Dst
		}
		bits := v4
		if b.IPv6 {
			bits = v6
		}
		e.Key = maskKey(*addr, b.IPv6, bits, j.realm)
		e.At, e.N, e.Member = min(b.Time+j.offset, j.at), 1, j.member
		n++
	}
	l.events = out[:n]
}

// look compares what may have crossed a level with the levels.
func (l *lane) look(s *selector, k window.Key, m window.Member, h window.Hot, job int) {
	metric := Metric(h.Series)
	if h.Total && l.fresh(hotKey{k, 0, metric, true}) {
		l.judge(s, metric, true, k, m, job)
	}
	if h.Member && l.fresh(hotKey{k, m, metric, false}) {
		l.judge(s, metric, false, k, m, job)
	}
}

func (l *lane) fresh(k hotKey) bool {
	if _, seen := l.seen[k]; seen {
		return false
	}
	l.seen[k] = struct{}{}
	return true
}

// review looks at all keys of a selector's table.
func (l *lane) review(s *selector, job int) {
	for m := range metrics {
		for _, i := range s.levels[m] {
			level := &l.c.levels[i]
			members := level.Scope != Fleet
			look := func(k window.Key, by window.Member) {
				l.look(s, k, by, window.Hot{Series: window.Series(m), Total: !members, Member: members}, job)
			}
			if m == Active {
				s.table.ReachGauge(level.Count, members, look)
			} else {
				s.table.Reach(m.series(), s.table.At(level.Window, l.c.jobs[job].now), level.Count, members, look)
			}
		}
	}
}

// judge notes the levels that a key is at: those of totals, or those of members.
func (l *lane) judge(s *selector, metric Metric, total bool, k window.Key, m window.Member, job int) {
	var at *site
	if !total {
		if at = l.c.sites[m]; at == nil {
			return // it is leaving
		}
	}
	realm := l.c.realmTags[k.Tag>>1]
	now := l.c.jobs[job].now
	for _, i := range s.levels[metric] {
		level := &l.c.levels[i]
		if (level.Scope == Fleet) != total {
			continue
		}
		place, value := Place{Realm: realm.name}, uint64(0)
		switch level.Scope {
		case Fleet:
			value = s.value(metric, k, level.Window, now)
		case Firewall:
			place, value = at.Place, s.memberValue(metric, k, m, level.Window, now)
		case FleetMax:
			// Only the member's own count can have come over the level by its event.
			if s.memberValue(metric, k, m, level.Window, now) >= level.Count {
				s.shares(metric, k, level.Window, now, func(_ window.Member, n uint64) { value = max(value, n) })
			}
		}
		if value >= level.Count {
			l.crossed = append(l.crossed, crossing{job, Crossing{Level: i, Place: place, Key: prefixOf(k, &s.set), Value: value, At: l.c.jobs[job].at}})
		}
	}
}

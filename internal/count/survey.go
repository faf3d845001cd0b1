package count

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
)

// A Survey finds the largest keys of all places in one pass over a table, where
// Top would take one for each. The pass is made in steps, between which counting
// goes on: nobody waits for more than one.
//
// A value is of the moment of the step that read it.
type Survey struct {
	c      *Counter
	sel    *selector
	window time.Duration
	scan   *window.Scan
	limits [2]int       // of opened, of active
	realms []*podium    // by number; nil: nothing of it was seen
	sites  []*podium    // by member
	open   []*podium    // that are not finished
	todo   []window.Key // whose shares are still to be read
	step   func(int) bool
}

// A podium collects the largest of a place.
type podium struct {
	place    Place
	rankings [2]ranking
	rows     []contender // when the pass is over
	known    bool
}

type contender struct {
	key    window.Key
	values [2]uint64 // opened, active
}

// A ranking keeps the largest by one of the values.
type ranking struct {
	rows  []contender
	least uint64 // what is not larger need not be kept
}

// add keeps up to twice the limit, so that a sort is made once in limit rows.
func (r *ranking) add(s *contender, by, limit int) {
	if s.values[by] <= r.least {
		return
	}
	if r.rows = append(r.rows, *s); len(r.rows) >= 2*limit {
		r.cut(by, limit)
	}
}

func (r *ranking) cut(by, limit int) {
	slices.SortFunc(r.rows, func(a, b contender) int { return cmp.Compare(b.values[by], a.values[by]) })
	if len(r.rows) >= limit {
		r.rows = r.rows[:limit]
		r.least = max(r.least, r.rows[limit-1].values[by])
	}
}

// Survey begins one of the whole addresses that are counted by a track: so many of
// each place by what they opened within the window, and by what they hold. It
// belongs to the goroutine that counts, or to who holds its lock; nil where the
// window is not kept, or a limit is not positive.
func (c *Counter) Survey(track Track, w time.Duration, opened, active int) *Survey {
	sel, ok := c.find(Set{Track: track, Metric: Opened}, w)
	if !ok || opened < 1 || active < 1 {
		return nil
	}
	s := &Survey{c: c, sel: sel, window: w, scan: sel.table.Scan(), limits: [2]int{opened, active}}
	s.step = s.pass
	return s
}

// Step goes on for so many lines and reports whether there is more to do. No other
// of the counter's functions may run meanwhile; any may between steps, if nothing
// admitted is left to count at the next.
func (s *Survey) Step(lines int) (more bool) { return s.step(lines) }

// pass visits lines.
func (s *Survey) pass(lines int) bool {
	q := s.sel.table.At(s.window, s.c.now)
	if s.scan.Step(lines, Opened.series(), q, s.see) {
		return true
	}
	s.open = slices.DeleteFunc(slices.Concat(s.realms, s.sites), func(p *podium) bool { return p == nil })
	s.step = s.close
	return true
}

// close makes one list of the rankings of each place.
func (s *Survey) close(lines int) bool {
	for n := max(1, lines/1024); n > 0 && len(s.open) > 0; n-- {
		p := s.open[0]
		s.open = s.open[1:]
		p.finish(s.limits)
		if p.place.Firewall == "" {
			for i := range p.rows {
				s.todo = append(s.todo, p.rows[i].key)
			}
		}
	}
	if len(s.open) == 0 {
		s.step = s.share
	}
	return true
}

func (s *Survey) see(seen *window.Sight) {
	row := contender{seen.Key, [2]uint64{seen.Count, seen.Gauge}}
	if seen.Total {
		if n := int(seen.Key.Tag >> 1); n < len(s.c.realmTags) && s.c.realmTags[n] != nil {
			s.at(&s.realms, n, Place{Realm: s.c.realmTags[n].name}).add(&row, s.limits)
		}
	}
	if seen.One && int(seen.Member) < len(s.c.sites) {
		if site := s.c.sites[seen.Member]; site != nil { // not one that is leaving
			s.at(&s.sites, int(seen.Member), site.Place).add(&row, s.limits)
		}
	}
}

// at returns the podium with a number, known or new.
func (s *Survey) at(list *[]*podium, n int, place Place) *podium {
	if n >= len(*list) {
		*list = append(*list, make([]*podium, n+1-len(*list))...)
	}
	if (*list)[n] == nil {
		(*list)[n] = &podium{place: place}
	}
	return (*list)[n]
}

func (p *podium) add(row *contender, limits [2]int) {
	for by := range p.rankings {
		p.rankings[by].add(row, by, limits[by])
	}
}

// finish makes one list of the rankings: each key once, though it may be in both,
// and was seen twice where its line moved.
func (p *podium) finish(limits [2]int) {
	for by := range p.rankings {
		p.rankings[by].cut(by, limits[by])
		for i := range p.rankings[by].rows {
			p.put(&p.rankings[by].rows[i])
		}
		p.rankings[by] = ranking{}
	}
}

func (p *podium) put(row *contender) {
	if !slices.ContainsFunc(p.rows, func(o contender) bool { return o.key == row.key }) {
		p.rows = append(p.rows, *row)
	}
}

// share adds what each firewall has of a realm's largest, which need not be among
// its own. The cost of a key is a look-up for each firewall.
func (s *Survey) share(lines int) bool {
	keys := max(1, lines/(4*max(len(s.c.sites), 1)))
	q := s.sel.table.At(s.window, s.c.now)
	for ; keys > 0 && len(s.todo) > 0; keys-- {
		key := s.todo[0]
		s.todo = s.todo[1:]
		shares := map[window.Member]*contender{}
		of := func(m window.Member) *contender {
			if shares[m] == nil {
				shares[m] = &contender{key: key}
			}
			return shares[m]
		}
		s.sel.table.Shares(key, Opened.series(), q, func(m window.Member, n uint64) { of(m).values[0] = n })
		s.sel.table.GaugeShares(key, func(m window.Member, n int32) { of(m).values[1] = uint64(max(n, 0)) })
		for m, row := range shares {
			if site := s.c.sites[m]; site != nil && row.values != [2]uint64{} {
				s.at(&s.sites, int(m), site.Place).put(row)
			}
		}
	}
	if len(s.todo) > 0 {
		return true
	}
	for n, p := range s.realms {
		if p != nil && s.c.realmTags[n] != nil {
			p.known = s.c.realmTags[n].known()
		}
	}
	for m, p := range s.sites {
		if p != nil && s.c.sites[m] != nil {
			p.known = s.c.sites[m].known()
		}
	}
	return false
}

// Surveyed is what a survey found at one place, in no order. Beside a firewall's
// largest there is what it has of its realm's.
type Surveyed struct {
	Place
	ActiveKnown bool // otherwise Active means nothing
	Rows        []SurveyedRow
}

// SurveyedRow is one key.
type SurveyedRow struct {
	Key            netip.Prefix
	Opened, Active uint64
}

// Places returns what was found when Step has nothing more to do. It needs no lock.
func (s *Survey) Places() (out []Surveyed) {
	set := Set{Track: s.sel.set.Track}
	for _, list := range [][]*podium{s.realms, s.sites} {
		for _, p := range list {
			if p == nil {
				continue
			}
			one := Surveyed{Place: p.place, ActiveKnown: p.known, Rows: make([]SurveyedRow, len(p.rows))}
			for i := range p.rows {
				one.Rows[i] = SurveyedRow{prefixOf(p.rows[i].key, &set), p.rows[i].values[0], p.rows[i].values[1]}
			}
			out = append(out, one)
		}
	}
	return out
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	countRounds  = 5
	countSources = 1_000_000
	countEvents  = 512 // in a batch
	// countBatches are as many as it takes for each source to come four times.
	countBatches = 4 * countSources / countEvents
	countGroup   = 8
	countGap     = 128_000 // ns between batches: 4 M events/s of the counter's own time
	countStart   = 1_800_000_000e9
)

// countWindows are those of eight rules on one metric.
var countWindows = []time.Duration{
	time.Second, 2 * time.Second, 5 * time.Second, 10 * time.Second, 30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute,
}

// newRules returns a rule for each window, with a threshold that no source reaches.
func newRules(windows ...time.Duration) count.Config {
	cfg := count.Config{Windows: windows}
	for _, w := range windows {
		cfg.Levels = append(cfg.Levels, count.Level{Scope: count.Fleet, Window: w, Count: 1 << 40})
	}
	return cfg
}

// counting is one way to count one kind of load.
type counting struct {
	cfg          count.Config
	sources      *synth.Draw
	destinations *synth.Draw // nil: 200, as likely as one another
	ipv6         bool
	ends         bool
	firewalls    int  // each with a part of the sources to itself
	shared       int  // firewalls that all see the same sources, instead
	both         bool // lanes on two goroutines
	full         bool // the longest window has filled

	loop    *synth.Loop
	counter *count.Counter
	names   []string
	turn    int
	decoder events.Decoder
	batch   events.Batch
}

// makeLoop makes the batches.
func (c *counting) makeLoop() (*synth.Loop, error) {
	c.firewalls = max(c.firewalls, 1)
	if c.destinations == nil {
		c.destinations = synth.Even(200, 4)
	}
	var loads []*synth.Load
	for i := range c.firewalls {
		each := uint32(countSources / c.firewalls)
		cfg := synth.Config{
			Firewall: fmt.Sprint("fw-", i), Realm: events.RealmDefault, IPv6: c.ipv6,
			Sources: c.sources.Share(uint64(i)), Destinations: c.destinations.Share(uint64(i)), First: uint32(i) * each, Count: each,
		}
		if c.ends {
			cfg.Open = 20_000 / c.firewalls
		}
		loads = append(loads, synth.NewLoad(cfg))
	}
	return synth.NewLoop(loads, countBatches, countEvents, countStart, 10e6)
}

// prepare counts so many batches that all keys are there, or all windows full.
func (c *counting) prepare() (err error) {
	if c.loop, err = c.makeLoop(); err != nil {
		return err
	}
	if c.counter, err = count.New(c.cfg); err != nil {
		return err
	}
	for i := range max(c.firewalls, c.shared) {
		c.names = append(c.names, fmt.Sprint("fw-", i))
		whole := events.Batch{Header: events.Header{Realm: events.RealmDefault, Seq: 1, Epoch: 1, Phase: events.SnapshotPart | events.SnapshotBegin | events.SnapshotEnd}}
		if _, err := c.counter.ApplySnapshot(c.names[i], &whole, countStart); err != nil {
			return err
		}
	}
	if c.full { // four minutes at a tenth of the rate, then one at all of it
		const slow = 10 * countGap
		if _, err := c.runAt(slow, int(4*time.Minute/slow)); err != nil {
			return err
		}
		_, err = c.run(int(time.Minute / countGap))
		return err
	}
	_, err = c.run(c.loop.Len() * max(c.shared, 1))
	return err
}

// run decodes and counts so many batches and returns events per second.
func (c *counting) run(batches int) (float64, error) { return c.runAt(countGap, batches) }

func (c *counting) runAt(gap int64, batches int) (float64, error) {
	start := time.Now()
	for i := range batches {
		data, load, at := c.loop.Next(gap)
		if err := c.decoder.Decode(data, &c.batch); err != nil {
			return 0, err
		}
		if c.shared > 0 {
			load = c.turn % c.shared
			c.turn++
		}
		if err := c.counter.Admit(c.names[load], &c.batch, at); err != nil {
			return 0, err
		}
		if i%countGroup == countGroup-1 || i == batches-1 {
			c.commit()
		}
	}
	return float64(batches*countEvents) / time.Since(start).Seconds(), nil
}

// commit counts what was admitted, as the aggregator does.
func (c *counting) commit() {
	var other sync.WaitGroup
	if c.both {
		other.Go(func() { c.counter.Run(1) })
	} else {
		c.counter.Run(1)
	}
	c.counter.Run(0)
	other.Wait()
	c.counter.Commit()
}

// goMap is what one would write first: a Go map by address, without windows,
// duplicates, epochs or bounds; by source and destination, for the firewall and for
// the fleet.
type goMap struct {
	loop    *synth.Loop
	maps    [4]map[netip.Addr]uint64
	decoder events.Decoder
	batch   events.Batch
	briefs  []events.Brief
}

// newGoMap returns one in which all keys are there.
func newGoMap(like *counting) (*goMap, error) {
	loop, err := like.makeLoop()
	if err != nil {
		return nil, err
	}
	m := &goMap{loop: loop}
	for i := range m.maps {
		m.maps[i] = map[netip.Addr]uint64{}
	}
	_, err = m.run(loop.Len())
	return m, err
}

func (m *goMap) run(batches int) (float64, error) {
	start := time.Now()
	for range batches {
		data, _, _ := m.loop.Next(countGap)
		if err := m.decoder.Decode(data, &m.batch); err != nil {
			return 0, err
		}
		m.briefs = m.batch.AppendBriefs(m.briefs[:0])
		for i := range m.briefs {
			b := &m.briefs[i]
			src, dst := b.Src.Netip(b.IPv6), b.Dst.Netip(b.IPv6)
			m.maps[0][src]++
			m.maps[1][dst]++
			m.maps[2][src]++
			m.maps[3][dst]++
		}
	}
	return float64(batches*countEvents) / time.Since(start).Seconds(), nil
}

// benchCount measures how many events one processor counts in a second, from the
// encoded batch to the judged count, by source and by destination, for the firewall and for the fleet,
// active included.
func benchCount(ctx context.Context) ([]figure, error) {
	even, zipf := synth.Even(countSources, 3), synth.Zipf(countSources, 3)
	one, eight := newRules(10*time.Second), newRules(countWindows...)
	match, prefix := newRules(10*time.Second), newRules(10*time.Second)
	match.Levels = append(match.Levels, count.Level{Set: count.Set{Match: count.MatchProtocol(6, 443)}, Window: 10 * time.Second, Count: 1 << 40})
	prefix.Levels = append(prefix.Levels, count.Level{Set: count.Set{IPv4Bits: 24}, Window: 10 * time.Second, Count: 1 << 40})

	many := eight
	many.MaxKeys = 1 << 24 // the histories of each firewall count too

	ways := map[string]*counting{
		"even":         {cfg: eight, sources: even},
		"two, one":     {cfg: eight, sources: even, destinations: synth.Even(countSources, 5)},
		"two, both":    {cfg: eight, sources: even, destinations: synth.Even(countSources, 5), both: true},
		"even, ends":   {cfg: eight, sources: even, ends: true},
		"even, full":   {cfg: eight, sources: even, full: true},
		"zipf":         {cfg: eight, sources: zipf},
		"zipf, ends":   {cfg: eight, sources: zipf, ends: true},
		"one rule":     {cfg: one, sources: even},
		"IPv6":         {cfg: eight, sources: even, ipv6: true},
		"match":        {cfg: match, sources: even},
		"prefix":       {cfg: prefix, sources: even},
		"shared by 2":  {cfg: many, sources: even, shared: 2},
		"shared by 10": {cfg: many, sources: even, shared: 10},
	}
	for _, n := range []int{10, 100, 1000} {
		ways[fmt.Sprint(n, " firewalls")] = &counting{cfg: eight, sources: even, firewalls: n}
	}
	for _, c := range ways {
		if err := c.prepare(); err != nil {
			return nil, err
		}
	}
	maps := map[string]*goMap{}
	for _, name := range []string{"even", "zipf"} {
		m, err := newGoMap(ways[name])
		if err != nil {
			return nil, err
		}
		maps[name] = m
	}
	// Round by round, so that what else the machine does falls on all of them.
	rates, theirs := map[string][]float64{}, map[string][]float64{}
	for range countRounds {
		for name, c := range ways {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			r, err := c.run(c.loop.Len() / 2)
			if err != nil {
				return nil, err
			}
			rates[name] = append(rates[name], r)
		}
		for name, m := range maps {
			r, err := m.run(m.loop.Len() / 2)
			if err != nil {
				return nil, err
			}
			theirs[name] = append(theirs[name], r)
		}
	}

	rows := []figure{}
	for _, f := range []struct {
		name, spread string
		target       float64
	}{{"even", "evenly", 4}, {"zipf", "by Zipf (1.2)", 8}} {
		ours, other := median(rates[f.name])/1e6, median(theirs[f.name])/1e6
		rows = append(rows, figure{
			what: fmt.Sprintf("counting on one core, 1 M addresses spread %s, 8 rules, encoded batch to judged count; other: four Go maps of netip.Addr (source and destination, firewall and fleet) without windows", f.spread),
			ours: million(ours), others: million(other), ratio: fmt.Sprintf("%.1f", ours/other),
			target: fmt.Sprintf("≥ %.0f M/s", f.target), met: ours >= f.target,
		}, figure{
			what: fmt.Sprintf("the same, half the events are ends, which count for unreplied too (%s)", f.spread),
			ours: million(median(rates[f.name+", ends"]) / 1e6),
		})
	}
	full := median(rates["even, full"]) / 1e6
	rows = append(rows, figure{
		what: "the same, evenly, when 4 M events/s have filled the windows up to 5 min",
		ours: million(full), target: "≥ 4 M/s", met: full >= 4,
		why: "A history has some hundred bytes then instead of the few that stand in its line, and an event that begins a slot packs the ones before anew.",
	})
	// beside compares two ways round by round; the ratio is that of the cost per event.
	beside := func(what, name, against string, target float64) figure {
		var ratios []float64
		for i := range rates[name] {
			ratios = append(ratios, rates[against][i]/rates[name][i])
		}
		ratio := median(ratios)
		f := figure{what: what, ours: million(median(rates[name]) / 1e6), others: million(median(rates[against]) / 1e6), ratio: fmt.Sprintf("%.2f", ratio)}
		if target > 0 {
			f.target, f.met = fmt.Sprintf("≤ %.1f", target), ratio <= target
		}
		return f
	}
	rows = append(rows,
		beside("time per event on two cores ÷ on one, 1 M sources and 1 M destinations spread evenly, 8 rules; decoding is for one core only", "two, both", "two, one", 0),
		beside("cost per event, 8 rules ÷ 1 rule of a counter set", "even", "one rule", 1.5),
		beside("cost per event, IPv6 ÷ IPv4", "IPv6", "even", 1.5),
	)
	for _, n := range []int{10, 100, 1000} {
		rows = append(rows, beside(fmt.Sprintf("cost per event, %d firewalls ÷ 1, each with sources of its own, destinations shared", n), fmt.Sprint(n, " firewalls"), "even", 1.5))
	}
	for _, n := range []int{2, 10} {
		f := beside(fmt.Sprintf("cost per event, %d firewalls ÷ 1, each of which sees all of the 1 M addresses", n), fmt.Sprint("shared by ", n), "even", 1.5)
		f.why = fmt.Sprintf("Such an address has a history in total and one for each firewall, and each event touches two of %d M: what waits is the memory.", 1+n)
		rows = append(rows, f)
	}
	return append(rows,
		beside("what a rule with match adds: cost per event with ÷ without, one rule without match beside it, all events match", "match", "one rule", 0),
		beside("what a rule with prefix (/24) adds", "prefix", "one rule", 0),
	), nil
}

func million(rate float64) string { return fmt.Sprintf("%.2f M/s", rate) }

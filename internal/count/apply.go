package count

import (
	"fmt"
	"net/netip"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Apply counts a batch of ct.v1.events.<firewall>. The name comes from the
// subject, stream is the stream's timestamp of the message in Unix ns. It
// returns the keys that the batch made hot, each once; they are valid until the
// next call. A duplicate or a batch too old to tell is no error and changes
// nothing but the account; an error means that the batch was refused and
// counted so.
func (c *Counter) Apply(firewall string, b *events.Batch, stream int64) ([]Hot, error) {
	f, run, err := c.receive(firewall, b, stream, false)
	if run == nil {
		return nil, err
	}
	switch run.live.hear(b.Seq) {
	case duplicate:
		f.duplicates++
		return nil, nil
	case tooOld:
		f.tooOld++
		return nil, nil
	}
	run.clock.observe(b.Sent, stream, b.Clean)
	run.hear(b, stream)
	f.batches++
	f.events += uint64(b.Count)

	id := epochOf(run, b.Epoch)
	c.meet(f, run, id, stream)
	switch id {
	case 0:
	case f.epochs.pending.epoch:
		f.epochs.pending.hearLive(b.Seq)
	case f.epochs.shown.epoch:
		f.epochs.shown.hearLive(b.Seq)
	}
	c.count(f, b, run.clock.offset(), stream, f.epochs.effect(id))
	c.settle(f)
	return c.takeHot(), nil
}

// ApplySnapshot does the same with a batch of ct.v1.snapshots.<firewall>. Keys
// become hot when the snapshot is complete and thereby shown.
func (c *Counter) ApplySnapshot(firewall string, b *events.Batch, stream int64) ([]Hot, error) {
	f, run, err := c.receive(firewall, b, stream, true)
	if run == nil {
		return nil, err
	}
	switch run.snapshots.hear(b.Seq) {
	case duplicate:
		f.duplicates++
		return nil, nil
	case tooOld:
		f.tooOld++
		return nil, nil
	}
	id := epochOf(run, b.Epoch)
	c.meet(f, run, id, stream)
	if b.Phase&events.SnapshotAbort != 0 {
		c.abort(f, id)
		return nil, nil
	}
	s := &f.epochs.pending
	if id != s.epoch || s.aborted {
		return nil, nil // of an epoch that is no longer wanted
	}
	s.parts++
	if b.Phase&events.SnapshotBegin != 0 {
		s.begin, s.beginAfter, s.lostBefore = b.Seq, b.After, b.Lost
	}
	if b.Phase&events.SnapshotEnd != 0 {
		s.end, s.endAfter, s.ended = b.Seq, b.After, stream
	}
	// A snapshot says what is there, not what happened: nothing but active
	// changes, and only in its own epoch.
	effect := f.epochs.effect(id)
	effect.shown = false
	c.count(f, b, 0, stream, effect)
	c.settle(f)
	return c.takeHot(), nil
}

// receive checks a batch and finds its sender and boot. A nil boot means that
// the batch goes no further.
func (c *Counter) receive(name string, b *events.Batch, stream int64, snapshot bool) (*firewall, *boot, error) {
	f, err := c.sender(name)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case (b.Phase != events.Live) != snapshot:
		err = fmt.Errorf("count: firewall %s: a batch of phase %d on the wrong subject", name, b.Phase)
	case b.Seq == 0:
		err = fmt.Errorf("count: firewall %s: a batch without a sequence", name)
	case b.Total+uint64(b.Count) < b.Total:
		err = fmt.Errorf("count: firewall %s: a total of %d events", name, b.Total)
	}
	if err != nil {
		f.refused++
		return nil, nil, err
	}
	if c.first == 0 {
		c.first = stream
	}
	c.now = max(c.now, stream)
	f.lastHeard = max(f.lastHeard, stream)
	run := f.boot(b.Boot)
	if run == f.newest {
		f.realm = b.Realm
	}
	return f, run, nil
}

// Refuse counts a message of firewall that could not be decoded.
func (c *Counter) Refuse(firewall string) {
	if f, err := c.sender(firewall); err == nil {
		f.refused++
	}
}

// A tally is what the events of a batch add to the sets of one selector,
// collected before it is applied: the tables then wait for memory once for many
// keys instead of once for each.
type tally struct {
	windows [Active][]window.Event
	active  []change
}

func (t *tally) reset() {
	for m := range t.windows {
		t.windows[m] = t.windows[m][:0]
	}
	t.active = t.active[:0]
}

// count counts the events of a batch, whose times are offset behind the
// stream's clock.
func (c *Counter) count(f *firewall, b *events.Batch, offset, stream int64, effect effect) {
	for i := range c.tallies {
		c.tallies[i].reset()
	}
	var at *place
	zone := uint16(0)
	e := &c.event
	for r := b.Events(); r.Next(e); {
		// Zones are rare, and where there are any, events of one come in runs.
		if at == nil || e.Zone != zone {
			c.flush(f, at)
			zone = e.Zone
			if at = c.site(f, b.Realm, zone); at == nil {
				f.zoneEvents++
				continue
			}
		}
		d := effect.deltas(e)
		if b.Phase == events.Live {
			c.collect(e, min(e.Time+offset, stream), d)
			if e.Type == events.New {
				at.realm.recent.add(at, e)
			}
		} else {
			c.collectActive(e, d)
		}
		f.held[0] += int64(d[0])
		f.held[1] += int64(d[1])
	}
	c.flush(f, at)
	f.epochs.dirty = f.epochs.dirty || effect.pending
}

// collect adds one live event to the tallies.
func (c *Counter) collect(e *events.Event, when int64, d [2]int32) {
	for i := range c.selectors {
		s := &c.selectors[i]
		key, ok := s.key(e)
		if !ok {
			continue
		}
		t := &c.tallies[i]
		add := window.Event{Key: key, At: when, N: 1}
		switch e.Type {
		case events.New:
			if s.keeps[Opened] {
				t.windows[Opened] = append(t.windows[Opened], add)
			}
		case events.Destroy:
			if s.keeps[Ended] {
				t.windows[Ended] = append(t.windows[Ended], add)
			}
			if s.keeps[Unreplied] && !e.Replied() {
				t.windows[Unreplied] = append(t.windows[Unreplied], add)
			}
		}
		if s.keeps[Active] && d != ([2]int32{}) {
			t.active = append(t.active, change{key, d})
		}
	}
}

// collectActive adds an event of a snapshot to the tallies.
func (c *Counter) collectActive(e *events.Event, d [2]int32) {
	if d == ([2]int32{}) {
		return
	}
	for i := range c.selectors {
		if s := &c.selectors[i]; s.keeps[Active] {
			if key, ok := s.key(e); ok {
				c.tallies[i].active = append(c.tallies[i].active, change{key, d})
			}
		}
	}
}

// flush applies the tallies to a site and its realm.
func (c *Counter) flush(f *firewall, at *place) {
	if at == nil {
		return
	}
	for i := range c.tallies {
		t := &c.tallies[i]
		for m, add := range t.windows {
			if len(add) == 0 {
				continue
			}
			c.add(at, i, Metric(m), add)
			c.add(at.realm, i, Metric(m), add)
		}
		if len(t.active) > 0 {
			c.addActive(f, at, i, t.active)
		}
		t.reset()
	}
}

// add adds to one window table and notes what became hot.
func (c *Counter) add(at *place, selector int, m Metric, add []window.Event) {
	t := at.table(c, selector, m)
	t.Advance(c.now)
	c.hotIndex = t.AddBatch(add, c.hotIndex[:0])
	for _, i := range c.hotIndex {
		c.note(at, selector, m, add[i].Key)
	}
}

// addActive changes a site's gauge, and its realm's by what is shown.
func (c *Counter) addActive(f *firewall, at *place, selector int, changes []change) {
	g, sum := at.gauge(c, selector), at.realm.gauge(c, selector)
	slot := f.epochs.slot
	for i := range changes {
		ch := &changes[i]
		v, ok := g.add(ch.key, ch.d)
		shown := ch.d[slot]
		if !ok || shown == 0 {
			continue
		}
		total, _ := sum.add(ch.key, [2]int32{shown})
		if shown > 0 {
			c.judgeActive(at, selector, ch.key, v[slot], total[0])
		}
	}
}

// judgeActive notes a key that has reached a level on a firewall or in its
// realm.
func (c *Counter) judgeActive(at *place, selector int, key window.Key, site, realm int32) {
	s := &c.selectors[selector]
	if level := s.site[Active].active; level > 0 && site > 0 && uint64(site) >= level {
		c.note(at, selector, Active, key)
	}
	if level := s.realm[Active].active; level > 0 && realm > 0 && uint64(realm) >= level {
		c.note(at.realm, selector, Active, key)
	}
}

// hotKey is a hot key before it is written out.
type hotKey struct {
	at       *place
	selector int
	metric   Metric
	key      window.Key
}

// note remembers a hot key, once.
func (c *Counter) note(at *place, selector int, m Metric, key window.Key) {
	h := hotKey{at, selector, m, key}
	if c.lastHot == h {
		return // an attack is often one key many times in a row
	}
	c.lastHot = h
	if _, known := c.hotSeen[h]; known {
		return
	}
	c.hotSeen[h] = struct{}{}
	s := &c.selectors[selector]
	set, l := s.set, &s.realm[m]
	set.Metric = m
	hot := Hot{Set: set, Place: at.Place, Key: prefixOf(key, &set)}
	if at.realm != nil {
		l = &s.site[m]
	}
	for scope, judged := range l.scopes {
		if judged {
			hot.Scope = Scope(scope)
			hot.Place = at.Place
			if hot.Scope == FleetMax {
				hot.Place = at.realm.Place
			}
			c.hot = append(c.hot, hot)
		}
	}
}

// takeHot returns what was noted and begins anew.
func (c *Counter) takeHot() []Hot {
	out := c.hot
	c.hot = c.hot[:0]
	if len(c.hotSeen) > 0 {
		clear(c.hotSeen)
	}
	c.lastHot = hotKey{}
	return out
}

// The tag of a window.Key is the family of its address.
const (
	tagIPv4 = 0
	tagIPv6 = 1
)

// maskKey makes a key of the first bits of an address.
func maskKey(a events.Addr, ipv6 bool, bits int) window.Key {
	if !ipv6 {
		return window.Key{Lo: a.Lo &^ (1<<(32-bits) - 1)}
	}
	if bits < 128 {
		if bits <= 64 {
			a.Lo = 0
			a.Hi &^= 1<<(64-bits) - 1
		} else {
			a.Lo &^= 1<<(128-bits) - 1
		}
	}
	return window.Key{Hi: a.Hi, Lo: a.Lo, Tag: tagIPv6}
}

// keyFrom is the key of a prefix in a set; ok is false when the set has no keys
// of that length.
func keyFrom(p netip.Prefix, set *Set) (k window.Key, ok bool) {
	a, ipv6 := events.FromNetip(p.Addr())
	bits := p.Bits()
	if p.Addr().Is4In6() {
		bits -= 96
	}
	if !p.IsValid() || bits != set.bits(ipv6) {
		return k, false
	}
	return maskKey(a, ipv6, bits), true
}

func prefixOf(k window.Key, set *Set) netip.Prefix {
	ipv6 := k.Tag == tagIPv6
	return netip.PrefixFrom(events.Addr{Hi: k.Hi, Lo: k.Lo}.Netip(ipv6), set.bits(ipv6))
}

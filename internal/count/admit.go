package count

import (
	"fmt"
	"slices"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A job is what the lanes have to do for one admitted batch: count the events of one
// site, or else carry out a change of what it shows, or just let time pass.
type job struct {
	now, at  int64 // the fleet's clock; the batch's time in the stream
	op       operation
	member   window.Member
	slot     uint8 // for opClear and opShow
	realm    uint16
	from, to int     // its events, in Counter.briefs
	offset   int64   // from their times to the stream's clock
	meaning  meaning // of their kinds
}

type operation uint8

const (
	opCount  operation = iota
	opClear            // empty one of a site's two sets of active flows
	opShow             // show this one from now on
	opReview           // look at every key
)

// A kind is all of an event but who and when: its type, its flags and whether
// it was answered.
type kind uint8

const kinds = 32

func kindOf(e *events.Brief) kind {
	return kind(e.Type) | kind(e.Flags>>4) | kind(e.Status&events.StatusSeenReply)<<3
}

// meaning says what events of each kind do.
type meaning [kinds]struct {
	series uint8   // bits: the windowed metrics that they count in
	gauge  [2]int8 // what they do to the two sets of active flows
}

// meaningOf is that of a batch's events.
func meaningOf(live bool, effect *effect) (m meaning) {
	for _, typ := range []events.Type{events.New, events.Destroy, events.Existing} {
		for _, flags := range []events.Flags{0, events.Unheld, events.UnheldBefore, events.Unheld | events.UnheldBefore} {
			for _, status := range []uint16{0, events.StatusSeenReply} {
				e := events.Brief{Type: typ, Flags: flags, Status: status}
				k := &m[kindOf(&e)]
				k.gauge = effect.deltas(typ, flags)
				switch {
				case !live:
				case typ == events.New:
					k.series = Opened.series().Bit()
				case typ == events.Destroy && status != 0:
					k.series = Ended.series().Bit()
				case typ == events.Destroy:
					k.series = Ended.series().Bit() | Unreplied.series().Bit()
				}
			}
		}
	}
	return m
}

// Admit takes a batch of ct.v1.events.<firewall> into account, and queues its
// events to be counted by Run. The name comes from the subject, stream is the
// stream's timestamp of the message in Unix ns. A duplicate or a batch too old to
// tell is no error and changes nothing but the account; an error means that the
// batch was refused and counted so. b may be used again when Admit returns.
func (c *Counter) Admit(firewall string, b *events.Batch, stream int64) error {
	f, run, err := c.receive(firewall, b, stream, false)
	if run == nil {
		return err
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
	c.queue(f, b, run.clock.offset(), stream, f.epochs.effect(id))
	c.settle(f, stream)
	return nil
}

// AdmitSnapshot does the same with a batch of ct.v1.snapshots.<firewall>. Keys
// cross levels when the snapshot is complete and thereby shown.
func (c *Counter) AdmitSnapshot(firewall string, b *events.Batch, stream int64) error {
	f, run, err := c.receive(firewall, b, stream, true)
	if run == nil {
		return err
	}
	id := epochOf(run, b.Epoch)
	c.meet(f, run, id, stream)
	if b.Phase&events.SnapshotAbort != 0 {
		c.abort(f, id)
		return nil
	}
	s := &f.epochs.pending
	if id != s.epoch || s.aborted {
		return nil // of an epoch that is no longer wanted
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
	c.queue(f, b, 0, stream, effect)
	c.settle(f, stream)
	return nil
}

// receive checks a batch and finds its sender and boot. A nil boot means that
// the batch goes no further: it is refused, or was seen before.
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
	run := f.boot(b.Boot)
	if run == f.newest {
		f.realm = b.Realm
	}
	heard := &run.live
	if snapshot {
		heard = &run.snapshots
	}
	switch heard.hear(b.Seq) {
	case duplicate:
		f.duplicates++
		return f, nil, nil
	case tooOld:
		f.tooOld++
		return f, nil, nil
	}
	return f, run, nil
}

// Refuse counts a message of firewall that could not be decoded.
func (c *Counter) Refuse(firewall string) {
	if f, err := c.sender(firewall); err == nil {
		f.refused++
	}
}

// queue makes jobs of a batch, whose events' times are offset behind the
// stream's clock: one for each zone, and nearly always there is but one.
func (c *Counter) queue(f *firewall, b *events.Batch, offset, stream int64, effect effect) {
	live := b.Phase == events.Live
	j := job{now: c.now, at: stream, offset: offset, meaning: meaningOf(live, &effect), from: len(c.briefs)}
	c.briefs = b.AppendBriefs(c.briefs)
	all := c.briefs[j.from:]
	if b.HasZones() {
		slices.SortStableFunc(all, func(a, b events.Brief) int { return int(a.Zone) - int(b.Zone) })
	}
	for len(all) > 0 {
		zone := all[0].Zone
		n := len(all)
		if all[n-1].Zone != zone {
			n = slices.IndexFunc(all, func(e events.Brief) bool { return e.Zone != zone })
		}
		j.to = j.from + n
		if at := c.site(f, b.Realm, zone); at == nil {
			f.zoneEvents += uint64(n)
		} else {
			j.member, j.realm = at.member, at.realm.tag
			c.hold(f, all[:n], &j.meaning)
			if live {
				at.realm.recent.sample(at, all[:n])
			}
			c.jobs = append(c.jobs, j) // behind the changes that a new site made
		}
		all, j.from = all[n:], j.to
	}
	f.epochs.dirty = f.epochs.dirty || effect.pending
}

// hold adds what events do to the number of flows that a firewall holds, and has opened.
func (c *Counter) hold(f *firewall, all []events.Brief, m *meaning) {
	var n [kinds]int64
	for i := range all {
		n[kindOf(&all[i])%kinds]++
	}
	for k := range m {
		f.held[0] += n[k] * int64(m[k].gauge[0])
		f.held[1] += n[k] * int64(m[k].gauge[1])
		if m[k].series&Opened.series().Bit() != 0 {
			f.opened += uint64(n[k])
		}
	}
}

// change queues a change of what a site shows.
func (c *Counter) change(s *site, slot uint8, op operation) {
	c.jobs = append(c.jobs, job{now: c.now, at: c.now, op: op, member: s.member, slot: slot})
}

// Queued is how many events were admitted and are not counted yet.
func (c *Counter) Queued() int { return len(c.briefs) }

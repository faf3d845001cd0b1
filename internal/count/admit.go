package count

import (
	"fmt"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A job is what the lanes have to do for one admitted batch: count its flows, or
// else carry out a change of what a firewall shows, or just let time pass.
type job struct {
	now, at  int64 // the fleet's clock; the batch's time in the stream
	from, to int   // its flows, in Counter.flows
	op       operation
	member   window.Member
	slot     uint8
}

type operation uint8

const (
	opCount operation = iota
	opClear           // empty one of a site's two sets of active flows
	opShow            // show this one from now on
)

// A flow is an event as the lanes want it.
type flow struct {
	src, dst events.Addr
	at       int64 // on the stream's clock
	member   window.Member
	realm    uint16
	dport    uint16
	series   uint8   // bits: the windowed metrics that it counts in
	gauge    [2]int8 // what it does to the two sets of active flows
	proto    uint8
	ipv6     bool
}

// Admit takes a batch of ct.v1.events.<firewall> into account, and queues its events to be
// counted by Run. The name comes from the
// subject, stream is the stream's timestamp of the message in Unix ns. A duplicate or a batch too old to tell is no error and changes
// nothing but the account; an error means that the batch was refused and
// counted so. b may be used again when Admit returns.
func (c *Counter) Admit(firewall string, b *events.Batch, stream int64) error {
	f, run, err := c.receive(firewall, b, stream, false)
	if run == nil {
		return err
	}
	switch run.live.hear(b.Seq) {
	case duplicate:
		f.duplicates++
		return nil
	case tooOld:
		f.tooOld++
		return nil
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
	switch run.snapshots.hear(b.Seq) {
	case duplicate:
		f.duplicates++
		return nil
	case tooOld:
		f.tooOld++
		return nil
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

// queue makes a job of a batch, whose events' times are offset behind the
// stream's clock.
func (c *Counter) queue(f *firewall, b *events.Batch, offset, stream int64, effect effect) {
	c.briefs = b.AppendBriefs(c.briefs[:0])
	live := b.Phase == events.Live
	sampled := newSampler(b.Count)
	var at *site
	id, from := uint16(0), len(c.flows)
	for i := range c.briefs {
		e := &c.briefs[i]
		// Zones are rare, and where there are any, events of one come in runs.
		if i == 0 || e.Zone != id {
			id = e.Zone
			at = c.site(f, b.Realm, id)
		}
		if at == nil {
			f.zoneEvents++
			continue
		}
		gauge := effect.deltas(e)
		f.held[0] += int64(gauge[0])
		f.held[1] += int64(gauge[1])
		series := uint8(0)
		if live {
			switch e.Type {
			case events.New:
				series = Opened.series().Bit()
				if sampled.wants(i) {
					at.realm.recent.add(at, e)
				}
			case events.Destroy:
				series = Ended.series().Bit()
				if e.Status&events.StatusSeenReply == 0 {
					series |= Unreplied.series().Bit()
				}
			}
		}
		if series == 0 && gauge == [2]int8{} {
			continue
		}
		c.flows = append(c.flows, flow{
			src: e.Src, dst: e.Dst, at: min(e.Time+offset, stream), member: at.member, realm: at.realm.tag, dport: e.DstPort,
			series: series, gauge: gauge, proto: e.Proto, ipv6: e.IPv6,
		})
	}
	// What changes for the sites that are new stands in the queue before their first flow.
	c.jobs = append(c.jobs, job{now: c.now, at: stream, from: from, to: len(c.flows)})
	f.epochs.dirty = f.epochs.dirty || effect.pending
}

// change queues a change of what a site shows.
func (c *Counter) change(s *site, slot uint8, op operation) {
	c.jobs = append(c.jobs, job{now: c.now, at: c.now, op: op, member: s.member, slot: slot})
}

// Queued is how many events were admitted and are not counted yet.
func (c *Counter) Queued() int { return len(c.flows) }

package synth

import (
	"fmt"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Config describes one firewall's traffic.
type Config struct {
	Firewall, Realm string
	Boot            events.Boot
	Sources         *Draw // numbers of the addresses that open flows
	Destinations    *Draw // and of those they go to
	// First and Count leave the firewall a part of the sources: their numbers
	// modulo Count, from First on. A Count of 0 leaves it all.
	First, Count uint32
	IPv6         bool
	// Open is how many flows are open at a time: from there on every second event
	// is the end of the oldest. 0: none ends.
	Open int
}

// Addresses begin here: benchmark and documentation prefixes.
const (
	source4, destination4 = 0xc612_0000, 0xcb00_7100 // 198.18.0.0 and on, 203.0.113.0 and on
	prefix6               = 0x2001_0db8 << 32
)

// Load makes the batches of one firewall.
type Load struct {
	cfg    Config
	w      events.BatchWriter
	header events.Header
	open   []events.Event // a ring of Config.Open flows
	oldest int
	flows  uint32
	extra  []events.Event // to go into the next batch
}

// NewLoad returns a firewall that has sent nothing yet.
func NewLoad(cfg Config) *Load {
	return &Load{cfg: cfg, header: events.Header{Firewall: cfg.Firewall, Realm: cfg.Realm, Boot: cfg.Boot, Epoch: 1}}
}

// Snapshot returns the batch that says that the table is empty: what follows is
// all that it holds. It is for the snapshots' subject.
func (l *Load) Snapshot() ([]byte, error) {
	h := l.header
	h.Phase = events.SnapshotPart | events.SnapshotBegin | events.SnapshotEnd
	var w events.BatchWriter
	data, err := w.Encode(&h)
	if err != nil {
		return nil, fmt.Errorf("synthetic snapshot: %w", err)
	}
	return data, nil
}

// Insert adds an event of the caller's to the next batch, in which it comes last.
func (l *Load) Insert(e events.Event) { l.extra = append(l.extra, e) }

// Batch returns n events (or as many as fit into a batch), spread evenly from one
// time to another, ns on the firewall's clock, and how many there are. It is valid
// until the next call, and still to be stamped.
func (l *Load) Batch(n int, from, to int64) (data []byte, count int, err error) {
	n = min(n, events.MaxBatchEvents-len(l.extra))
	for i := range n {
		e := l.event()
		e.Time = from + (to-from)*int64(i)/int64(n)
		if err := l.w.Append(&e); err != nil {
			return nil, 0, fmt.Errorf("synthetic batch: %w", err)
		}
	}
	for i := range l.extra {
		l.extra[i].Time = to
		if err := l.w.Append(&l.extra[i]); err != nil {
			return nil, 0, fmt.Errorf("synthetic batch: %w", err)
		}
	}
	count = n + len(l.extra)
	l.extra = l.extra[:0]
	if data, err = l.w.Encode(&l.header); err != nil {
		return nil, 0, fmt.Errorf("synthetic batch: %w", err)
	}
	return data, count, nil
}

// event returns the next one: a flow that begins or, when enough are open, every
// second time the end of the oldest.
func (l *Load) event() events.Event {
	if l.cfg.Open > 0 && len(l.open) == l.cfg.Open && l.open[l.oldest].Type == events.New {
		e := l.open[l.oldest]
		l.open[l.oldest].Type = 0 // its place is free
		e.Type = events.Destroy
		if e.ID%4 != 0 {
			e.Status |= events.StatusSeenReply
		}
		return e
	}
	e := l.flow()
	switch {
	case len(l.open) < l.cfg.Open:
		l.open = append(l.open, e)
	case l.cfg.Open > 0:
		l.open[l.oldest] = e
		l.oldest = (l.oldest + 1) % l.cfg.Open
	}
	return e
}

// flow begins a new one.
func (l *Load) flow() events.Event {
	source := l.cfg.Sources.Next()
	if l.cfg.Count > 0 {
		source = l.cfg.First + source%l.cfg.Count
	}
	l.flows++
	e := events.Event{Type: events.New, Proto: 6, ID: l.flows, Status: events.StatusConfirmed, IPv6: l.cfg.IPv6}
	e.Orig = events.Tuple{
		Src: events.Addr{Lo: source4 + uint64(source)}, Dst: events.Addr{Lo: destination4 + uint64(l.cfg.Destinations.Next())},
		SrcPort: uint16(l.flows), DstPort: 443,
	}
	if l.cfg.IPv6 {
		e.Orig.Src.Hi, e.Orig.Dst.Hi = prefix6, prefix6
	}
	return e
}

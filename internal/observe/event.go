package observe

import (
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Fields are what an event says, as JSON shows it.
type Fields struct {
	Type     string           `json:"type"`
	Flags    events.Flags     `json:"flags,omitempty"`
	Time     int64            `json:"time"`
	Proto    uint8            `json:"proto"`
	Src      string           `json:"src"`
	Dst      string           `json:"dst"`
	SrcPort  uint16           `json:"sport"`
	DstPort  uint16           `json:"dport"`
	ID       uint32           `json:"id"`
	Status   uint16           `json:"status"`
	Zone     uint16           `json:"zone,omitempty"`
	Reply    *Reply           `json:"reply,omitempty"`
	Counters *events.Counters `json:"counters,omitempty"`
}

// Reply is the way back, where NAT changes it.
type Reply struct {
	Src     string `json:"src"`
	Dst     string `json:"dst"`
	SrcPort uint16 `json:"sport"`
	DstPort uint16 `json:"dport"`
}

// FieldsOf reads an event. Its time is that of the firewall: monotonic, in ns.
func FieldsOf(e *events.Event) Fields {
	f := Fields{Type: e.Type.String(), Flags: e.Flags, Time: e.Time, Proto: e.Proto, Src: e.Src().String(), Dst: e.Dst().String(),
		SrcPort: e.Orig.SrcPort, DstPort: e.Orig.DstPort, ID: e.ID, Status: e.Status, Zone: e.Zone}
	if e.NAT {
		f.Reply = &Reply{e.Reply.Src.Netip(e.IPv6).String(), e.Reply.Dst.Netip(e.IPv6).String(), e.Reply.SrcPort, e.Reply.DstPort}
	}
	if e.HasCounters {
		counters := e.Counters // e is reused
		f.Counters = &counters
	}
	return f
}

// Event is one event with who sent it, and when it happened on the stream's clock.
type Event struct {
	events.Event
	Firewall, Realm string
	At              time.Time
}

// Shown is an event of the fleet, as JSON shows it. Its time is Unix ms.
type Shown struct {
	Firewall string `json:"firewall"`
	Realm    string `json:"realm"`
	Fields
}

// Show returns what JSON shows of it.
func (e *Event) Show() Shown {
	s := Shown{e.Firewall, e.Realm, FieldsOf(&e.Event)}
	s.Time = e.At.UnixMilli()
	return s
}

// When says when an event of a batch happened, on the clock of the stream that stored
// the batch at a time. The delay from the firewall to the stream is in it, a few ms.
func When(b *events.Batch, e *events.Event, stored time.Time) time.Time {
	return stored.Add(-time.Duration(b.Sent - e.Time))
}

// List are events of the fleet, oldest first, as JSON shows them.
type List struct {
	Events []Shown `json:"events"`
	Since  int64   `json:"since"`          // Unix ms: how far back was looked
	More   bool    `json:"more,omitempty"` // there are others before, or may be
}

// Question asks for the latest events that the bus keeps, of dumps none.
type Question struct {
	Filter
	Firewalls []string // whose; none: of all
	Since     int64    // Unix ms; 0: the last minute
	Limit     int      // the latest so many
}

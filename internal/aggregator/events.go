package aggregator

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// eventsFor is how far back is looked for events where nobody says.
	eventsFor = time.Minute
	// firstSpan of the stream is read first. The next one, before it, is spanGrowth
	// times as long, as long as there are not enough events.
	firstSpan  = time.Second
	spanGrowth = 4
	// leastSpan is not worth a consumer.
	leastSpan = 50 * time.Millisecond
	// eventBytes is how much of the stream is read for one question: more than a million
	// events. At 100,000 a second that is some ten seconds of the whole fleet.
	eventBytes = 32 << 20
	// messageBytes is what a message costs beside its bytes.
	messageBytes = 256
)

// Events are the latest ones that were asked for, oldest first. The stream is read from
// ever farther back until there are enough of them, one span after the other, each
// once; what is read is bounded, and the answer says how far back that reached.
func (a *Aggregator) Events(ctx context.Context, q *observe.Question) (*observe.List, error) {
	ctx, cancel := context.WithTimeout(ctx, readFor)
	defer cancel()
	s := &search{agg: a, Question: q, left: eventBytes}
	begin, edge := a.since(q.Since, eventsFor), a.now()
	var found []sighting
	for span := firstSpan; span >= leastSpan && len(found) < q.Limit && edge.After(begin); {
		from := edge.Add(-span)
		if from.Before(begin) {
			from = begin
		}
		whole, err := s.read(ctx, from)
		if err != nil && (s.reads == 0 || ctx.Err() == nil) {
			return nil, err
		}
		if !whole {
			break
		}
		found, edge = append(s.latest.list(), found...), from
		span = s.next(span)
	}
	more := edge.After(begin) || s.latest.more
	slices.SortStableFunc(found, func(x, y sighting) int { return x.At.Compare(y.At) })
	list := &observe.List{Events: []observe.Shown{}, Since: edge.UnixMilli(), More: more}
	seen := map[origin]bool{} // a batch may be in the stream twice
	found = slices.DeleteFunc(found, func(f sighting) bool {
		twice := seen[f.origin]
		seen[f.origin] = true
		return twice
	})
	if n := len(found) - q.Limit; n > 0 {
		found, list.More = found[n:], true
	}
	for i := range found {
		list.Events = append(list.Events, found[i].Show())
	}
	return list, nil
}

// A sighting is an event and where it stood.
type sighting struct {
	observe.Event
	origin
}

type origin struct {
	firewall string
	boot     events.Boot
	seq      uint64
	index    int
}

// search reads spans of the stream, each before the one that it read last.
type search struct {
	*observe.Question
	agg     *Aggregator
	reads   int
	left    int    // bytes that may be read yet
	took    int    // bytes of the last span
	before  uint64 // the first message of the spans that were read
	latest  latest[sighting]
	decoder events.Decoder
	batch   events.Batch
}

// read finds the events of the span that begins at a time. It returns false where the
// bound, or the time for an answer, ended before the span did: what was found in its
// beginning is not the latest.
func (s *search) read(ctx context.Context, begin time.Time) (whole bool, err error) {
	s.latest, s.took = latest[sighting]{limit: s.Limit}, 0
	from := bus.FollowFrom{Time: begin, Before: s.before}
	if len(s.Firewalls) == 1 {
		from.Filter = events.EventsSubject(s.Firewalls[0])
	}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	first := s.before
	err = s.agg.read(ctx, bus.StreamEvents, from, func(m *bus.Msg) {
		if s.took == 0 {
			first = m.Seq
		}
		if s.took += len(m.Data) + messageBytes; s.took > s.left {
			stop()
			return
		}
		s.take(m)
	})
	if s.took > s.left {
		return false, nil
	}
	if err == nil {
		s.reads, s.before = s.reads+1, first
		s.left -= s.took
	}
	return err == nil, err
}

// take notes what a batch has of the events that are wanted. What cannot be read was
// refused, and said, when it was counted.
func (s *search) take(m *bus.Msg) {
	name, err := events.SubjectFirewall(m.Subject, events.SubjectEvents)
	if err != nil || len(s.Firewalls) > 0 && !slices.Contains(s.Firewalls, name) {
		return
	}
	b := &s.batch
	if err := s.decoder.Decode(m.Data, b); err != nil || b.Firewall != name {
		return
	}
	e := sighting{Event: observe.Event{Firewall: name, Realm: b.Realm}, origin: origin{firewall: name, boot: b.Boot, seq: b.Seq}}
	for r := b.Events(); r.Next(&e.Event.Event); e.index++ {
		if s.Match(&e.Event.Event) {
			e.At = observe.When(b, &e.Event.Event, m.Time)
			s.latest.add(e)
		}
	}
}

// next is how long the next span may be, so that what may be read yet is enough for it
// if it holds as much as the last one did.
func (s *search) next(span time.Duration) time.Duration {
	enough := float64(span) * float64(s.left) / 2 / float64(cmp.Or(s.took, 1))
	return time.Duration(min(spanGrowth*float64(span), enough))
}

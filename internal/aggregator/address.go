package aggregator

import (
	"cmp"
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// addressPast is how many alerts that are over, decisions, receipts and acts an
	// answer about an address holds at most: it must fit into a message.
	addressPast = 20
	// addressSample is how many peers and ports.
	addressSample = 10
)

// Address tells all that is known of an address. Its errors are unavailable, as
// those of a question that the streams answer.
func (a *Aggregator) Address(ctx context.Context, q *events.AddressQuery) (*events.AddressReply, error) {
	if err := q.Validate(); err != nil {
		return nil, err
	}
	addr := netip.MustParseAddr(q.Address).Unmap()
	r := &events.AddressReply{
		Head: events.Head{V: events.MessageVersion}, Address: addr.String(), Realm: cmp.Or(q.Realm, events.RealmDefault),
	}
	since := a.since(0, recentFor)
	var err error
	if r.Past, r.More, err = a.resolved(ctx, since, addressPast, func(al *events.Alert) bool {
		p, err := events.ParsePrefix(al.Key)
		return err == nil && al.Realm == r.Realm && p.Contains(addr)
	}); err != nil {
		return nil, err
	}
	if err := a.deeds(ctx, r, addr, since); err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key, place := netip.PrefixFrom(addr, addr.BitLen()), count.Place{Realm: r.Realm}
	r.Src, r.Dst = a.side(count.BySrc, place, key), a.side(count.ByDst, place, key)
	if e, ok := a.allow.Heard(r.Realm).Contains(addr); ok {
		r.Allowlisted = &events.AddressEntry{Prefix: e.Prefix.String(), Why: e.Why}
	}
	r.Alerts = a.firing(func(t *rule.Transition) bool { return t.Subject.Realm == r.Realm && t.Subject.Key.Contains(addr) })
	r.Unknown = a.counter.Unknown(place)
	r.Lossy = a.counter.Lossy(place, slices.Max(a.windows))
	r.Stale = a.stale(r.Realm, "", time.Now())
	return r, nil
}

// side reads every count of an address by one track.
func (a *Aggregator) side(track count.Track, place count.Place, key netip.Prefix) (s events.AddressSide) {
	of := func(metric count.Metric, window time.Duration) events.AddressCount {
		set := count.Set{Track: track, Metric: metric}
		c := events.AddressCount{Metric: metric.String(), WindowS: int(window / time.Second), Firewalls: a.counter.Shares(set, place.Realm, key, window)}
		if v, known := a.counter.Value(set, count.Fleet, place, key, window); known {
			c.Value = &v
		}
		if c.Firewalls == nil {
			c.Firewalls = events.ByName[uint64]{} // nothing was counted in this realm
		}
		c.Partial = metric != count.Active && a.counter.Partial(window)
		return c
	}
	for _, w := range a.windows {
		s.Counts = append(s.Counts, of(count.Opened, w))
	}
	s.Counts = append(s.Counts, of(count.Active, 0))
	for _, w := range a.windows {
		c := of(count.Unreplied, w)
		if c.Share = a.counter.UnrepliedShare(track, place, key, w); c.Share == nil {
			c.Value = nil // no flow has ended
		}
		s.Counts = append(s.Counts, c)
	}
	s.Peers, s.Ports, s.SampleSize = a.counter.Sample(track, place, key, addressSample)
	if s.SampleSize == 0 {
		s.Peers, s.Ports = []events.Share{}, []events.Share{}
	}
	return s
}

// deeds reads what was decided and done about an address.
func (a *Aggregator) deeds(ctx context.Context, r *events.AddressReply, addr netip.Addr, since time.Time) error {
	decisions, receipts, acts := latest[events.Decision]{limit: addressPast}, latest[events.Receipt]{limit: addressPast}, latest[events.Act]{limit: addressPast}
	err := a.read(ctx, bus.StreamAudit, bus.FollowFrom{Time: since}, func(m *bus.Msg) {
		e, err := audit.Read(m, everybody)
		if err != nil || !e.Covers(addr) {
			return
		}
		switch {
		case e.Decision != nil && e.Decision.Realm == r.Realm:
			decisions.add(*e.Decision)
		case e.Act != nil && (e.Act.Realm == "" || e.Act.Realm == r.Realm):
			acts.add(*e.Act)
		case e.Receipt != nil && a.inRealm(e.Actor, r.Realm):
			receipts.add(*e.Receipt)
		}
	})
	r.Decisions, r.Receipts, r.Acts = decisions.list(), receipts.list(), acts.list()
	r.More = r.More || decisions.more || receipts.more || acts.more
	return err
}

// inRealm reports whether a firewall has entries of a realm: its own, or one of its
// zones. One that is not known may.
func (a *Aggregator) inRealm(firewall, realm string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	f := a.fleet[firewall]
	if f == nil {
		return true
	}
	_, ok := events.ZoneOf(realm, f.health.Realm)
	return ok
}

package aggregator

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ServiceName is the micro service of aggregators.
const ServiceName = "ct-aggregator"

func (a *Aggregator) serve(ctx context.Context) (stop func(), err error) {
	return a.conn.Serve(bus.Service{
		Name: ServiceName, Description: "ctfleet aggregator: the fleet's counts",
		Metadata: map[string]string{"version": daemon.ProgramVersion(), "host": hostName()},
		Endpoints: []bus.Endpoint{
			question(ctx, a, events.QueryTop, func(q *events.TopQuery) (events.Message, error) { return a.Top(q) }),
			question(ctx, a, events.QueryFirewalls, func(*events.FirewallsQuery) (events.Message, error) { return a.Firewalls(), nil }),
			question(ctx, a, events.QueryAlerts, func(q *events.AlertsQuery) (events.Message, error) { return a.Alerts(ctx, q) }),
			question(ctx, a, events.QueryAddress, func(q *events.AddressQuery) (events.Message, error) { return a.Address(ctx, q) }),
		},
	})
}

// question is an endpoint for one kind of question. An error is the asker's, unless
// it says that it is not.
func question[Q any, P interface {
	*Q
	events.Message
}](ctx context.Context, a *Aggregator, kind string, answer func(P) (events.Message, error)) bus.Endpoint {
	return bus.Endpoint{Name: kind, Subject: events.QuerySubject(kind), Handle: func(r bus.Request) (events.Message, error) {
		q := P(new(Q))
		if len(r.Data) > 0 { // nothing is a question, too
			if err := events.Unmarshal(r.Data, q); err != nil {
				return nil, &bus.RequestError{Err: err}
			}
		}
		a.letOthersAnswer(ctx)
		m, err := answer(q)
		if err == nil {
			return m, nil
		}
		if !daemon.IsUnavailable(err) {
			err = &bus.RequestError{Err: err}
		}
		return nil, err
	}}
}

// defaultRows is how many rows a top without a limit has.
const defaultRows = 20

// Top answers who has the most. Errors are the asker's, unless the history could not
// be read.
func (a *Aggregator) Top(q *events.TopQuery) (*events.TopReply, error) {
	if q.At != 0 {
		return a.topAt(q)
	}
	set := count.Set{Track: count.BySrc}
	if q.By == events.ByDst {
		set.Track = count.ByDst
	}
	switch q.Metric {
	case events.MetricActive:
		set.Metric = count.Active
	case events.MetricUnreplied:
		set.Metric = count.Unreplied
	}
	window := time.Duration(q.WindowS) * time.Second
	if window == 0 {
		window = always[0]
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if !slices.Contains(a.windows, window) {
		var kept []string
		for _, s := range a.windowsKept() {
			kept = append(kept, fmt.Sprint(s, "s"))
		}
		return nil, fmt.Errorf("window %.0fs is not kept, these are: %s", window.Seconds(), strings.Join(kept, ", "))
	}
	place := count.Place{Realm: cmp.Or(q.Realm, events.RealmDefault), Firewall: q.Firewall}
	if f := a.fleet[q.Firewall]; f != nil && q.Realm == "" {
		place.Realm = f.health.Realm
	}
	r := &events.TopReply{
		Head: events.Head{V: events.MessageVersion},
		By:   cmp.Or(q.By, events.BySrc), Metric: cmp.Or(q.Metric, events.MetricNew), WindowS: int(window / time.Second),
		Scope: events.RealmScope(place.Realm), Rows: []events.TopRow{}, Windows: a.windowsKept(),
	}
	if place.Firewall != "" {
		r.Scope = place.Firewall
	}
	for _, row := range a.counter.TopOf(set, place, window, cmp.Or(q.Limit, defaultRows), a.wanted(q, place.Realm)) {
		shares := a.counter.Shares(set, place.Realm, row.Key, window)
		if place.Firewall != "" {
			shares = map[string]uint64{place.Firewall: row.Value}
		}
		r.Rows = append(r.Rows, events.TopRow{Key: keyText(row.Key), Value: row.Value, Firewalls: shares})
	}
	if set.Metric == count.Active {
		r.WindowS = 0
		r.Unknown = a.counter.Unknown(place)
	} else {
		r.Partial = a.counter.Partial(window)
	}
	r.Stale = a.stale(place.Realm, place.Firewall, time.Now())
	return r, nil
}

// windowsKept are the windows that may be asked about, in seconds, shortest first.
func (a *Aggregator) windowsKept() []int {
	kept := make([]int, len(a.windows))
	for i, w := range a.windows {
		kept[i] = int(w / time.Second)
	}
	return kept
}

// wanted says which keys a question is about; nil: all. The question is a valid one.
func (a *Aggregator) wanted(q *events.TopQuery, realm string) func(netip.Prefix) bool {
	within, _ := events.ParsePrefix(q.Prefix)
	if q.Prefix == "" && q.Allowlisted == "" {
		return nil
	}
	list := a.allow.Heard(realm)
	return func(key netip.Prefix) bool {
		if q.Prefix != "" && !within.Contains(key.Addr()) {
			return false
		}
		if q.Allowlisted == "" {
			return true
		}
		_, listed := list.Covers(key)
		return !listed
	}
}

// Firewalls is the inventory, by name.
func (a *Aggregator) Firewalls() *events.FirewallsReply {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	r := &events.FirewallsReply{Head: events.Head{V: events.MessageVersion}, Firewalls: []events.FirewallStatus{}}
	for name, f := range a.fleet {
		acc, _ := a.counter.Account(name)
		r.Firewalls = append(r.Firewalls, events.FirewallStatus{
			Health: f.health, State: f.state(now), AgeMS: now.Sub(f.seen).Milliseconds(),
			Events: acc.Events, EventsPerS: f.rate, NewPerS: f.opens, Lost: max(acc.Lost, f.health.Stream.Lost()), Missing: acc.Missing,
			Duplicates: acc.Duplicates, Refused: acc.Refused,
			ActiveKnown: acc.ActiveKnown, Active: acc.Active,
			Approximate: acc.Approximate || acc.Short || f.health.Stream.Unannounced && f.health.Stream.Live > f.health.Table.Count,
			Boots:       acc.Boots, Rivals: acc.Rivals, MutedUntil: a.mutedUntil(name, now),
		})
	}
	slices.SortFunc(r.Firewalls, func(x, y events.FirewallStatus) int { return cmp.Compare(x.Firewall, y.Firewall) })
	r.Rules = a.rules.Digest
	markBehind(r)
	return r
}

package web_test

import (
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// status is a firewall that is well.
func status(name string, entries, limit uint64, newPerS float64) events.FirewallStatus {
	return events.FirewallStatus{
		Health: events.Health{
			Firewall: name, Realm: events.RealmDefault, Version: "v0.5.0", Started: time.Now().Add(-time.Hour).UnixMilli(), AllowFlush: true,
			Table:  events.TableHealth{Count: entries, Limit: limit, Percent: 100 * float64(entries) / float64(limit)},
			Stream: events.StreamHealth{RingLimit: 16 << 20, Buffer: 64 << 20},
		},
		State: events.StateFresh, EventsPerS: 2 * newPerS, NewPerS: newPerS, ActiveKnown: true, Active: entries, Boots: 1,
	}
}

const attacker = "198.51.100.7"

// office is a fleet of three, with an attack that is over and one that is not.
func office() *source {
	now := time.Now()
	ms := func(ago time.Duration) int64 { return now.Add(-ago).UnixMilli() }
	row := func(key string, shares map[string]uint64) events.TopRow {
		r := events.TopRow{Key: key, Firewalls: shares}
		for _, v := range shares {
			r.Value += v
		}
		return r
	}
	firing := events.Alert{
		ID: "a1", Rule: "new-flows-by-source", State: events.Firing, Severity: "critical", Scope: "fleet", Realm: events.RealmDefault,
		Key: attacker, Track: "by_src", Metric: "new", Value: 4100, Count: 3500, Seconds: 10, Started: ms(4 * time.Minute), Updated: ms(time.Minute),
		Firewalls: map[string]float64{"fw-lis": 2100, "fw-opo": 2000}, Text: attacker + " opened 4100 flows within 10 s, the limit is 3500",
	}
	over := events.Alert{
		ID: "a2", Rule: "table-75", State: events.Resolved, Severity: "warning", Scope: "fw-opo", Realm: events.RealmDefault,
		Key: "table", Track: "table", Metric: "table_percent", Value: 60, Count: 75, Started: ms(40 * time.Minute), Updated: ms(25 * time.Minute), Text: "the table of fw-opo was 81 % full, the limit is 75 %",
	}
	decision := events.Decision{
		ID: "d1", Alert: "a1", Rule: firing.Rule, Scope: "fleet", Realm: events.RealmDefault, Key: attacker, Mode: "enforce", Action: "flush",
		Outcome: events.OutcomeCommanded, Reason: "4100 new flows within 10 s", Firewalls: []string{"fw-lis", "fw-opo"}, Time: ms(3 * time.Minute),
	}
	receipt := events.Receipt{
		ID: "c1", Firewall: "fw-lis", Verb: events.VerbFlush, Actor: events.ActorResponder, Addresses: []string{attacker}, Time: ms(3 * time.Minute),
		Matched: 2100, Deleted: 2100, Refused: []events.Refusal{}, TableBefore: 24_100, TableAfter: 22_000, DurationMS: 4.25, Rule: firing.Rule, Reason: "alert a1",
	}
	return &source{
		firewalls: []events.FirewallStatus{status("fw-far", 9_000, 65_536, 40), status("fw-lis", 22_000, 65_536, 310), status("fw-opo", 51_000, 65_536, 290.5)},
		top: map[string]*events.TopReply{
			events.BySrc: {By: events.BySrc, Metric: "new", WindowS: 10, Scope: "fleet", Windows: []int{10, 60}, Rows: []events.TopRow{
				row(attacker, map[string]uint64{"fw-lis": 2100, "fw-opo": 2000}), row("2001:db8::7", map[string]uint64{"fw-far": 900}), row("10.0.0.9", map[string]uint64{"fw-lis": 12}),
			}},
			events.ByDst: {By: events.ByDst, Metric: "new", WindowS: 10, Scope: "fleet", Windows: []int{10, 60}, Rows: []events.TopRow{
				row("203.0.113.53", map[string]uint64{"fw-lis": 2105, "fw-opo": 1995, "fw-far": 11}),
			}},
		},
		firing: []events.Alert{firing}, past: []events.Alert{over},
		entries: []audit.Entry{
			{Time: now.Add(-3 * time.Minute), Actor: events.ActorResponder, Verb: events.VerbDecision, Decision: &decision},
			{Time: now.Add(-3 * time.Minute), Actor: "fw-lis", Verb: events.VerbFlush, Receipt: &receipt},
		},
		address: &events.AddressReply{
			Address: attacker, Realm: events.RealmDefault,
			Src: events.AddressSide{
				Counts: []events.AddressCount{
					{Metric: events.MetricNew, WindowS: 10, Value: new(uint64(4100)), Firewalls: map[string]uint64{"fw-lis": 2100, "fw-opo": 2000}},
					{Metric: events.MetricActive, Firewalls: map[string]uint64{}},
					{Metric: events.MetricUnreplied, WindowS: 10, Value: new(uint64(3900)), Share: new(0.95), Firewalls: map[string]uint64{"fw-lis": 3900}},
				},
				Peers: []events.Share{{Value: "203.0.113.53", Count: 60}}, Ports: []events.Share{{Value: "udp/53", Count: 64}}, SampleSize: 64,
			},
			Dst:    events.AddressSide{Counts: []events.AddressCount{{Metric: events.MetricNew, WindowS: 10, Value: new(uint64(0)), Firewalls: map[string]uint64{}}}, Peers: []events.Share{}, Ports: []events.Share{}},
			Alerts: []events.Alert{firing}, Past: []events.Alert{}, Decisions: []events.Decision{decision}, Receipts: []events.Receipt{receipt}, Acts: []events.Act{},
		},
	}
}

// many is a fleet of n, of which one is about to fill.
func many(n int) *source {
	s := office()
	s.firewalls = nil
	for i := range n {
		s.firewalls = append(s.firewalls, status(fmt.Sprintf("fw-%03d", i), uint64(1000+100*i%30_000), 65_536, float64(i)))
	}
	s.firewalls[n-1].Table = events.TableHealth{Count: 62_000, Limit: 65_536, Percent: 94.6}
	return s
}

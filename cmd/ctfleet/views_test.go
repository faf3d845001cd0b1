package main

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// viewTime is when the answers of these tests are of.
var viewTime = time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)

// TestViews holds what each command that asks prints, in every form. Texts that hold
// escapes have passed no check here: the last one is the printing.
func TestViews(t *testing.T) {
	f := func(name string, printed func(w io.Writer, format string) error) {
		t.Helper()
		for format, ending := range map[string]string{"human": ".txt", "raw": ".raw", "json": ".json"} {
			var out bytes.Buffer
			if err := printed(&out, format); err != nil {
				t.Errorf("%s, %s: %v", name, format, err)
			}
			for _, r := range out.String() {
				if hidden(r) && r != '\n' && r != '\t' {
					t.Errorf("%s, %s: %q reaches the terminal", name, format, r)
				}
			}
			golden(t, "view-"+name+ending, out.String())
		}
	}
	now := viewTime.UnixMilli()
	f("top", func(w io.Writer, format string) error {
		return printTop(w, format, &events.TopReply{
			Head: events.Head{V: 1}, By: "src", Metric: "new", WindowS: 30, Scope: "fleet", Windows: []int{10, 30, 60}, Stale: []string{"fw-c"}, Partial: true,
			Rows: []events.TopRow{
				{Key: "10.128.0.7", Value: 2002, Firewalls: map[string]uint64{"fw-b": 1001, "fw-a": 1001}}, {Key: "2001:db8::7\x1b[2J", Value: 3, Firewalls: map[string]uint64{"fw-a": 3}},
			},
		})
	})
	f("top-active", func(w io.Writer, format string) error {
		return printTop(w, format, &events.TopReply{Head: events.Head{V: 1}, By: "dst", Metric: "active", Scope: "fw-a", Rows: []events.TopRow{}, Unknown: []string{"fw-a"}})
	})
	f("top-past", func(w io.Writer, format string) error {
		return printTop(w, format, &events.TopReply{
			Head: events.Head{V: 1}, By: "src", Metric: "new", WindowS: 60, Scope: "fleet", At: now,
			Rows: []events.TopRow{{Key: "10.128.0.7", Value: 2002, Firewalls: map[string]uint64{"fw-a": 1001, "fw-b": 1001}}},
		})
	})

	firewalls := viewFirewalls()
	inventory := events.FirewallsReply{Head: events.Head{V: 1}, Firewalls: firewalls, Version: "v0.2.0", Rules: "0123456789ab", Newest: "v0.2.0\x1b[2J", Config: "badc0de"}
	f("firewalls", func(w io.Writer, format string) error {
		return printFirewalls(w, format, &inventory)
	})
	f("firewall", func(w io.Writer, format string) error { return printFirewall(w, format, &firewalls[0], &inventory) })
	f("firewall-replay", func(w io.Writer, format string) error { return printFirewall(w, format, &firewalls[1], &inventory) })

	f("versions", func(w io.Writer, format string) error {
		v := fleetVersions{Version: "v0.2.0", Newest: "v0.2.0"}
		v.add("aggregator", []bus.Instance{{ID: "1", Metadata: map[string]string{"version": "v0.2.0", "host": "centre\x1b[2J"}}})
		v.add("responder", []bus.Instance{{ID: "2", Metadata: map[string]string{"version": "v0.1.0", "host": "centre"}}})
		v.addFirewalls(&inventory)
		return printVersions(w, format, &v)
	})

	alerts := viewAlerts()
	f("alerts", func(w io.Writer, format string) error {
		return printAlerts(w, format, &events.AlertsReply{Head: events.Head{V: 1}, Alerts: alerts})
	})
	f("alert", func(w io.Writer, format string) error { return printAlert(w, format, &alerts[0]) })
	f("alerts-watch", func(w io.Writer, format string) error {
		alerts[1].State = events.Resolved
		return errors.Join(printWatched(w, format, viewTime, &alerts[0]), printWatched(w, format, viewTime.Add(1500*time.Millisecond), &alerts[1]))
	})

	decision := events.Decision{
		Head: events.Head{V: 1}, ID: "d1", Alert: "a1", Rule: "new-flows-by-source", Scope: "fleet", Realm: "default", Key: "203.0.113.7", Mode: "enforce", Action: "flush+block",
		Outcome: events.OutcomeCommanded, Reason: "over its threshold\x1b[2J", Firewalls: []string{"fw-a", "fw-b"}, Commands: []string{"c1", "c2"}, Time: now, BlockS: 600, Unanswered: true,
	}
	residual := uint64(3)
	f("audit", func(w io.Writer, format string) error {
		receipt := events.Receipt{
			Head: events.Head{V: 1}, ID: "c1", Firewall: "fw-a", Verb: events.VerbFlush, Actor: events.ActorResponder, Who: "responder", Reason: "over its threshold",
			Addresses: []string{"203.0.113.7"}, Time: now, Matched: 300, Deleted: 299, Refused: []events.Refusal{{Reason: "protected", Count: 1}}, TableBefore: 400, TableAfter: 101,
		}
		after := receipt
		after.Verb, after.Residual, after.Refused = events.VerbResidual, &residual, []events.Refusal{}
		dry := receipt
		dry.DryRun, dry.Deleted, dry.Actor, dry.Who = true, 0, events.ActorOperator, "alice"
		return printAudit(w, format, []audit.Entry{
			{Time: viewTime, Actor: events.ActorResponder, Verb: events.VerbDecision, Decision: &decision},
			{Time: viewTime.Add(time.Second), Actor: "fw-a", Verb: events.VerbFlush, Receipt: &receipt},
			{Time: viewTime.Add(3 * time.Second), Actor: "fw-a", Verb: events.VerbResidual, Receipt: &after},
			{Time: viewTime.Add(time.Minute), Actor: "fw-a", Verb: events.VerbFlush, Receipt: &dry},
			{Time: viewTime.Add(time.Hour), Actor: events.ActorOperator, Verb: events.VerbAllowlist, Unsigned: "it is not signed", Act: &events.Act{Head: events.Head{V: 1}, Verb: events.VerbAllowlist, What: "added 10.0.0.0/8", Key: "10.0.0.0/8", Reason: "backup run", Time: now}},
		})
	})
	f("approvals", func(w io.Writer, format string) error {
		proposed := decision
		proposed.Outcome, proposed.Commands, proposed.By, proposed.Towards = events.OutcomeProposed, nil, events.ByDst, "198.51.100.0/24"
		return printApprovals(w, format, []waiting{{Proposal: events.Proposal{Head: events.Head{V: 1}, Decision: proposed, Text: "203.0.113.7 opened 2002 flows", Expires: now + 90_000}}}, viewTime)
	})
	f("guard", func(w io.Writer, format string) error {
		return printLedger(w, format, &events.Ledger{
			Head: events.Head{V: 1}, Serial: 7, Circuit: events.Circuit{Open: true, Since: now - 61_000, Why: "the budget of 2 addresses a minute is spent\x1b[2J", Who: "alice"},
			Acts: []events.Acted{
				{Realm: "default", Address: "203.0.113.7", Alert: "a1", At: now - 5000, Until: now + 55_000}, {Realm: "default", Address: "203.0.113.8", Alert: "a2", At: now - 5000, Until: now - 1, Simulated: true},
				{Realm: "lis1", Address: "203.0.113.9", Alert: "a3"},
			},
		}, viewTime)
	})
	f("guard-closed", func(w io.Writer, format string) error {
		return printLedger(w, format, &events.Ledger{Head: events.Head{V: 1}}, viewTime)
	})
	f("allowlist", func(w io.Writer, format string) error {
		return printEntries(w, format, []allowlist.LiveEntry{
			{AllowEntry: events.AllowEntry{Head: events.Head{V: 1}, Prefix: "10.0.0.0/8", Comment: "backup run", Until: now + 3_600_000, Time: now}, Who: "alice"},
			{AllowEntry: events.AllowEntry{Head: events.Head{V: 1}, Prefix: "10.1.2.3/32", Realm: "lis1", Except: true, Time: now}, Unverified: errors.New("it is not signed")},
		}, viewTime)
	})
	f("blocks", func(w io.Writer, format string) error {
		return printBlocks(w, format, []blockRow{
			{Firewall: "fw-a", AllowBlock: true, Blocked: []events.Blocked{{Prefix: "203.0.113.7", LeftS: 599.5}, {Prefix: "2001:db8::/64", LeftS: -1}}, More: 3}, {Firewall: "fw-b", Blocked: []events.Blocked{}},
		})
	})
	f("resync", func(w io.Writer, format string) error {
		return printResyncs(w, format, []events.ResyncReply{{Head: events.Head{V: 1}, Firewall: "fw-a", Accepted: true, Epoch: 3}, {Head: events.Head{V: 1}, Firewall: "fw-b", Reason: "the last one is 2 s ago", Epoch: 9}})
	})
	f("bootstrap", func(w io.Writer, format string) error {
		return printChanged(w, format, []string{"CT_EVENTS", "CT_AUDIT"})
	})
	f("bootstrap-again", func(w io.Writer, format string) error { return printChanged(w, format, nil) })
}

func viewFirewalls() []events.FirewallStatus {
	live := events.FirewallStatus{
		Health: events.Health{
			Head: events.Head{V: 1}, Firewall: "fw-a", Realm: "default", Boot: "00112233445566778899aabbccddeeff", Labels: map[string]string{"site": "lis1"}, Version: "v0.1.0\x1b[2J", Config: "c0ffee",
			Sent: 5_000_000_000, Started: viewTime.Add(-time.Hour).UnixMilli(),
			Table:      events.TableHealth{Count: 120988, Limit: 131072, Buckets: 32768, Percent: 92.306},
			Kernel:     events.KernelHealth{Drop: 1, EarlyDrop: 2, InsertFailed: 3, Invalid: 4},
			Stream:     events.StreamHealth{Events: 1000, Published: 990, LostSocket: 1, LostRing: 2, LostBus: 3, Undecodable: 4, RingBytes: 2048, RingLimit: 65536, Buffer: 8 << 20, BufferUsed: 1 << 20, LingerMS: 10, LagMS: 7, Epoch: 2, Live: 900, Resyncs: 1},
			AllowFlush: true, AllowBlock: true, TCPLoose: true, Problems: []string{"nf_conntrack_events is 2"},
		},
		State: events.StateFresh, AgeMS: 350, Events: 980, EventsPerS: 1204.4, Lost: 10, Missing: 12, Duplicates: 1, Refused: 1, ActiveKnown: true, Active: 900, Approximate: true, Boots: 1, Rivals: true, Behind: true, Differs: true,
	}
	recording := events.FirewallStatus{Health: events.Health{Head: events.Head{V: 1}, Firewall: "fw-b", Realm: "lis1", Version: "v0.1.0", Source: "replay"}, State: events.StateSilent, AgeMS: 61_000}
	return []events.FirewallStatus{live, recording}
}

func viewAlerts() []events.Alert {
	share := 0.75
	return []events.Alert{{
		Head: events.Head{V: 1}, ID: "a1", Rule: "new-flows-by-source", State: events.Firing, Severity: "critical", Scope: "fleet", Realm: "default", Key: "203.0.113.7", Track: "by_src", Metric: "new",
		Value: 2002, Count: 2000, Seconds: 10, Peak: 2500, Started: viewTime.UnixMilli(), Updated: viewTime.UnixMilli() + 1000, Firewalls: map[string]float64{"fw-b": 1001, "fw-a": 1001},
		Peers: []events.Share{{Value: "198.51.100.1", Count: 60}}, Ports: []events.Share{{Value: "tcp/443\x1b[2J", Count: 100}}, SampleSize: 100, Unreplied: &share,
		Allowlisted: true, Lossy: true, Text: "new-flows-by-source: 203.0.113.7 opened 2002 flows within 10 s in the fleet, threshold 2000, through 2 firewalls",
	}, {
		Head: events.Head{V: 1}, ID: "a2", Rule: "table-full", State: events.Firing, Severity: "warning", Scope: "fw-a", Realm: "default", Key: "table", Track: "table", Metric: "table_percent",
		Value: 92.3, Count: 90, Peak: 92.3, Started: viewTime.UnixMilli(), Updated: viewTime.UnixMilli(), Text: "table-full: the table of fw-a is 92.3 % full, threshold 90 %",
	}}
}

//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// answered sends new flows to one server, which answers them.
func (f *fleet) answered(firewall, source, server string, port uint16, count int) {
	f.t.Helper()
	rep, err := traffic.Flood{
		Protocol: 17, Sources: netip.MustParsePrefix(source + "/32"), Destinations: netip.MustParsePrefix(server + "/32"), Port: port, Count: count, Answer: true,
	}.Run(f.t.Context(), f.lab.Firewall(firewall))
	if err != nil || rep.Sent != count {
		f.t.Fatalf("flood through %s: %+v, %v", firewall, rep, err)
	}
}

// holds waits until an address holds so many flows.
func (f *fleet) holds(address, by string, want uint64) {
	f.t.Helper()
	var got uint64
	until(f.t, address+" to hold what it should", func() bool {
		got = 0
		for _, row := range f.top("--metric", "active", "--by", by).Rows {
			if row.Key == address {
				got = row.Value
			}
		}
		return got == want
	})
}

// TestVictimOfAFlood: the sources of a flood lose what they have towards its victim,
// and nothing else; the victim's ordinary clients lose nothing.
func TestVictimOfAFlood(t *testing.T) {
	t.Parallel()
	const victim, elsewhere = "203.0.113.9", "203.0.113.8"
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_dst, metric: new, count: 300, seconds: 60}\n"))
	f.producer("fw-a", "--allow-flush")
	f.responder("mode: enforce\npolicies: [{rule: flood}]\n")
	// Not over the threshold.
	f.answered("fw-a", "198.18.1.1", victim, 53, 20) // ordinary: less than a tenth
	f.answered("fw-a", "198.18.66.1", elsewhere, 53, 50)
	f.answered("fw-a", "198.18.66.1", victim, 53, 150)
	f.answered("fw-a", "198.18.66.2", victim, 53, 150)
	f.holds("198.18.66.1", "src", 50)
	f.holds("198.18.66.2", "src", 0)
	f.holds("198.18.1.1", "src", 20)
	for _, r := range f.receipts("fw-a") {
		if r.Towards != victim || r.By != events.BySrc {
			t.Errorf("receipt: %+v", r)
		}
	}
}

// TestUnansweredTowardsAVictim: with unanswered: delete what nobody answered goes,
// from wherever it says it comes.
func TestUnansweredTowardsAVictim(t *testing.T) {
	t.Parallel()
	const victim = "203.0.113.9"
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_dst, metric: new, count: 300, seconds: 60}\n"))
	f.producer("fw-a", "--allow-flush", "--protect", "198.18.8.0/30") // even of these
	f.responder("mode: enforce\npolicies: [{rule: flood, unanswered: delete}]\n")
	f.answered("fw-a", "198.18.1.1", victim, 53, 20)
	rep, err := traffic.Flood{ // forged: a source for each
		Protocol: 17, Sources: netip.MustParsePrefix("198.18.8.0/22"), Destinations: netip.MustParsePrefix(victim + "/32"), Port: 53, Count: 400,
	}.Run(t.Context(), f.lab.Firewall("fw-a"))
	if err != nil || rep.Sent != 400 {
		t.Fatalf("flood: %+v, %v", rep, err)
	}
	var first events.Receipt
	until(t, "the receipt", func() bool {
		for _, r := range f.receipts("fw-a") {
			if r.Deleted > 0 {
				first = r
			}
		}
		return first.Deleted > 0
	})
	if first.By != events.ByDst || !first.Unanswered || first.Deleted > 400 {
		t.Errorf("receipt: %+v", first)
	}
	f.holds("198.18.1.1", "src", 20)
	f.holds("198.18.8.1", "src", 1) // protected
}

// TestRelief: a table that fills is freed of unanswered entries, those of the sources
// that hold most first, and no further than the policy says.
func TestRelief(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator()
	f.producer("fw-a", "--allow-flush", "--table-limit", "1000")
	f.responder("mode: enforce\npolicies: [{rule: table-75, action: relieve, until_percent: 40}]\n")
	f.answered("fw-a", "198.18.1.1", "203.0.113.9", 53, 100) // answered, it stays
	f.flood("fw-a", "198.18.66.1", 0, 350)
	f.flood("fw-a", "198.18.66.2", 0, 300)
	f.flood("fw-a", "198.18.66.3", 0, 60)
	f.holds("198.18.66.1", "src", 0)
	f.holds("198.18.66.2", "src", 0)
	f.holds("198.18.66.3", "src", 60) // 16 % of the table are left
	f.holds("198.18.1.1", "src", 100)
	var deleted []uint64
	for _, r := range f.receipts("fw-a") {
		if deleted = append(deleted, r.Deleted); !r.Unanswered || r.Rule != "table-75" {
			t.Errorf("receipt: %+v", r)
		}
	}
	if len(deleted) != 2 || deleted[0] != 350 || deleted[1] != 300 {
		t.Errorf("deleted %v, want 350, then 300", deleted)
	}
}

// TestBlockByPolicy: flush+block ends a conversation that a flush alone does not.
func TestBlockByPolicy(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a") // with tcp_loose=1
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", adversaryRules))
	f.producer("fw-a", "--allow-flush", "--allow-block")
	f.responder("mode: enforce\npolicies: [{rule: flood, action: flush+block, block_for: 1m}]\n")
	bad, good := f.talk("fw-a", attacker, 2), f.talk("fw-a", ordinary, 2)
	f.answered("fw-a", attacker, lab.ServerPrefix4.Addr().Next().Next().Next().String(), 53, 600)
	until(t, "the block", func() bool {
		return strings.Contains(f.run(t, "ctfleet", "block", "list", "-o", "json").stdout, `"prefix":"`+attacker+`"`)
	})
	f.holds(attacker, "src", 0)
	stopped, before := bad(), good()
	until(t, "echoes of the others", func() bool { return good().Echoed > before.Echoed+20 })
	if s := bad(); s.Echoed != stopped.Echoed {
		t.Errorf("the blocked one got %d echoes more", s.Echoed-stopped.Echoed)
	}
	if s := good(); s.Broken != 0 {
		t.Errorf("the others: %+v", s)
	}
	f.holds(attacker, "src", 0)
}

//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// These tests play whoever wants something deleted that should not be, against real
// programs, a real bus and real tables. docs/explanation/guard.md has the list.

const adversaryRules = `rules:
  - {name: flood, track: by_src, metric: new, count: 600, seconds: 60}
`

// receipts returns the receipts of a firewall's flushes in the audit.
func (f *fleet) receipts(firewall string) (out []events.Receipt) {
	f.t.Helper()
	for _, e := range parse[struct{ Entries []audit.Entry }](f.t, f.run(f.t, "ctfleet", "audit", "list", "-o", "json", "--firewall", firewall).stdout).Entries {
		if e.Verb == events.VerbFlush {
			out = append(out, *e.Receipt)
		}
	}
	return out
}

// refused waits for the first receipt of a firewall and compares why it refused.
func (f *fleet) refused(firewall, reason string) {
	f.t.Helper()
	var got []events.Receipt
	until(f.t, "the receipt of "+firewall, func() bool { got = f.receipts(firewall); return len(got) > 0 })
	if r := got[0]; r.Deleted != 0 || len(r.Refused) != 1 || r.Refused[0].Reason != reason {
		f.t.Errorf("%s: %+v, want it refused: %s", firewall, r, reason)
	}
}

// talk keeps up conversations of one client through a firewall, and returns how many
// have broken.
func (f *fleet) talk(firewall, client string, kept int) func() traffic.TalkStats {
	f.t.Helper()
	f.servers++ // each with one of its own
	t, err := traffic.Start(f.t.Context(), f.lab.Firewall(firewall), traffic.Talk{
		Clients: []netip.Addr{netip.MustParseAddr(client)}, Servers: traffic.Addresses(lab.ServerPrefix4, f.servers+1)[f.servers:], Kept: kept, Interval: 100 * time.Millisecond, Timeout: 10 * time.Second,
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(t.Close)
	return t.Stats
}

// TestStolenFirewallKey: whoever has the key of one firewall makes up flows of an
// address, to have it flushed from another, and a receipt in that one's name; and names
// that one's subjects as where the server's answers shall go.
func TestStolenFirewallKey(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a", "fw-b")
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", adversaryRules))
	f.producer("fw-a", "--allow-flush")
	f.responder("mode: enforce\npolicies: [{rule: flood, where: realm}]\n")
	stats := f.talk("fw-a", ordinary, 2)

	var w events.BatchWriter
	h := events.Header{Firewall: "fw-b", Realm: events.RealmDefault, Boot: events.Boot{7}, Seq: 1, Epoch: 1, Sent: int64(time.Hour), Clean: true}
	for i := range 700 {
		e := events.Event{Type: events.New, Proto: 17, Time: int64(time.Hour), ID: uint32(i)}
		e.Orig.Src, _ = events.FromNetip(netip.MustParseAddr(ordinary))
		e.Orig.Dst, _ = events.FromNetip(netip.MustParseAddr("203.0.113.9"))
		e.Orig.SrcPort, e.Orig.DstPort = uint16(i+1024), 53
		if err := w.Append(&e); err != nil {
			t.Fatal(err)
		}
	}
	data, err := w.Encode(&h)
	if err != nil {
		t.Fatal(err)
	}
	thief := f.connection("firewalls/fw-b")
	if _, err := thief.JS.Publish(t.Context(), events.EventsSubject("fw-b"), data); err != nil {
		t.Fatal(err)
	}
	f.refused("fw-a", "too-few-entries")
	forged := &events.Receipt{ID: "x", Firewall: "fw-a", Verb: events.VerbFlush, Addresses: []string{ordinary}, Deleted: 4}
	if err := thief.PublishMessage(t.Context(), events.AuditSubject("fw-b", events.VerbFlush), "", forged); err != nil {
		t.Fatal(err)
	}
	// NATS sends an acknowledgement wherever it is told to. It holds nothing of the
	// thief's choice: it is refused and counted, and is no event, no command, no loss of fw-a.
	for _, subject := range []string{events.EventsSubject("fw-a"), events.CommandSubject("fw-a", events.VerbFlush), events.AuditSubject("fw-a", events.VerbFlush)} {
		if err := thief.NC.PublishRequest(events.EventsSubject("fw-b"), subject, data); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "the answer that went astray to be refused", func() bool {
		fw := f.firewalls()[0]
		if fw.Firewall != "fw-a" || fw.Lost+fw.Missing != 0 {
			t.Fatalf("fw-a: %+v", fw)
		}
		return fw.Refused == 1
	})
	if r := f.run(t, "ctfleet", "audit", "list"); !strings.Contains(r.stderr, "fw-b wrote a receipt in the name of fw-a") || strings.Contains(r.stdout, "deleted 4") {
		t.Errorf("a forged receipt: %+v", r)
	}
	if s := stats(); s.Broken != 0 || s.Echoed == 0 {
		t.Errorf("the conversations: %+v", s)
	}
}

// TestSpoofedFlood: packets with the address of somebody who has conversations of
// his own, to have those deleted.
func TestSpoofedFlood(t *testing.T) {
	t.Parallel()
	for unanswered, deleted := range map[string]uint64{"refuse": 0, "delete": 700} {
		t.Run(unanswered, func(t *testing.T) {
			t.Parallel()
			f := newFleet(t, "fw-a")
			f.aggregator("--rules", file(t, "rules.yaml", adversaryRules))
			f.producer("fw-a", "--allow-flush")
			f.responder(fmt.Sprintf("mode: enforce\npolicies: [{rule: flood, unanswered: %s}]\n", unanswered))
			stats := f.talk("fw-a", ordinary, 2)
			f.flood("fw-a", ordinary, 0, 700)
			if deleted == 0 {
				f.refused("fw-a", "too-few-entries") // of his own there are few, and the forged ones prove nothing
			} else {
				until(t, "the forged flows to go", func() bool {
					sum := uint64(0)
					for _, r := range f.receipts("fw-a") {
						sum += r.Deleted
					}
					return sum >= 600 && sum <= deleted
				})
			}
			before := stats()
			until(t, "more echoes", func() bool { return stats().Echoed > before.Echoed+8 })
			if s := stats(); s.Broken != 0 {
				t.Errorf("the conversations: %+v", s)
			}
		})
	}
}

// TestFeedbackLoop: what a flush deletes comes back as new flows, which are over the
// threshold again. It must not be flushed for ever.
func TestFeedbackLoop(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a") // with tcp_loose=1, the kernel's default
	f.aggregator("--rules", file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_src, metric: new, count: 16, seconds: 5, recover: 0s}\n"))
	f.producer("fw-a", "--allow-flush", "--min-local", "5")
	f.responder("mode: enforce\ncool_down: 1m\npolicies: [{rule: flood}]\n")
	f.talk("fw-a", ordinary, 10) // ten of TCP, ten of UDP
	until(t, "the flush", func() bool { return len(f.receipts("fw-a")) > 0 })
	// Some of TCP with the server as their source: a packet of its own came first.
	until(t, "the conversations to be back", func() bool { n, err := f.lab.Firewall("fw-a").Entries(); return err == nil && n >= 20 })
	flushed := f.receipts("fw-a")[0].Time
	until(t, "the alert to be published again because of them", func() bool {
		for _, m := range f.stored(bus.StreamAlerts) {
			var a events.Alert
			if events.Unmarshal(m.Data, &a) == nil && a.State == events.Firing && a.Value >= a.Count && a.Updated > flushed {
				return true
			}
		}
		return false
	})
	time.Sleep(6 * time.Second) // longer than the window
	deleting := 0
	for _, r := range f.receipts("fw-a") {
		if r.Deleted > 0 {
			deleting++
		}
	}
	if deleting != 1 {
		t.Errorf("%d flushes: %+v", deleting, f.receipts("fw-a"))
	}
}

// TestKilledMidDelete: a producer that is killed while it deletes leaves a table that
// the next one's receipt is right about.
func TestKilledMidDelete(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a")
	if r := f.run(t, "ctfleet", "bootstrap"); r.code != 0 {
		t.Fatalf("bootstrap: %+v", r)
	}
	p := f.producer("fw-a", "--allow-flush", "--buffer-bytes", "65536") // slowly: deletes are paced by the buffer
	const flows = 20_000
	f.flood("fw-a", attacker, 0, flows)
	flush := f.start(t, "ctfleet", "flush", attacker, "-y", "-o", "json")
	entries := func() int {
		n, err := f.lab.Firewall("fw-a").Entries()
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	for deadline := time.Now().Add(20 * time.Second); entries() == flows; {
		if time.Now().After(deadline) {
			t.Fatal("nothing was deleted")
		}
	}
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-p.ended
	_ = flush.cmd.Process.Kill() // it would wait for an answer
	left := entries()
	if left == 0 || left == flows {
		t.Fatalf("%d entries are left of %d: it was not killed in between", left, flows)
	}
	f.producer("fw-a", "--allow-flush")
	a := parse[receiptsAnswer](t, f.run(t, "ctfleet", "flush", attacker, "-y", "-o", "json").stdout)
	if r := a.Receipts[0]; r.Error != "" || r.Matched != uint64(left) || r.Deleted+*r.Gone != uint64(left) || entries() != 0 {
		t.Errorf("%d entries were left: %+v, and %d after it", left, r, entries())
	}
}

// TestKilledResponder: a responder that is killed again and again does nothing twice,
// and leaves one record of each thing that it did.
func TestKilledResponder(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a")
	f.aggregator("--rules", file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_src, metric: new, count: 60, seconds: 60}\n"))
	f.producer("fw-a", "--allow-flush")
	policy := "mode: enforce\nbudget: {addresses_per_minute: 100}\npolicies: [{rule: flood, unanswered: delete}]\n"
	const kills, each = 4, 3
	for i := range kills {
		r := f.responder(policy)
		for j := range each {
			f.flood("fw-a", fmt.Sprintf("198.18.%d.%d", 10+i, 1+j), 0, 60)
		}
		time.Sleep(time.Duration(10+40*i) * time.Millisecond) // somewhere between the alerts and the receipts
		if err := r.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-r.ended
	}
	f.responder(policy)
	until(t, "all to be gone", func() bool { n, err := f.lab.Firewall("fw-a").Entries(); return err == nil && n == 0 })
	time.Sleep(time.Second) // for whatever would be done twice
	commanded, deleting := map[string]int{}, map[string]int{}
	for _, e := range parse[struct{ Entries []audit.Entry }](t, f.run(t, "ctfleet", "audit", "list", "-o", "json").stdout).Entries {
		switch {
		case e.Decision != nil && e.Decision.Outcome == events.OutcomeCommanded:
			commanded[e.Decision.Address+" "+e.Decision.ID]++
		case e.Receipt != nil && e.Verb == events.VerbFlush && e.Receipt.Deleted > 0:
			deleting[e.Receipt.Addresses[0]]++
			if e.Receipt.Deleted != 60 {
				t.Errorf("receipt: %+v", e.Receipt)
			}
		}
	}
	for what, n := range commanded {
		if n != 1 {
			t.Errorf("%s was recorded %d times", what, n)
		}
	}
	for address, n := range deleting {
		if n != 1 {
			t.Errorf("%s was flushed %d times", address, n)
		}
	}
	if len(deleting) != kills*each || len(commanded) < kills*each {
		t.Errorf("%d addresses were flushed, %d decisions recorded, want %d", len(deleting), len(commanded), kills*each)
	}
}

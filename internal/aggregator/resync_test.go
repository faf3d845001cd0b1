//go:build linux

package aggregator

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// churn opens 2,000 flows every quarter of a second and deletes those that were
// opened two seconds before, until ctx ends.
func churn(ctx context.Context, r *rig, fw string) {
	block := func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(i), 0}), 24) }
	conn, err := conntrack.Dial(r.lab.Firewall(fw).NS)
	if err != nil {
		r.t.Error(err)
		return
	}
	defer conn.Close()
	tick := time.NewTicker(250 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		r.flood(fw, udp(block(i%200).String(), 0, 2000, 0))
		if i >= 8 {
			m := conntrack.Match{Prefixes: []netip.Prefix{block((i - 8) % 200)}, By: events.BySrc}
			if _, err := conn.Flush(context.Background(), m, conntrack.FlushOptions{}); err != nil {
				r.t.Error(err)
			}
		}
		<-tick.C
	}
}

// TestResyncUnderChurn dumps a table that changes all the time, several times:
// meanwhile no alert fires wrongly and none is missed, and afterwards active is
// what the table holds.
func TestResyncUnderChurn(t *testing.T) {
	r := newRig(t, "fw-a")
	r.producer("fw-a", producer.Options{})
	holds := rule.Default()
	holds.Name, holds.Track, holds.Metric, holds.Count, holds.Recover = "holds", rule.BySrc, rule.Active, 600, time.Second
	opens := newFlows("opens", 600, 10)
	a, _ := r.aggregator(holds, opens)
	r.flood("fw-a", udp("198.18.128.0/18", 0, 40_000, 0)) // what makes a dump last
	r.flood("fw-a", udp("198.18.0.1/32", 0, 590, 200))    // opens and holds a little less than the rules want
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { churn(ctx, r, "fw-a") })

	resyncs := func() uint64 { return a.Firewalls().Firewalls[0].Stream.Resyncs }
	seen := map[string]bool{}
	for i := range 3 {
		before := resyncs()
		var reply events.ResyncReply
		c := &events.Command{Verb: events.VerbResync, Firewall: "fw-a", Actor: "test"}
		if err := r.conn.Request(t.Context(), events.CommandSubject("fw-a", events.VerbResync), c, &reply); err != nil || !reply.Accepted {
			t.Fatalf("resync: %v, %+v", err, reply)
		}
		// While it is on its way somebody crosses each threshold.
		source := netip.AddrFrom4([4]byte{198, 18, 1, byte(i)})
		seen[source.String()] = true
		for first := 0; first < 700; first += 70 {
			r.flood("fw-a", udp(netip.PrefixFrom(source, 32).String(), first, 70, 0))
			time.Sleep(20 * time.Millisecond)
		}
		r.until("the resync", func() bool { return resyncs() > before })
	}
	stop()
	wg.Wait()
	r.until("the alerts", func() bool { return r.fired("holds") >= len(seen) && r.fired("opens") >= len(seen) })
	fired := map[string]int{}
	r.mu.Lock()
	for _, al := range r.alerts {
		if al.Rule != "holds" && al.Rule != "opens" {
			t.Errorf("alarm: %s", al.Text)
			continue
		}
		if !seen[al.Key] {
			t.Errorf("wrongly fired: %s", al.Text)
		}
		if al.State == events.Firing && al.Started == al.Updated {
			fired[al.Rule+" "+al.Key]++
		}
	}
	r.mu.Unlock()
	if len(fired) != 2*len(seen) {
		t.Errorf("fired are %v, want both rules for each of %v", fired, seen)
	}

	conn, err := conntrack.Dial(r.lab.Firewall("fw-a").NS)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	table, err := conn.Flush(t.Context(), conntrack.Match{Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}, By: events.BySrc}, conntrack.FlushOptions{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	r.until("active to be what the table holds", func() bool {
		f := a.Firewalls().Firewalls[0]
		return f.ActiveKnown && !f.Approximate && f.Active == table.Matched
	})
	if f := a.Firewalls().Firewalls[0]; f.Lost+f.Missing != 0 {
		t.Errorf("events were lost: %+v", f)
	}
}

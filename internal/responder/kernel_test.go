//go:build linux

package responder

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestRealFirewalls lets two producers on real tables carry out, and refuse,
// what a responder asks for.
func TestRealFirewalls(t *testing.T) {
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}, {Name: "fw-b"}}})
	r := newRig(t)
	r.bootstrap()
	var mu sync.Mutex
	receipts := map[string]events.Receipt{} // by firewall and address
	for _, name := range []string{"fw-a", "fw-b"} {
		stop, err := r.conn.Subscribe(events.AuditSubject(name, events.VerbFlush), func(_ string, data []byte) {
			var rec events.Receipt
			if err := events.Unmarshal(data, &rec); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			receipts[name+" "+rec.Addresses[0]] = rec
			mu.Unlock()
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(stop)
		p, err := producer.New(producer.Options{
			Name: name, Realm: events.RealmDefault, Linger: 5 * time.Millisecond, RingBytes: 1 << 20, BufferBytes: 4 << 20, Trust: "none",
			AllowFlush: name == "fw-a", // fw-b only watches
			Protect:    []netip.Prefix{netip.MustParsePrefix("198.18.3.0/24")},
		}, producer.Dependencies{Bus: bus.Config{Server: r.server}, Namespace: l.Firewall(name).NS, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := p.Run(ctx); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
		t.Cleanup(func() { cancel(); wg.Wait() })
	}
	const each = 50
	for _, fw := range []string{"fw-a", "fw-b"} {
		for _, source := range []string{"198.18.0.1/32", "198.18.0.2/32", "198.18.3.1/32"} {
			f := traffic.Flood{Protocol: 17, Sources: netip.MustParsePrefix(source), Destinations: lab.ServerPrefix4, Port: 53, Count: each}
			if _, err := f.Run(t.Context(), l.Firewall(fw)); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.run(enforce(nil))
	r.working()
	entries := func(fw string, want int) {
		t.Helper()
		if got, err := l.Firewall(fw).Entries(); err != nil || got != want {
			t.Errorf("%s holds %d entries (%v), want %d", fw, got, err, want)
		}
	}
	receipt := func(name, address, refused string, deleted uint64) {
		t.Helper()
		r.until("the receipt of "+name, func() bool { mu.Lock(); defer mu.Unlock(); _, ok := receipts[name+" "+address]; return ok })
		mu.Lock()
		defer mu.Unlock()
		rec := receipts[name+" "+address]
		why := ""
		if len(rec.Refused) > 0 {
			why = rec.Refused[0].Reason
		}
		if rec.Deleted != deleted || why != refused || rec.Actor != events.ActorResponder || rec.Rule != "flood" {
			t.Errorf("%s, %s: %+v; want %d deleted, refused %q", name, address, rec, deleted, refused)
		}
	}
	r.fire(alert("a1", "198.18.0.1", nil))
	receipt("fw-a", "198.18.0.1", "", each)
	receipt("fw-b", "198.18.0.1", "not-enabled", 0)
	r.fire(alert("a2", "198.18.3.1", nil))
	receipt("fw-a", "198.18.3.1", "protected", 0)
	receipt("fw-b", "198.18.3.1", "not-enabled", 0)
	entries("fw-a", 2*each)
	entries("fw-b", 3*each)
	for _, d := range r.decisions(2) {
		if d.Outcome != events.OutcomeCommanded {
			t.Errorf("a refusal is an answer, nothing failed: %+v", d)
		}
	}
}

//go:build linux

package conntrack

import (
	"context"
	"errors"
	"testing"
	"time"

	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestDumpReturnsTheTable(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{Sysctls: map[string]string{"net.netfilter.nf_conntrack_acct": "1"}})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	const n = 1500 // per family: many datagrams
	flood(t, fw, udp(client4, n))
	flood(t, fw, udp(client6, n))
	before := Monotonic()
	got := map[events.Tuple]events.Event{}
	for _, e := range entries(t, c) {
		if e.Type != events.Existing || !e.HasCounters || e.OrigPackets != 1 || e.Time < before || e.Time > Monotonic() {
			t.Fatalf("%+v is not an entry of one packet read just now", e)
		}
		got[e.Orig] = e
	}
	want, err := o.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2*n || len(want) != 2*n {
		t.Fatalf("%d entries, the oracle has %d, want %d", len(got), len(want), 2*n)
	}
	for _, f := range want {
		if e, ok := got[oracleTuple(&f.TupleOrig)]; !ok || e.ID != f.ID {
			t.Fatalf("entry %s: dumped %v with id %d, the oracle has %d", f.TupleOrig, ok, e.ID, f.ID)
		}
	}
}

func TestDumpStops(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c := dial(t, fw.NS)
	const n = 3000
	flood(t, fw, udp(client4, n))

	enough := errors.New("enough")
	calls := 0
	err := c.Dump(t.Context(), func([]events.Event) error {
		if calls++; calls == 10 {
			return enough
		}
		return nil
	})
	errorsIs(t, err, enough)
	if calls != 10 {
		t.Errorf("fn was called %d times, want no more after its error", calls)
	}

	ctx, cancel := context.WithCancel(t.Context())
	seen := 0
	err = c.Dump(ctx, func(rows []events.Event) error {
		if seen += len(rows); seen > 1000 {
			cancel()
		}
		return nil
	})
	errorsIs(t, err, context.Canceled)
	if seen == n {
		t.Error("a cancelled dump went to the end")
	}
	errorsIs(t, c.Dump(ctx, func([]events.Event) error { return nil }), context.Canceled)

	// What was abandoned is not in the way.
	if got := len(entries(t, c)); got != n {
		t.Errorf("%d entries after two abandoned dumps, want %d", got, n)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	errorsIs(t, c.Dump(t.Context(), nil), ErrClosed)
}

// TestDumpSkipsExpired: the kernel counts entries that have expired until its
// garbage collector comes by; a dump does not return them, and evicts them.
func TestDumpSkipsExpired(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{Sysctls: map[string]string{"net.netfilter.nf_conntrack_udp_timeout": "1"}})
	r, c := open(t, fw.NS, 0), dial(t, fw.NS)
	const n = 200
	// The collector may come at any time, and a lookup evicts what it finds
	// expired on its way: some may be gone already. Try again when all are.
	for try := 1; ; try++ {
		flood(t, fw, udp(client4, n))
		collect(t, r, n)
		time.Sleep(1100 * time.Millisecond)
		state, err := c.State()
		if err != nil {
			t.Fatal(err)
		}
		if got := entries(t, c); len(got) != 0 {
			t.Fatalf("a dump returned %d entries that have expired", len(got))
		}
		if ended := collect(t, r, n); ended[0].Type != events.Destroy {
			t.Fatalf("%s, want the DESTROY of an expired flow", ended[0].Type)
		}
		if state.Count > 0 && state.Count <= n {
			return
		}
		if try == 5 {
			t.Fatalf("the kernel counted %d of %d expired entries, want some", state.Count, n)
		}
	}
}

func TestDumpTakesZoneAndProtocolFromTheEntry(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	f := timo.NewFlow(unix.IPPROTO_TCP, 0, client6.Addr(), server6.Addr(), 4000, 443, 60, 0)
	f.Zone = 12
	if err := o.Create(f); err != nil {
		t.Fatal(err)
	}
	got := entries(t, c)
	if len(got) != 1 || got[0].Zone != 12 || got[0].Proto != unix.IPPROTO_TCP || !got[0].IPv6 || got[0].Orig.DstPort != 443 {
		t.Errorf("dumped %+v, want the one entry in zone 12", got)
	}
}

//go:build linux

package producer

import (
	"log/slog"
	"math"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// perReceive is what one Receive takes from a full queue.
const perReceive = 4096

// idle is a producer that does not run, with a bus that it is not connected to.
func idle(t testing.TB, ns *host.Namespace) (*Producer, *capturer) {
	t.Helper()
	opt := Options{Name: "fw-a", Realm: events.RealmDefault, Trust: "none", Linger: 10 * time.Millisecond, RingBytes: 64 << 20, BufferBytes: 64 << 20}
	p, err := New(opt, Dependencies{Bus: bus.Config{Flags: bus.Flags{NATSURL: "nats://127.0.0.1:1"}}, Namespace: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.close)
	return p, &capturer{p: p, header: events.Header{Firewall: p.opt.Name, Realm: p.opt.Realm, Boot: p.boot}}
}

// queue fills the socket's buffer with the events of n new flows.
func queue(t testing.TB, fw *lab.Firewall, first, n int) {
	t.Helper()
	f := traffic.Flood{Protocol: 17, Sources: netip.MustParsePrefix("198.18.0.0/16"), Destinations: lab.ServerPrefix4, Port: 53, First: first, Count: n}
	if rep, err := f.Run(t.Context(), fw); err != nil || rep.Sent != n {
		t.Fatalf("sent %d of %d packets: %v", rep.Sent, n, err)
	}
}

// TestNothingIsAllocatedPerEvent follows events from the socket into the ring.
// What a batch takes there is recycled once the bus has acknowledged it, which
// nobody does here.
func TestNothingIsAllocatedPerEvent(t *testing.T) {
	fw := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}}).Firewall("fw-a")
	p, c := idle(t, fw.NS)
	const runs = 4
	labtest.RequireRoom(t, p.reader.Room(), (runs+2)*perReceive)
	// The live set has been as large before: growing is no cost per event.
	for i := range 160_000 {
		e := events.Event{Type: events.New, ID: uint32(i % 100_000)}
		if i >= 100_000 {
			e.Type = events.Destroy
		}
		p.live.Apply(&e)
	}
	queue(t, fw, 0, (runs+2)*perReceive)
	add := c.add
	receive := func() {
		if n, err := p.reader.Receive(0, add); err != nil || n != perReceive {
			t.Errorf("%d events were read, want %d: %v", n, perReceive, err)
		}
		c.flush()
		p.countDrops()
	}
	receive()
	// The least of several: the client, which looks for its server meanwhile, allocates
	// in this process, too.
	least := uint64(math.MaxUint64)
	for range runs {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		receive()
		runtime.ReadMemStats(&after)
		least = min(least, after.Mallocs-before.Mallocs)
	}
	const batches = perReceive/batchEvents + 1
	if least > 4*batches {
		t.Errorf("%d allocations for %d events in %d batches", least, perReceive, batches)
	}
}

// TestNothingIsAllocatedPerEventToTheBus is the same with everything at work,
// the NATS server and a subscriber in this process included: they allocate per
// batch. One allocation for each event would show.
func TestNothingIsAllocatedPerEventToTheBus(t *testing.T) {
	r := newRig(t, Options{})
	const n = 40_000
	f := udp4("198.18.0.0/24", 0, n)
	f.Rate = 40_000
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r.flood(f)
	r.until("all flows", func() bool { return r.new == n })
	runtime.ReadMemStats(&after)
	perEvent := float64(after.Mallocs-before.Mallocs) / n
	t.Logf("%.3f allocations per event", perEvent)
	if perEvent > 0.5 {
		t.Errorf("%.3f allocations per event", perEvent)
	}
}

// BenchmarkCapture is the way of an event from a full socket into the ring.
func BenchmarkCapture(b *testing.B) {
	fw := labtest.New(b, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}}).Firewall("fw-a")
	p, c := idle(b, fw.NS)
	conn, err := conntrack.Dial(fw.NS)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	add := c.add
	const flows = 10 * perReceive
	labtest.RequireRoom(b, p.reader.Room(), flows)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		b.StopTimer()
		queue(b, fw, 0, flows)
		b.StartTimer()
		for got := 0; got < flows; {
			some, err := p.reader.Receive(time.Second, add)
			if err != nil {
				b.Fatal(err)
			}
			got += some
		}
		c.flush()
		b.StopTimer()
		n += flows
		m := conntrack.Match{Prefixes: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/16")}, By: events.BySrc}
		if _, err := conn.Flush(b.Context(), m, conntrack.FlushOptions{}); err != nil {
			b.Fatal(err)
		}
		for ended := 0; ended < flows; {
			some, err := p.reader.Receive(time.Second, add)
			if err != nil {
				b.Fatal(err)
			}
			ended += some
		}
		c.flush()
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/event")
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	captureRounds  = 5
	captureSeconds = 4
	captureTable   = 200_000 // flows that are there all the time; the default table limit is 262,144
)

// captureRates are events per second, half of them NEW and half DESTROY: a busy
// firewall, and an attack. What a process costs whatever comes weighs more at
// the lower one.
var captureRates = []int{30_000, 100_000}

// benchCapture compares the CPU time per event of the whole producer, from the
// socket to the acknowledged batch, with those who do less.
func benchCapture(ctx context.Context) ([]figure, error) {
	server, conn, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	var rows []figure
	for _, rate := range captureRates {
		f, err := captureAt(ctx, rate, server.URL(), conn)
		rows = append(rows, f...)
		if err != nil {
			return rows, err
		}
	}
	return rows, nil
}

// captured is what the rounds of one competitor came to.
type captured struct {
	cost   []float64 // µs per event
	lost   uint64    // of those that the competitor counts
	missed uint64    // events that it did not receive
	allocs []float64 // per batch
}

func captureAt(ctx context.Context, rate int, url string, conn *bus.Conn) ([]figure, error) {
	all := map[string]*captured{}
	for _, role := range []string{roleDrain, roleProducer, roleTimo, roleTool} {
		all[role] = &captured{}
	}
	for range captureRounds {
		for role, c := range all { // in another order each time
			if err := c.round(ctx, role, rate, url, conn); err != nil {
				return nil, fmt.Errorf("%s: %w", role, err)
			}
		}
	}
	ours := all[roleProducer]
	us := median(ours.cost)
	at := fmt.Sprintf(", %d events/s", rate)
	row := func(who, role string, over bool, target float64) figure {
		they := median(all[role].cost)
		f := figure{what: "CPU per event, whole producer (socket to acknowledged batch) against " + who + at, ours: spread(ours.cost, "µs"), others: spread(all[role].cost, "µs")}
		if over {
			f.ratio, f.target, f.met = fmt.Sprintf("%.2f ×", us/they), fmt.Sprintf("≤ %.1f ×", target), us/they <= target
		} else {
			f.ratio, f.target, f.met = fmt.Sprintf("%.1f × less", they/us), fmt.Sprintf("≥ %.0f × less", target), they/us >= target
		}
		return f
	}
	bare := row("a bare recvmmsg drain", roleDrain, true, 1.7)
	bare.why = "A round of nap, publish and acknowledgement costs the same however few events it carries, and the drain neither publishes nor hears an acknowledgement: the fewer events per second, the larger the ratio."
	timo := row("ti-mo `Listen` that only receives", roleTimo, false, 10)
	timo.why = "The same cost per round weighs on the lower rate."
	tool := row("`conntrack -E >/dev/null`", roleTool, false, 1)
	events := captureRounds * rate * captureSeconds
	return []figure{
		bare, timo, tool,
		{what: fmt.Sprintf("events lost, of %d", events) + at, ours: fmt.Sprint(ours.lost + ours.missed), others: fmt.Sprintf("%d by ti-mo", all[roleTimo].missed), target: "0", met: ours.lost+ours.missed == 0},
		{what: "allocations per batch, NATS client and health included" + at, ours: fmt.Sprintf("%.0f", median(ours.allocs))},
	}, nil
}

// round runs one competitor in a fresh lab: a table full of flows, of which
// some end while as many begin.
func (c *captured) round(ctx context.Context, role string, rate int, url string, conn *bus.Conn) (err error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: firewall, Sysctls: longTimeouts}}})
	if err != nil {
		return err
	}
	defer l.Close()
	fw := l.Firewall(firewall)
	if err := fill(ctx, fw, captureTable); err != nil {
		return err
	}
	r, err := start(ctx, role, fw.NS, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	time.Sleep(500 * time.Millisecond)
	before, err := r.mark()
	if err != nil {
		return err
	}
	stream, err := conn.State(ctx, bus.StreamEvents)
	if err != nil {
		return err
	}
	flows := rate * captureSeconds / 2
	if err := churn(ctx, fw, flows, float64(rate)/2); err != nil {
		return err
	}
	want := 2 * uint64(flows)
	after, err := settled(r, before, want)
	if err != nil {
		return err
	}
	got := after.Events - before.Events
	if role == roleTool {
		got = want // it does not say; where it loses events this is in its favour
	}
	c.cost = append(c.cost, float64(after.CPU-before.CPU)/float64(got)/1e3)
	c.lost += after.Lost - before.Lost
	c.missed += want - min(got, want) // the system's own traffic may add one
	now, err := conn.State(ctx, bus.StreamEvents)
	if role == roleProducer && err == nil {
		c.allocs = append(c.allocs, float64(after.Mallocs-before.Mallocs)/float64(now.LastSeq-stream.LastSeq))
	}
	return err
}

// longTimeouts keep flows of one packet for as long as a measurement takes.
var longTimeouts = map[string]string{"net.netfilter.nf_conntrack_udp_timeout": "1200", "net.netfilter.nf_conntrack_events": "1"}

// Where flows come from: those that are there from the beginning, and those
// that come later.
var (
	settlers  = netip.MustParsePrefix("198.18.0.0/16")
	newcomers = netip.MustParsePrefix("198.19.0.0/16")
)

// udp are count flows from a prefix.
func udp(from netip.Prefix, count int, rate float64) traffic.Flood {
	f := traffic.Flood{Protocol: 17, Sources: from, Destinations: lab.ServerPrefix4, Port: 53, Count: count, Rate: rate}
	if from.Bits() < 20 {
		f.SourceCount = 10_000
	}
	return f
}

// send makes all flows of a flood and fails when one is missing.
func send(ctx context.Context, fw *lab.Firewall, f traffic.Flood) (traffic.FloodReport, error) {
	rep, err := f.Run(ctx, fw)
	if err == nil && (rep.Sent != f.Count && f.Count > 0 || rep.Lost > 0) {
		err = fmt.Errorf("the generator sent %d of %d packets and lost %d", rep.Sent, f.Count, rep.Lost)
	}
	return rep, err
}

// fill makes the settlers' flows, as fast as it goes.
func fill(ctx context.Context, fw *lab.Firewall, count int) error {
	_, err := send(ctx, fw, udp(settlers, count, 0))
	return err
}

// churn lets flows begin and as many of the settlers' end, rate a second each.
func churn(ctx context.Context, fw *lab.Firewall, flows int, rate float64) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := send(ctx, fw, udp(newcomers, flows, rate))
		return err
	})
	g.Go(func() error { return expire(ctx, fw, settlers, flows, rate) })
	return g.Wait()
}

// expire deletes count flows of a prefix, rate a second.
func expire(ctx context.Context, fw *lab.Firewall, from netip.Prefix, count int, rate float64) error {
	conn, err := conntrack.Dial(fw.NS)
	if err != nil {
		return err
	}
	defer conn.Close()
	n, start := 0, time.Now()
	res, err := conn.Flush(ctx, conntrack.Match{Prefixes: []netip.Prefix{from}, By: events.BySrc}, conntrack.FlushOptions{Keep: func(*events.Event) string {
		if n == count {
			return "enough"
		}
		if n++; n%64 == 0 {
			time.Sleep(time.Duration(float64(n)/rate*float64(time.Second)) - time.Since(start))
		}
		return ""
	}})
	if err == nil && res.Deleted != uint64(count) {
		err = fmt.Errorf("%d of %d flows were deleted", res.Deleted, count)
	}
	return err
}

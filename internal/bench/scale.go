//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	scaleRate   = 200 // events per second of each firewall: a branch of some dozens of people, at noon
	scaleTrials = 25
	scaleSettle = 8 * time.Second // after the last firewall came
)

// scales are fleets, each with as many aggregators.
var scales = []struct{ firewalls, aggregators int }{{1, 1}, {10, 1}, {100, 1}, {100, 2}, {1000, 1}}

// benchScale measures what fleets of ordinary firewalls cost the centre: docs/scaling.md is made
// of it. The server keeps events on disk; server, aggregators and fleet are processes of their own.
func benchScale(ctx context.Context) (rows []figure, err error) {
	for _, s := range scales {
		some, err := scaleOf(ctx, s.firewalls, s.aggregators)
		rows = append(rows, some...)
		if err != nil {
			return rows, fmt.Errorf("%d firewalls: %w", s.firewalls, err)
		}
	}
	return rows, nil
}

// usage is what was used and done up to a moment.
type usage struct {
	at             time.Time
	server, centre time.Duration // CPU
	counted, lost  uint64
	made           synth.Totals
	bus            bus.State
}

func scaleOf(ctx context.Context, n, aggregators int) (rows []figure, err error) {
	server, url, err := startSelf(ctx, "-role", roleDisk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	var centre *competitor // the last one; all are alike
	for range aggregators {
		if centre, _, err = startSelf(ctx, "-role", roleAggregator, "-nats-url", url); err != nil {
			return nil, err
		}
		defer func(c *competitor) { err = errors.Join(err, c.stop()) }(centre)
	}
	cfg := bus.Config{Flags: bus.Flags{NATSURL: url}, Role: "bench"}
	conn, err := bus.Connect(cfg)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	w, err := watchAlerts(conn)
	if err != nil {
		return nil, err
	}
	fleet, err := synth.NewFleet(synth.FleetConfig{
		Firewalls: n, Rate: scaleRate, Sources: 100, Open: 1000, Linger: 10 * time.Millisecond, Ramp: time.Duration(n) * fleetRamp, Bus: cfg, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	running := make(chan error, 1)
	go func() { running <- fleet.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-running) }()
	time.Sleep(time.Duration(n)*fleetRamp + scaleSettle)

	behind := 0.0
	use := func() (u usage, err error) {
		c, err := centre.mark()
		if err != nil {
			return u, err
		}
		s, err := server.mark()
		if err != nil {
			return u, err
		}
		behind = max(behind, c.Behind)
		state, err := conn.State(ctx, bus.StreamEvents)
		return usage{time.Now(), s.CPU, c.CPU, c.Events, c.Lost, fleet.Totals(), state}, err
	}
	before, err := use()
	if err != nil {
		return nil, err
	}
	for i := range scaleTrials {
		time.Sleep(fleetGap)
		source := netip.AddrFrom4([4]byte{10, 0, 0, byte(i)})
		w.expect(source.String())
		addr, _ := events.FromNetip(source)
		fleet.Attack(i*7919%n, addr, fleetCount)
		if i%5 == 0 {
			if _, err := use(); err != nil {
				return nil, err
			}
		}
	}
	time.Sleep(fleetGap) // so that the last one is counted too
	after, err := use()
	if err != nil {
		return nil, err
	}
	took, missed := w.wait(ctx, fleetPatience)
	seconds := after.at.Sub(before.at).Seconds()
	messages := float64(after.bus.LastSeq-before.bus.LastSeq) / seconds
	bytes := float64(after.bus.Bytes-before.bus.Bytes) / seconds
	made, counted := float64(after.made.Made-before.made.Made)/seconds, float64(after.counted-before.counted)/seconds
	name := fmt.Sprintf("%d firewalls, %d events/s each: ", n, scaleRate)
	if aggregators > 1 {
		name = fmt.Sprintf("%d firewalls, %d events/s each, %d aggregators: ", n, scaleRate, aggregators)
	}
	shared := "Server, aggregators and simulator share this machine."
	return []figure{
		{what: name + "events counted, and made, per second; lost", ours: fmt.Sprintf("%.0f, %d lost", counted, after.made.Lost+after.lost), others: fmt.Sprintf("%.0f", made),
			target: "all counted, none lost", met: counted >= 0.98*made && after.made.Lost+after.lost == 0, why: shared},
		{what: name + "messages and bytes per second into the stream of events; linger", ours: fmt.Sprintf("%.0f/s, %.2f MB/s, %d ms", messages, bytes/1e6, after.made.Linger.Milliseconds())},
		{what: name + "cores of server, and of an aggregator", ours: fmt.Sprintf("%.2f, %.2f", (after.server-before.server).Seconds()/seconds, (after.centre-before.centre).Seconds()/seconds)},
		{what: name + "memory of server, and of an aggregator", ours: fmt.Sprintf("%s, %s", megabytes(resident(server.pid(), "VmRSS")), megabytes(resident(centre.pid(), "VmRSS")))},
		{what: name + fmt.Sprintf("flows opened to alert at a subscriber, p99 of %d (median); consumer lag at its most", scaleTrials),
			ours: fmt.Sprintf("%.0f ms (%.0f); %.0f ms", percentile(took, 99), median(took), behind), target: "all come", met: missed == 0, why: fmt.Sprintf("%d alerts did not come.", missed)},
	}, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

const (
	captureRounds = 5
	captureFlows  = 200_000 // under the default table limit of 262,144
)

// captureRates are new flows per second: a busy firewall, and an attack. The
// fixed costs of a process weigh more at the lower one.
var captureRates = []float64{30_000, 100_000}

// benchCapture compares the CPU time per event of the whole producer, from the
// socket to the acknowledged batch, with ti-mo's Listen that only receives.
func benchCapture(ctx context.Context) ([]figure, error) {
	server, _, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	var rows []figure
	for _, rate := range captureRates {
		f, err := captureAt(ctx, rate, server.URL())
		if err != nil {
			return nil, err
		}
		rows = append(rows, f...)
	}
	return rows, nil
}

func captureAt(ctx context.Context, rate float64, url string) ([]figure, error) {
	cost := map[string][]float64{}
	var lost, missed uint64
	for range captureRounds {
		for _, role := range []string{roleProducer, roleTimo} {
			before, after, err := captureOnce(ctx, role, url, rate)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", role, err)
			}
			n := after.Events - before.Events
			cost[role] = append(cost[role], float64(after.CPU-before.CPU)/float64(n)/1e3)
			lost += after.Lost
			if role == roleTimo {
				missed += captureFlows - n
			}
		}
	}
	ours, theirs := median(cost[roleProducer]), median(cost[roleTimo])
	ratio := theirs / ours
	const target = 6
	at := fmt.Sprintf(" at %.0f new flows/s", rate)
	return []figure{
		{"CPU per event" + at + ": ti-mo Listen that only receives ÷ whole producer, socket to acknowledged batch", fmt.Sprintf("≥ %d", target),
			fmt.Sprintf("%.1f (%.2f µs ÷ %.2f µs)", ratio, theirs, ours), ratio >= target},
		{"the producer's rounds" + at, "", list(cost[roleProducer], "µs"), true},
		{"ti-mo's rounds" + at, "", list(cost[roleTimo], "µs"), true},
		{fmt.Sprintf("events lost by the producer, of %d", captureRounds*captureFlows) + at, "0", fmt.Sprint(lost), lost == 0},
		{"events that ti-mo did not deliver, same" + at, "", fmt.Sprint(missed), true},
	}, nil
}

// captureOnce runs one competitor against one flood in a fresh lab.
func captureOnce(ctx context.Context, role, url string, rate float64) (before, after mark, err error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}})
	if err != nil {
		return before, after, err
	}
	defer l.Close()
	fw := l.Firewall("fw-a")
	c, err := start(ctx, role, fw.NS, url)
	if err != nil {
		return before, after, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if before, err = c.mark(); err != nil {
		return before, after, err
	}
	_, err = traffic.Flood{
		Protocol: 17, Sources: netip.MustParsePrefix("198.18.0.0/16"), SourceCount: 10_000, Destinations: lab.ServerPrefix4, Port: 53,
		Count: captureFlows, Rate: rate,
	}.Run(ctx, fw)
	if err != nil {
		return before, after, err
	}
	// Wait until nothing more comes.
	for last := before; ; last = after {
		time.Sleep(500 * time.Millisecond)
		if after, err = c.mark(); err != nil || after.Events == last.Events && after.Events > before.Events || after.Events-before.Events >= captureFlows {
			return before, after, err
		}
	}
}

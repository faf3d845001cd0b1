//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	fleetRate     = 2000                  // events per second of each firewall
	fleetRamp     = 10 * time.Millisecond // from one firewall's start to the next
	fleetSettle   = 15 * time.Second      // after the last
	fleetTrials   = 100
	fleetGap      = 400 * time.Millisecond // between attacks
	fleetCount    = 1000                   // the rule's threshold, and the attack
	fleetPatience = 30 * time.Second
)

// fleetSizes are numbers of firewalls.
var fleetSizes = []int{10, 100, 1000}

// benchFleet runs simulated fleets against one server and one aggregator, each in a
// process of its own on this machine, the fleet in this one.
func benchFleet(ctx context.Context) (rows []figure, err error) {
	for _, n := range fleetSizes {
		some, err := fleetOf(ctx, n)
		rows = append(rows, some...)
		if err != nil {
			return rows, fmt.Errorf("%d firewalls: %w", n, err)
		}
	}
	return rows, nil
}

func fleetOf(ctx context.Context, n int) (rows []figure, err error) {
	server, url, err := startSelf(ctx, "-role", roleDisk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	centre, _, err := startSelf(ctx, "-role", roleAggregator, "-nats-url", url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, centre.stop()) }()
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
		Firewalls: n, Rate: fleetRate, Sources: 1000, Open: 2000, Linger: 10 * time.Millisecond, Ramp: time.Duration(n) * fleetRamp, Bus: cfg, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	running := make(chan error, 1)
	go func() { running <- fleet.Run(ctx) }()
	defer func() { cancel(); err = errors.Join(err, <-running) }()

	time.Sleep(time.Duration(n)*fleetRamp + fleetSettle)
	before, start := fleet.Totals(), time.Now()
	first, err := centre.mark()
	if err != nil {
		return nil, err
	}
	served, err := server.mark()
	if err != nil {
		return nil, err
	}
	own := cpu()
	behind := 0.0
	for i := range fleetTrials {
		time.Sleep(fleetGap)
		source := netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})
		w.expect(source.String())
		addr, _ := events.FromNetip(source)
		fleet.Attack(i*7919%n, addr, fleetCount)
		if i%5 != 0 {
			continue // asking costs the aggregator too
		}
		m, err := centre.mark()
		if err != nil {
			return nil, err
		}
		behind = max(behind, m.Behind)
	}
	last, err := centre.mark()
	if err != nil {
		return nil, err
	}
	servedLast, err := server.mark()
	if err != nil {
		return nil, err
	}
	own = cpu() - own
	after, seconds := fleet.Totals(), time.Since(start).Seconds()
	took, missed := w.wait(ctx, fleetPatience)
	rate := float64(after.Made-before.Made) / seconds
	name := fmt.Sprintf("fleet of %d firewalls, %d events/s each: ", n, fleetRate)
	const tolerance = 0.98
	cores := fmt.Sprintf("%.2f, %.2f, %.2f", (servedLast.CPU-served.CPU).Seconds()/seconds, (last.CPU-first.CPU).Seconds()/seconds, own.Seconds()/seconds)
	shared := fmt.Sprintf("The server, the aggregator and the simulator itself share the machine: they take %s of its cores.", cores)
	rows = append(rows,
		figure{what: name + "events made, and counted, per second", ours: fmt.Sprintf("%.0f", float64(last.Events-first.Events)/seconds), others: fmt.Sprintf("%.0f", rate),
			target: fmt.Sprintf("%d, all counted", n*fleetRate), met: rate >= tolerance*float64(n*fleetRate) && float64(last.Events-first.Events) >= tolerance*float64(after.Made-before.Made),
			why: shared},
		figure{what: name + "events lost", ours: fmt.Sprint(after.Lost + last.Lost), target: "0", met: after.Lost+last.Lost == 0, why: shared},
		figure{what: name + fmt.Sprintf("flows opened to alert at a subscriber, p99 of %d (median)", fleetTrials), ours: fmt.Sprintf("%.0f ms (%.0f)", percentile(took, 99), median(took)), target: "all come", met: missed == 0,
			why: fmt.Sprintf("%d alerts did not come within %s.", missed, fleetPatience)},
		figure{what: name + "linger asked for, and consumer lag at its most", ours: fmt.Sprintf("%d ms, %.0f ms", after.Linger.Milliseconds(), behind)},
		figure{what: name + "memory of server and aggregator", ours: fmt.Sprintf("%s, %s", megabytes(resident(server.pid(), "VmRSS")), megabytes(resident(centre.pid(), "VmRSS")))},
		figure{what: name + "cores of server, aggregator and simulator", ours: cores},
	)
	return rows, nil
}

// alertWatch is a subscriber that knows when attacks began.
type alertWatch struct {
	mu    sync.Mutex
	began map[string]time.Time
	took  []float64 // ms
}

func watchAlerts(conn *bus.Conn) (*alertWatch, error) {
	w := &alertWatch{began: map[string]time.Time{}}
	_, err := conn.Subscribe(events.SubjectAlerts+"."+events.Firing+".>", func(_ string, data []byte) {
		var a events.Alert
		if events.Unmarshal(data, &a) != nil {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if at, ok := w.began[a.Key]; ok {
			w.took = append(w.took, milliseconds(time.Since(at)))
			delete(w.began, a.Key)
		}
	})
	return w, err
}

func (w *alertWatch) expect(key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.began[key] = time.Now()
}

// wait returns the milliseconds of all alerts, and how many did not come.
func (w *alertWatch) wait(ctx context.Context, patience time.Duration) (took []float64, missed int) {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		w.mu.Lock()
		missed, took = len(w.began), w.took
		w.mu.Unlock()
		if missed == 0 || time.Now().After(deadline) || ctx.Err() != nil {
			return append(took, make([]float64, max(1-len(took), 0))...), missed
		}
	}
}

// aggregate is the whole aggregator, with its API.
func aggregate(ctx context.Context, url string) (apiURL string, progress func() mark, end func() error, err error) {
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds = "bench", rule.BySrc, rule.New, fleetCount, 10
	reg := prometheus.NewRegistry()
	a, err := aggregator.New(aggregator.Options{MaxKeys: 1 << 21}, rule.File{Rules: []rule.Rule{r}, MaxFiring: 1000}, aggregator.Dependencies{
		Bus: bus.Config{Flags: bus.Flags{NATSURL: url}}, Limits: bus.DefaultLimits, Log: slog.New(slog.DiscardHandler), Registry: reg,
	})
	if err != nil {
		return "", nil, nil, err
	}
	l, err := daemon.Listen("127.0.0.1:0")
	if err != nil {
		return "", nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work errgroup.Group
	work.Go(func() error { return a.Run(ctx) })
	work.Go(func() error {
		return api.Serve(ctx, l, &daemon.Access{}, a, reg, daemon.Health{Ready: a.Ready}, slog.New(slog.DiscardHandler))
	})
	end = func() error { cancel(); return work.Wait() }
	for a.Ready() != nil {
		if ctx.Err() != nil {
			return "", nil, nil, end()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return "http://" + l.Addr().String(), func() (m mark) {
		families, err := reg.Gather()
		if err != nil {
			return m
		}
		for _, f := range families {
			for _, one := range f.GetMetric() {
				switch f.GetName() {
				case "ctfleet_counted_events_total":
					m.Events += uint64(one.GetCounter().GetValue())
				case "ctfleet_missing_lost_events_total": // what producers lost, the fleet counts itself
					m.Lost += uint64(one.GetCounter().GetValue())
				case "ctfleet_stream_lag_seconds":
					m.Behind = 1000 * one.GetGauge().GetValue()
				}
			}
		}
		return m
	}, end, nil
}

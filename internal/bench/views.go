//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/synth"
)

// The fleet behind the page, and how often each of its questions is asked.
const (
	viewFirewalls = 200
	viewRate      = 5000 // events per second of each: a million together
	viewSources   = 500  // addresses of each, its own: 100,000 together
	viewSettle    = 15 * time.Second
	viewRounds    = 200
	viewGap       = 50 * time.Millisecond // between two rounds
	viewReaders   = 10                    // of the stream, as many open pages
	viewTarget    = 50.0                  // ms, p95
)

const anAddress = "an address"

// viewed are the page's questions: what they are called, and what is asked.
var viewed = []struct{ name, path string }{
	{"top by source, new flows", "top?by=src&metric=new&window=10&limit=10"},
	{"top by destination, new flows", "top?by=dst&metric=new&window=10&limit=10"},
	{"top by source, active flows", "top?by=src&metric=active&limit=100"},
	{"firewalls", "firewalls"},
	{"alerts, firing", "alerts"},
	{"alerts, past", "alerts?state=past"},
	{anAddress, "addresses/198.18.0.7"},
}

// benchViews asks what the page asks of an aggregator that counts a million events a
// second. Server, aggregator and fleet are as in benchFleet.
func benchViews(ctx context.Context) (rows []figure, err error) {
	server, url, err := startSelf(ctx, "-role", roleDisk)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	centre, api, err := startSelf(ctx, "-role", roleAggregator, "-nats-url", url)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, centre.stop()) }()
	fleet, err := synth.NewFleet(synth.FleetConfig{
		Firewalls: viewFirewalls, Rate: viewRate, Sources: viewSources, Open: 2000, Linger: 10 * time.Millisecond, Ramp: viewFirewalls * fleetRamp,
		Bus: bus.Config{Flags: bus.Flags{NATSURL: url}, Role: "bench"}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work errgroup.Group
	work.Go(func() error { return fleet.Run(ctx) })
	defer func() { cancel(); err = errors.Join(err, work.Wait()) }()
	time.Sleep(viewFirewalls*fleetRamp + viewSettle)
	for range viewReaders {
		work.Go(func() error { return readStream(ctx, api) })
	}

	start := time.Now()
	first, err := centre.mark()
	if err != nil {
		return nil, err
	}
	took := make([][]float64, len(viewed))
	for range viewRounds {
		for i, v := range viewed {
			begin := time.Now()
			if err := view(ctx, api+"/api/v1/"+v.path); err != nil {
				return nil, err
			}
			took[i] = append(took[i], milliseconds(time.Since(begin)))
		}
		time.Sleep(viewGap)
	}
	last, err := centre.mark()
	if err != nil {
		return nil, err
	}
	seconds := time.Since(start).Seconds()
	counted := float64(last.Events-first.Events) / seconds
	name := fmt.Sprintf("views of %d firewalls, %d addresses, %d pages: ", viewFirewalls, viewFirewalls*viewSources, viewReaders)
	const streams = " The story of an address reads the last hour of two streams of the server besides, by a consumer of its own each."
	shared := "The server, the aggregator and the simulated fleet share this machine."
	rows = append(rows, figure{
		what: name + "events counted meanwhile, per second", ours: fmt.Sprintf("%.0f", counted), target: fmt.Sprint(viewFirewalls * viewRate),
		met: counted >= 0.98*viewFirewalls*viewRate, why: shared,
	})
	for i, v := range viewed {
		p95, why := percentile(took[i], 95), shared
		if v.name == anAddress {
			why += streams
		}
		rows = append(rows, figure{
			what: name + v.name + fmt.Sprintf(", p95 of %d (median)", viewRounds), ours: fmt.Sprintf("%.1f ms (%.1f)", p95, median(took[i])),
			target: fmt.Sprintf("under %.0f ms", viewTarget), met: p95 < viewTarget, why: why,
		})
	}
	return rows, nil
}

// view asks one question and reads the answer.
func view(ctx context.Context, url string) error {
	resp, err := ask(ctx, url)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// readStream reads the stream as an open page does, until ctx ends.
func readStream(ctx context.Context, api string) error {
	resp, err := ask(ctx, api+"/api/v1/stream")
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	err = errors.Join(err, resp.Body.Close())
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("the stream ended: %w", err)
}

func ask(ctx context.Context, url string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("%s: %s", url, resp.Status)
	}
	return resp, nil
}

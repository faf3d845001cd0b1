// Command aggregator is the centre: it counts what all producers publish,
// judges the counts by its rules, publishes alerts and answers questions.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/rule"
)

const description = `Counts flows per address across the fleet, judges them by rules, publishes alerts and answers questions.

    aggregator --rules rules.yaml --check
    aggregator --rules rules.yaml --nats-url nats://nats.example:4222`

type flags struct {
	aggregator.Options
	bus.Flags
	Listen string `default:"127.0.0.1:8080" placeholder:"ADDR" help:"Serve the page and the API here, read-only (${default}); port 0 is a free one."`
	daemon.Access
	EmbeddedNATS bool         `name:"embedded-nats" help:"Run a NATS server in this process instead of using --nats-url. Its URL with credentials is written to the file url in --embedded-dir."`
	EmbeddedDir  string       `default:"ctfleet-nats" type:"path" placeholder:"DIR" help:"Where the embedded server keeps its streams (${default})."`
	NATSListen   string       `name:"nats-listen" default:"127.0.0.1:4222" placeholder:"ADDR" help:"Where the embedded server listens (${default}); port 0 is a free one."`
	Daemon       daemon.Flags `embed:""`
}

func main() {
	var f flags
	daemon.Parse("aggregator", description, &f)
	rules, err := f.Load()
	if err == nil {
		err = f.CheckHistory()
	}
	if err == nil {
		err = f.CheckAccess(f.Listen)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "aggregator:", err)
		os.Exit(f.Daemon.BadInput())
	}
	if f.Daemon.Check {
		nats, where := &f.Flags, fmt.Sprintf("NATS %s, API on %s", f.Servers(), f.Listen)
		if f.EmbeddedNATS {
			nats, where = nil, fmt.Sprintf("NATS embedded on %s, API on %s", f.NATSListen, f.Listen)
		}
		if err := aggregator.Check(os.Stdout, f.Options, rules, nats, where); err != nil {
			fmt.Fprintln(os.Stderr, "aggregator:", err)
			os.Exit(1)
		}
		return
	}
	log := f.Daemon.Logger(os.Stderr)
	os.Exit(daemon.Run(log, func(ctx context.Context) error { return run(ctx, &f, rules) }))
}

func run(ctx context.Context, f *flags, rules rule.File) error {
	log := f.Daemon.Logger(os.Stderr)
	cfg := bus.Config{Flags: f.Flags}
	if f.EmbeddedNATS {
		server, err := embedded.Start(embedded.Config{Listen: f.NATSListen, Dir: f.EmbeddedDir, Log: log})
		if err != nil {
			return err
		}
		defer server.Close()
		path, err := server.WriteURL(f.EmbeddedDir)
		if err != nil {
			return err
		}
		log.Info("embedded NATS", "address", server.Addr(), "url_file", path)
		cfg.Server = server
	}
	listener, err := f.Open(f.Listen)
	if err != nil {
		return err
	}
	metrics, err := daemon.Listen(f.Daemon.MetricsListen)
	if err != nil {
		return err
	}
	reg := prometheus.NewRegistry()
	a, err := aggregator.New(f.Options, rules, aggregator.Dependencies{Bus: cfg, Log: log, Registry: reg})
	if err != nil {
		return err
	}
	if listener != nil {
		log.Info("serving", "url", "http://"+listener.Addr().String()+"/")
	}
	if metrics != nil {
		log.Info("metrics", "url", "http://"+metrics.Addr().String()+"/metrics")
	}
	health, manager := daemon.Health{Ready: a.Ready, Alive: a.Alive}, daemon.OpenManager(log)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return daemon.Serve(ctx, metrics, daemon.Mux(reg, health), log) })
	g.Go(func() error { return manager.Run(ctx, health) })
	g.Go(func() error { return daemon.Reloads(ctx, log, reg, manager, a.Reload) })
	g.Go(func() error { return api.Serve(ctx, listener, &f.Access, a, reg, health, log) })
	g.Go(func() error { return a.Run(ctx) })
	return g.Wait()
}

// Command producer is the agent on a firewall: it streams the beginning and end
// of each flow in the kernel's connection table to NATS.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/seal"
)

const description = `Streams the connection table's NEW and DESTROY events to NATS. Deletes nothing and blocks nobody, unless --allow-flush or --allow-block is given and a command asks for it.

    producer --check                                        what would be used, what is missing on this host
    producer --nats-url nats://nats.example:4222            watch; needs CAP_NET_ADMIN
    ssh box conntrack -E -o xml,id | producer --source xml --input - --name box
    producer --netns blue --name fw-blue --allow-flush      another network namespace, flushes permitted
    producer --allow-flush --allow-block --trust trust.yaml flushes and blocks, by those who sign`

type flags struct {
	producer.Options
	bus.Flags
	Daemon daemon.Flags `embed:""`
}

// again reads the options once more: those of the file may have changed.
func again() (producer.Options, error) {
	var f flags
	err := daemon.Again("producer", &f)
	return f.Options, err
}

func main() {
	var f flags
	daemon.Parse("producer", description, &f)
	if f.Daemon.Check {
		if err := producer.Check(os.Stdout, f.Options, f.Flags); err != nil {
			fmt.Fprintln(os.Stderr, "producer:", err)
			os.Exit(1)
		}
		return
	}
	if _, err := seal.OpenTrust(f.Trust); err != nil { // a file that a flag names
		fmt.Fprintln(os.Stderr, "producer: --trust:", err)
		os.Exit(2)
	}
	producer.Alone()
	log := f.Daemon.Logger(os.Stderr)
	os.Exit(daemon.Run(log, func(ctx context.Context) error {
		listener, err := daemon.Listen(f.Daemon.MetricsListen)
		if err != nil {
			return err
		}
		reg := prometheus.NewRegistry()
		p, err := producer.New(f.Options, producer.Dependencies{Bus: bus.Config{Flags: f.Flags}, Log: log, Registry: reg, Options: again})
		if err != nil {
			return err
		}
		if listener != nil {
			log.Info("metrics", "url", "http://"+listener.Addr().String()+"/metrics")
		}
		ctx, done := context.WithCancel(ctx)
		health, manager := daemon.Health{Ready: p.Ready, Alive: p.Alive}, daemon.OpenManager(log)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return daemon.Serve(ctx, listener, daemon.Mux(reg, health), log) })
		g.Go(func() error { return manager.Run(ctx, health) })
		g.Go(func() error { return daemon.Reloads(ctx, log, reg, manager, p.Reload) })
		g.Go(func() error {
			defer done() // an input ends
			return p.Run(ctx)
		})
		return g.Wait()
	}))
}

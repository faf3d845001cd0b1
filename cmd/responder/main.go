// Command responder turns alerts into guarded commands, to flush or to block, and
// tells people of them. Unless its policy says approve or enforce, it only records
// what it would have done.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/responder"
	"github.com/ctfleet/ctfleet/internal/seal"
)

const description = `Turns alerts into guarded flush commands, as its policy file says. In mode observe, and without a file, it decides, records, and sends nothing.

    responder --policy policy.yaml --check
    responder --policy policy.yaml --nats-url nats://nats.example:4222`

type flags struct {
	responder.Options
	Trust string `placeholder:"FILE|none" help:"Whose signed allowlist entries and approvals to believe: a file of public keys and what each may do, read again on SIGHUP; none: everybody's, unsigned. Without it nobody's."`
	Rules string `type:"existingfile" placeholder:"FILE" help:"With --check: the aggregator's rules, to see whether there are those that the policy names."`
	bus.Flags
	Daemon daemon.Flags `embed:""`
}

func main() {
	var f flags
	daemon.Parse("responder", description, &f)
	file, err := f.Load()
	if err == nil {
		err = file.Validate()
	}
	signer, keyErr := f.Signer()
	if err == nil {
		err = keyErr
	}
	trust, trustErr := seal.OpenTrust(f.Trust)
	if err == nil && trustErr != nil {
		err = fmt.Errorf("--trust: %w", trustErr)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "responder:", err)
		os.Exit(f.Daemon.BadInput())
	}
	if f.Daemon.Check {
		if err := responder.Check(os.Stdout, f.Options, file, signer, trust, f.Rules, f.Flags); err != nil {
			fmt.Fprintln(os.Stderr, "responder:", err)
			os.Exit(1)
		}
		return
	}
	log := f.Daemon.Logger(os.Stderr)
	os.Exit(daemon.Run(log, func(ctx context.Context) error {
		listener, err := daemon.Listen(f.Daemon.MetricsListen)
		if err != nil {
			return err
		}
		reg := prometheus.NewRegistry()
		notifier, err := f.Notify(log, reg)
		if err != nil {
			return err
		}
		r, err := responder.New(file, responder.Dependencies{Notifier: notifier, Bus: bus.Config{Flags: f.Flags}, Signer: signer, Trust: trust, Policy: f.Load, Log: log, Registry: reg})
		if err != nil {
			return err
		}
		if listener != nil {
			log.Info("metrics", "url", "http://"+listener.Addr().String()+"/metrics")
		}
		health, manager := daemon.Health{Ready: r.Ready, Alive: r.Alive}, daemon.OpenManager(log)
		g, ctx := errgroup.WithContext(ctx)
		g.Go(func() error { return daemon.Serve(ctx, listener, daemon.Mux(reg, health), log) })
		g.Go(func() error { return manager.Run(ctx, health) })
		g.Go(func() error { return daemon.Reloads(ctx, log, reg, manager, r.Reload) })
		g.Go(func() error { return r.Run(ctx) })
		return g.Wait()
	}))
}

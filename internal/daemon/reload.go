package daemon

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
)

// A Part is something that a program can read again while it runs, a file say. It
// reads and checks, changes nothing, and returns what puts it in force; or an error
// that names file and line.
type Part func() (apply func(context.Context), err error)

// Outcomes of a reload.
const (
	reloadApplied = "applied"
	reloadRefused = "refused"
)

// Reloads reads the parts again at each SIGHUP until ctx ends. Where one is wrong that
// is logged, and all that was in force stays so; the service manager is told of each.
func Reloads(ctx context.Context, log *slog.Logger, reg *prometheus.Registry, m *Manager, parts ...Part) error {
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	total := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_reloads_total", Help: "Files read again on SIGHUP, by outcome: refused, nothing was changed."}, []string{"outcome"})
	for _, outcome := range []string{reloadApplied, reloadRefused} {
		total.WithLabelValues(outcome) // from 0 on, so that the first is a rise
	}
	if reg != nil {
		reg.MustRegister(total)
		defer reg.Unregister(total)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-hangup:
		}
		m.Reloading()
		if err := reload(ctx, parts); err != nil {
			total.WithLabelValues(reloadRefused).Inc()
			log.Error("reload refused: what was in force stays so", "error", err)
		} else {
			total.WithLabelValues(reloadApplied).Inc()
			log.Info("reloaded")
		}
		m.Reloaded()
	}
}

// reload puts all parts in force, or none.
func reload(ctx context.Context, parts []Part) error {
	var all []func(context.Context)
	for _, read := range parts {
		apply, err := read()
		if err != nil {
			return err
		}
		all = append(all, apply)
	}
	for _, apply := range all {
		apply(ctx)
	}
	return nil
}

package aggregator

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ErrCheck is returned by Check when something fatal was found.
var ErrCheck = errors.New("something was found that keeps the aggregator from working")

// Check prints what would be used, and what is missing. nats is nil where the server is
// in the same process; where says what listens where.
func Check(w io.Writer, opt Options, rules rule.File, nats *bus.Flags, where string) error {
	fmt.Fprintf(w, "%d rules, at most %d alerts at a time, %d addresses for each way to count, %s\n", len(rules.Rules), rules.MaxFiring, opt.MaxKeys, where)
	if opt.History != "" {
		fmt.Fprintf(w, "history in %s, %s and %d bytes at most\n", opt.History, opt.HistoryAge, opt.HistoryBytes)
	}
	var found []daemon.Finding
	if opt.Rules == "" {
		found = append(found, daemon.Note("--rules FILE; docs/howto/rules.md has some to begin with.", "There are no rules: only the built-in alarms are judged, no address ever fires one."))
	} else if _, err := newCore(rules.Rules, rules.MaxFiring, opt.MaxKeys); err != nil {
		found = append(found, daemon.Fatal("Fewer windows, or others: at most 32 lengths of them.", "The rules cannot be counted: %v.", err))
	}
	if nats != nil {
		found = append(found, nats.Check(context.Background(), needs())...)
	}
	if !daemon.Report(w, found) {
		return ErrCheck
	}
	return nil
}

// needs are what an aggregator does on the bus. Alerts are heard by whoever subscribes,
// so that these are not tried.
func needs() bus.Needs {
	n := bus.Needs{
		Role: "aggregator", Makes: true, Permits: "ctfleet auth init DIR makes a key for it, DIR/aggregator/nats.nk.",
		Publish:   []string{events.AuditSubject(events.ActorAggregator, events.VerbReload)},
		Subscribe: []string{events.SubjectHealth + ".*"},
	}
	for _, kind := range []string{events.QueryTop, events.QueryFirewalls, events.QueryAlerts, events.QueryAddress} {
		n.Subscribe = append(n.Subscribe, events.QuerySubject(kind))
	}
	for _, s := range bus.StreamConfigs(bus.DefaultLimits) {
		if s.Name != bus.BucketStream(bus.BucketApprovals) { // which is none of its business
			n.Streams = append(n.Streams, s.Name)
		}
	}
	return n
}

package aggregator

import (
	"time"

	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Metrics of the built-in alarms, beside table_percent. Rises are over the last
// minute.
const (
	metricDrop         = "drop"
	metricEarlyDrop    = "early_drop"
	metricInsertFailed = "insert_failed"
	metricLost         = "lost"
	metricSilent       = "silent_seconds"
	metricRivals       = "producers"
	metricCircuit      = "circuit" // of the responders, not of a firewall
)

// alarms are always judged, by the same engine as the rules.
var alarms = []rule.Rule{
	alarm("table-75", rule.TablePercent, 75, rule.Info),
	alarm("table-90", rule.TablePercent, 90, rule.Warning),
	alarm("table-95", rule.TablePercent, 95, rule.Critical),
	alarm("kernel-drop", metricDrop, 1, rule.Critical),
	alarm("kernel-early-drop", metricEarlyDrop, 1, rule.Warning),
	alarm("kernel-insert-failed", metricInsertFailed, 1, rule.Warning),
	alarm("events-lost", metricLost, 1, rule.Warning),
	alarm("firewall-silent", metricSilent, silentAfter.Seconds(), rule.Critical),
	alarm("two-producers", metricRivals, 2, rule.Critical),
	alarm("circuit-open", metricCircuit, 1, rule.Critical),
}

func alarm(name, metric string, threshold float64, severity string) rule.Rule {
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Severity, r.Scope = name, rule.Table, metric, threshold, severity, rule.Firewall
	if metric != rule.TablePercent {
		r.Recover, r.ClearRatio = 5*time.Second, 1
	}
	return r
}

// judgeFleet judges, once a second, what concerns a whole firewall.
func (a *Aggregator) judgeFleet(now time.Time) {
	for name, f := range a.fleet {
		dismissed := a.said.dismissed(f, now)
		if dismissed || f.gone(now) {
			a.forget(name)
			if dismissed {
				a.purge(name)
			}
			continue
		}
		acc, _ := a.counter.Account(name)
		rise := f.rises.take(counters{
			drop: f.health.Kernel.Drop, earlyDrop: f.health.Kernel.EarlyDrop, insertFailed: f.health.Kernel.InsertFailed,
			lost: f.health.Stream.Lost() + acc.Missing,
		})
		f.values = map[string]float64{rule.TablePercent: f.health.Table.Percent, metricRivals: 1}
		for metric, n := range map[string]uint64{metricDrop: rise.drop, metricEarlyDrop: rise.earlyDrop, metricInsertFailed: rise.insertFailed, metricLost: rise.lost} {
			// Who has not watched for a minute yet does not know that nothing rose in it: an
			// alarm that somebody else raised, or we before we were started again, goes on.
			if n > 0 || f.rises.full() {
				f.values[metric] = float64(n)
			}
		}
		if !f.health.Stopping {
			f.values[metricSilent] = now.Sub(f.seen).Seconds()
		}
		if acc.Rivals {
			f.values[metricRivals] = 2
		}
		f.rates(&acc, now)
		subject := rule.Subject{Realm: f.health.Realm, Firewall: name}
		for i := range a.engine.Rules() {
			r := &a.engine.Rules()[i]
			if v, ok := f.values[r.Metric]; ok && r.Track == rule.Table && v >= r.Count {
				a.publish(a.engine.Observe(i, subject, v, a.counter.Now()))
			}
		}
	}
}

// judgeCircuit raises the alarm while the circuit is open.
func (a *Aggregator) judgeCircuit() {
	if !a.circuit.Open {
		return
	}
	for i := range a.engine.Rules() {
		if a.engine.Rules()[i].Metric == metricCircuit {
			a.publish(a.engine.Observe(i, rule.Subject{Realm: events.RealmDefault}, 1, a.counter.Now()))
		}
	}
}

// fleetValue is the value of a table rule for the engine's ticks.
func (a *Aggregator) fleetValue(r *rule.Rule, s rule.Subject) (float64, bool) {
	if r.Metric == metricCircuit {
		if a.circuit.Open {
			return 1, true
		}
		return 0, true
	}
	f := a.fleet[s.Firewall]
	if f == nil {
		return 0, false
	}
	// What a silent firewall last said is no news.
	if r.Metric != metricSilent && f.state(time.Now()) != events.StateFresh {
		return 0, false
	}
	v, ok := f.values[r.Metric]
	return v, ok
}

// forget drops a firewall that has been away for long, or was dismissed, with what it
// contributed; its alerts resolve.
func (a *Aggregator) forget(name string) {
	a.log.Info("forgetting a firewall that is away", "firewall", name)
	delete(a.fleet, name)
	a.counter.Forget(name)
	a.publish(a.engine.Forget(func(s rule.Subject) bool { return s.Firewall == name }, a.counter.Now()))
}

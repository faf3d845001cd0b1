package aggregator

import (
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// waitingAlerts is how many alerts may wait for the bus.
const waitingAlerts = 4096

// publish makes alerts of transitions and hands them to the outbox.
func (a *Aggregator) publish(transitions []rule.Transition) {
	for i := range transitions {
		a.send(a.alert(&transitions[i]), transitions[i].Before/1e6)
	}
}

// send hands an alert to the outbox. before is when it was last reported as far as we
// know, in ms; 0 for a new one.
func (a *Aggregator) send(al *events.Alert, before int64) {
	a.log.Info(al.State, "alert", al.Text, "id", al.ID)
	a.fired.WithLabelValues(al.State, al.Severity).Inc()
	id := fmt.Sprintf("%s:%s:%d", al.ID, al.State, al.Updated)
	subject := alertSubject(al)
	// Aggregators that count the same stream come to the same alerts, a moment apart: the
	// stream keeps the first (docs/adr/0012).
	about := events.SubjectAlerts + ".*." + events.SubjectAlert(subject)
	if err := a.outbox.PutUnless(subject, id, about, al, func(last bus.Msg) bool { return a.superfluous(al, before, last) }); err != nil {
		// The bus is away and thousands of alerts wait. What stays over its
		// threshold is reported again.
		a.dropAlert(subject, err)
		return
	}
	if al.State == events.Resolved {
		a.isOver(al.ID)
	}
}

func (a *Aggregator) dropAlert(subject string, err error) {
	if events.SubjectTail(subject, events.SubjectAlerts) == nil {
		a.log.Error("cannot record what was done", "subject", subject, "error", err)
		return
	}
	a.dropped.Inc()
	a.throttle.Warn(a.log, "an alert cannot be published", "subject", subject, "error", err)
}

// alert describes a transition with what is known at this moment.
func (a *Aggregator) alert(t *rule.Transition) *events.Alert {
	al, s := a.describe(t), t.Subject
	al.Muted = a.mutedUntil(al.Scope, time.Now()) != 0
	al.Stale = len(a.stale(s.Realm, s.Firewall, time.Now())) > 0
	if s.Key.IsValid() {
		_, al.Allowlisted = a.allow.Heard(s.Realm).Covers(s.Key)
	}
	return al
}

// keyText writes an address, a prefix, or "table".
func keyText(p netip.Prefix) string {
	switch {
	case !p.IsValid():
		return events.KeyTable
	case p.IsSingleIP():
		return p.Addr().String()
	}
	return p.String()
}

// text says cause, value, threshold and window in one line.
func text(a *events.Alert) string {
	number := func(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }
	within := ""
	if a.Seconds > 0 {
		within = fmt.Sprintf(" within %d s", a.Seconds)
	}
	s := ""
	switch a.Metric {
	case events.MetricNew:
		s = fmt.Sprintf("%s opened %s flows%s", a.Key, number(a.Value), within)
		if a.Track == rule.ByDst {
			s = fmt.Sprintf("%s flows were opened to %s%s", number(a.Value), a.Key, within)
		}
	case events.MetricActive:
		s = fmt.Sprintf("%s holds %s flows", a.Key, number(a.Value))
	case events.MetricUnreplied:
		s = fmt.Sprintf("%s flows of %s ended unanswered%s", number(a.Value), a.Key, within)
	case rule.TablePercent:
		s = fmt.Sprintf("the table is %.1f%% full", a.Value)
	case metricSilent:
		s = fmt.Sprintf("silent for %.0f s", a.Value)
	case metricLost:
		s = fmt.Sprintf("%s events were lost within %d s", number(a.Value), riseSeconds)
	case metricCircuit:
		return circuitText(a)
	case metricRivals:
		s = "two producers use this name"
	case metricDrop, metricEarlyDrop, metricInsertFailed:
		s = fmt.Sprintf("the kernel's %s rose by %s within %d s", a.Metric, number(a.Value), riseSeconds)
	default:
		s = fmt.Sprintf("%s is %s", a.Metric, number(a.Value))
	}
	where := "on " + a.Scope
	if a.Scope == events.ScopeFleet {
		where = "in the fleet"
	}
	s = fmt.Sprintf("%s: %s %s, threshold %s", a.Rule, s, where, number(a.Count))
	if a.State == events.Firing && a.Value < a.Count {
		s += fmt.Sprintf(" (easing, its peak was %s)", number(a.Peak))
	}
	if len(a.Firewalls) > 1 {
		s += fmt.Sprintf(", through %d firewalls", len(a.Firewalls))
	}
	if a.Lossy {
		s += ", events were lost: it may be more"
	}
	return s
}

// circuitText is all there is to say about the circuit: it has neither a place nor
// a threshold. Why it is open is in the audit.
func circuitText(a *events.Alert) string {
	if a.State == events.Resolved {
		return a.Rule + ": the circuit is closed, policies act as their modes say"
	}
	return a.Rule + ": the circuit is open, policies only observe until ctfleet guard close"
}

// alertSubject is where an alert is published.
func alertSubject(a *events.Alert) string {
	key := a.Key
	if p, err := events.ParsePrefix(a.Key); err == nil {
		key = events.SubjectKey(p)
	}
	return events.AlertSubject(a.State, a.Rule, a.Scope, key)
}

// adopted is an alert as the engine takes it over.
func adopted(al *events.Alert) rule.Adopted {
	s := rule.Subject{Realm: al.Realm}
	if al.Scope != events.RealmScope(al.Realm) {
		s.Firewall = al.Scope
	}
	if p, err := events.ParsePrefix(al.Key); err == nil {
		s.Key = p
	}
	return rule.Adopted{ID: al.ID, Rule: al.Rule, Subject: s, Value: al.Value, Peak: al.Peak, Started: al.Started * 1e6, Updated: al.Updated * 1e6}
}

// adopt takes over the alerts that were firing when this aggregator, or the one
// before it, stopped, or that another one has fired: they are neither fired again nor
// forgotten.
func (a *Aggregator) adopt(ctx context.Context) error {
	st, err := a.conn.State(ctx, bus.StreamAlerts)
	if err != nil {
		return err
	}
	a.alertsFrom = bus.FollowFrom{After: st.LastSeq, Time: st.LastTime, All: st.LastSeq == 0}
	last, err := a.conn.LastAlerts(ctx)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range last {
		var al events.Alert
		if err := events.Unmarshal(m.Data, &al); err != nil {
			a.refuse("alert", m.Subject, err)
			continue
		}
		if al.State != events.Firing {
			continue
		}
		if err := a.engine.Adopt(adopted(&al)); err != nil {
			// Its rule is gone: nobody else would resolve it.
			a.log.Info("resolving an alert without a rule", "alert", al.ID, "reason", err)
			before := al.Updated
			al.State, al.Text = events.Resolved, al.Rule+": the rule is no more"
			al.Updated = max(al.Updated+1, time.Now().UnixMilli())
			a.send(&al, before)
		}
	}
	return nil
}

package responder

import (
	"context"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// rememberAlerts is how long it is remembered that an alert was decided upon, after
// its last update.
const rememberAlerts = time.Hour

// alert decides about one firing alert, records the decisions and begins to carry
// them out. An error means: try again.
func (r *Responder) alert(ctx, sending context.Context, m bus.Msg) error {
	var a events.Alert
	err := events.Unmarshal(m.Data, &a)
	if err == nil {
		err = matches(m.Subject, &a)
	}
	if err != nil {
		r.refuse("alert", m.Subject, err)
		return nil // it will not get better
	}
	if !r.engine.Load().Concerns(a.Rule) {
		return nil // nobody asked about it
	}
	r.awaitFleet(ctx, &a)
	r.awaitAllowlist(ctx)
	r.refreshClock(ctx)
	r.changing.RLock()
	defer r.changing.RUnlock()
	engine := r.engine.Load()
	ds := r.propose(&a, m.Time)
	if len(ds) > 0 && ds[0].UntilPercent > 0 {
		r.sending.Go(func() { r.relieve(sending, engine, &a, ds) })
		return nil
	}
	if err := r.settle(ctx, ds); err != nil {
		r.throttle.Warn(r.log, "cannot keep the ledger, nothing is done until it is", "alert", a.ID, "error", err)
		return err
	}
	for i := range ds {
		if err := r.begin(ctx, sending, &a, &ds[i]); err != nil {
			return err
		}
	}
	return nil
}

// propose asks the policy about an alert that the server stamped with the given
// time.
func (r *Responder) propose(a *events.Alert, stamp time.Time) []policy.Decision {
	allow, err := r.allow.List(a.Realm)
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.engine.Load().Propose(a, r.clock.Age(stamp, time.Now()), policy.Known{Fleet: r.known(), Allow: allow, AllowError: err})
}

// begin records a settled decision and begins to carry it out. An error means:
// nothing was done, try again.
func (r *Responder) begin(ctx, sending context.Context, a *events.Alert, d *policy.Decision) error {
	rec, commands, err := r.note(ctx, a, d)
	if err != nil {
		r.throttle.Warn(r.log, "cannot record a decision, nothing is done until it is", "alert", a.ID, "error", err)
		return err
	}
	switch d.Outcome {
	case events.OutcomeCommanded:
		// A firewall that does not answer must not hold up the next alert.
		r.sending.Go(func() { r.carryOut(sending, rec, commands) })
	case events.OutcomeProposed:
		return r.ask(ctx, rec, a.Text)
	}
	return nil
}

// note records a settled decision, unless it is the same "no" to an update of the
// same alert, and returns what it commands: first the record, then the deed.
func (r *Responder) note(ctx context.Context, a *events.Alert, d *policy.Decision) (*events.Decision, []*events.Command, error) {
	rec := describe(a, d)
	if d.Outcome == events.OutcomeDeclined && r.decided(rec) {
		return rec, nil, nil
	}
	commands := r.commands(rec)
	if err := r.record(ctx, rec); err != nil {
		return rec, nil, err
	}
	r.remember(rec)
	return rec, commands, nil
}

// decided reports whether something was decided already about the address of a
// record because of the same alert, and remembers for longer that it was.
func (r *Responder) decided(rec *events.Decision) bool {
	r.mu.Lock()
	_, before := r.handled[rec.Alert+" "+rec.Address]
	r.mu.Unlock()
	if before {
		r.remember(rec)
	}
	return before
}

func (r *Responder) remember(rec *events.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	maps.DeleteFunc(r.handled, func(_ string, until time.Time) bool { return now.After(until) })
	r.handled[rec.Alert+" "+rec.Address] = now.Add(rememberAlerts)
}

// matches refuses an alert whose subject says something else than its body:
// permissions are granted by subject. Its scope must be its realm's, or one
// firewall, which is then the only one it may name.
func matches(subject string, a *events.Alert) error {
	key := a.Key
	if p, err := events.ParsePrefix(a.Key); err == nil {
		key = events.SubjectKey(p)
	}
	if want := events.AlertSubject(a.State, a.Rule, a.Scope, key); want != subject {
		return fmt.Errorf("its body belongs on %s", want)
	}
	if a.Scope == events.RealmScope(a.Realm) {
		return nil
	}
	if err := events.CheckFirewall(a.Scope); err != nil {
		return fmt.Errorf("its scope %s is not that of its realm %s", a.Scope, a.Realm)
	}
	for name := range a.Firewalls {
		if name != a.Scope {
			return fmt.Errorf("its scope is %s, but it names %s", a.Scope, name)
		}
	}
	return nil
}

// describe makes the record of a decision.
func describe(a *events.Alert, d *policy.Decision) *events.Decision {
	rec := &events.Decision{
		Alert: a.ID, Updated: a.Updated, Rule: a.Rule, Scope: a.Scope, Realm: a.Realm, Key: a.Key,
		Mode: d.Mode, Action: d.Action, Outcome: d.Outcome, Reason: d.Reason, Firewalls: d.Firewalls, Time: time.Now().UnixMilli(),
		Simulated: d.Outcome == events.OutcomeSimulated,
		By:        d.By, Unanswered: d.Unanswered, BlockS: int64(d.BlockFor / time.Second),
	}
	if d.Address.IsValid() {
		rec.Address = events.FormatPrefix(d.Address)
	}
	if d.Towards.IsValid() {
		rec.Towards = events.FormatPrefix(d.Towards)
	}
	rec.ID = policy.CommandID(a.ID, a.Updated, rec.Address, "", d.Action)
	rec.Reason = without(d.Reason, d.Away)
	if rec.Outcome == events.OutcomeCommanded {
		nameCommands(rec)
	}
	return rec
}

// nameCommands gives the command to each firewall of a record its id. A firing alert
// is acted upon again after its cool-down: Updated keeps the second command from being
// refused as a repetition, and is the same for two responders.
func nameCommands(rec *events.Decision) {
	rec.Commands = nil
	for _, name := range rec.Firewalls {
		rec.Commands = append(rec.Commands, policy.CommandID(rec.Alert, rec.Updated, rec.Address, name, rec.Action))
	}
}

// without adds to the reason of a decision which firewalls it leaves out.
func without(reason string, away []string) string {
	if len(away) > 0 {
		reason = fmt.Sprintf("%s (cannot be reached: %s)", reason, strings.Join(away, ", "))
	}
	return short(reason)
}

// decisionSubject is where all responders record what they decide.
var decisionSubject = events.AuditSubject(events.ActorResponder, events.VerbDecision)

// record keeps a decision. Recorded twice, by whomever, it is kept once.
func (r *Responder) record(ctx context.Context, d *events.Decision) error {
	id := fmt.Sprintf("decision:%s:%s", d.ID, d.Outcome)
	again, err := r.conn.PublishOnce(ctx, decisionSubject, id, d)
	if err == nil && again {
		err = r.confirm(ctx, d)
	}
	if err != nil {
		return err
	}
	r.decisions.WithLabelValues(d.Outcome).Inc()
	r.log.Info("decision", "alert", d.Alert, "rule", d.Rule, "address", d.Address, "mode", d.Mode, "outcome", d.Outcome, "firewalls", d.Firewalls, "reason", d.Reason)
	return nil
}

// confirm makes sure of a record that the stream says it has had. Ids are known to
// whoever reads alerts, and the stream's dedupe does not ask on which subject: any
// other message with this id would have kept the record out.
func (r *Responder) confirm(ctx context.Context, d *events.Decision) error {
	found := false
	since := r.now().Add(-5 * time.Minute) // longer than the stream remembers ids
	err := r.conn.Read(ctx, bus.StreamAudit, bus.FollowFrom{Time: since, Filter: decisionSubject}, func(m bus.Msg) {
		var had events.Decision
		found = found || events.Unmarshal(m.Data, &had) == nil && had.ID == d.ID && had.Outcome == d.Outcome
	})
	if err != nil || found {
		return err
	}
	return r.conn.PublishMessage(ctx, decisionSubject, "", d)
}

// maxReason keeps a record's text within what messages may hold.
const maxReason = 900

func short(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason], "") + "…"
}

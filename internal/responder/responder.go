package responder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Options are what an operator sets; the flags of cmd/responder.
type Options struct {
	Policy string `type:"existingfile" placeholder:"FILE" help:"What to do about which rule's alerts. Without it the responder only observes."`
}

// Load returns the policy file, or one that only observes.
func (o *Options) Load() (policy.File, error) {
	f := policy.Default()
	if o.Policy == "" {
		return f, nil
	}
	return f, config.ReadFile(o.Policy, &f)
}

// Dependencies are what a responder is given by whoever runs it.
type Dependencies struct {
	Bus      bus.Config // Role, Name and Patient are filled in
	Log      *slog.Logger
	Registry *prometheus.Registry // may be nil
}

// durable is the name that all responders share: each alert goes to one.
const durable = "responder"

const (
	// freshFor is how long a health message says enough about a firewall to
	// command it.
	freshFor = 5 * time.Second
	// fleetWait is how long a responder that has just started waits to hear of
	// the firewalls that an alert names: they report every second, and an alert
	// is not to be declined because it came first.
	fleetWait = 2500 * time.Millisecond
	// commandLife is how long a command may be carried out.
	commandLife = 10 * time.Second
)

// Responder acts on alerts.
type Responder struct {
	file   policy.File
	engine *policy.Engine
	conn   *bus.Conn
	log    *slog.Logger

	mu        sync.Mutex
	fleet     map[string]sighting
	listening time.Time // since when firewalls are heard

	handled   map[string]time.Time // alerts decided upon, until when they are remembered
	decisions *prometheus.CounterVec
	refused   *prometheus.CounterVec
	reg       *prometheus.Registry
}

// sighting is the last health of a firewall and when it came.
type sighting struct {
	health events.Health
	at     time.Time
}

// New returns a responder for a validated policy.
func New(file policy.File, deps Dependencies) (*Responder, error) {
	if err := file.Validate(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	r := &Responder{
		file: file, engine: policy.New(file), log: deps.Log, reg: deps.Registry,
		fleet: map[string]sighting{}, handled: map[string]time.Time{},
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_decisions_total", Help: "Decisions about alerts by outcome."}, []string{"outcome"}),
		refused:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_responder_refused_messages_total", Help: "Messages from the bus that could not be read."}, []string{"kind"}),
	}
	cfg := deps.Bus
	cfg.Role, cfg.Patient, cfg.Log = "responder", true, deps.Log
	if cfg.Name == "" {
		cfg.Name, _ = os.Hostname() // an empty name is fine
	}
	var err error
	if r.conn, err = bus.Connect(cfg); err != nil {
		return nil, err
	}
	if r.reg != nil {
		r.reg.MustRegister(r.decisions, r.refused)
	}
	return r, nil
}

// Ready returns nil when alerts can reach this responder.
func (r *Responder) Ready() error { return r.conn.Connected() }

// Run acts until ctx ends.
func (r *Responder) Run(ctx context.Context) error {
	defer r.conn.Close()
	r.log.Info("waiting for alerts", "mode", r.file.Mode, "policies", len(r.file.Policies))
	stop, err := r.conn.Subscribe(events.SubjectHealth+".*", r.sight)
	if err != nil {
		return err
	}
	defer stop()
	if r.conn.WaitConnected(ctx) != nil {
		return nil
	}
	r.listening = time.Now()
	return r.conn.Work(ctx, bus.StreamAlerts, durable, events.SubjectAlerts+"."+events.Firing+".>", r.alert)
}

func (r *Responder) sight(subject string, data []byte) {
	var h events.Health
	name, err := events.SubjectFirewall(subject, events.SubjectHealth)
	if err == nil {
		err = events.Unmarshal(data, &h)
	}
	if err == nil && h.Firewall != name {
		err = fmt.Errorf("it says it is from %s", h.Firewall)
	}
	if err != nil {
		r.refuse("health", subject, err)
		return
	}
	r.mu.Lock()
	r.fleet[name] = sighting{h, time.Now()}
	r.mu.Unlock()
}

func (r *Responder) refuse(kind, subject string, err error) {
	r.refused.WithLabelValues(kind).Inc()
	r.log.Warn("refused a message", "subject", subject, "error", err)
}

// known lists the firewalls heard of, for the policy.
func (r *Responder) known() []policy.Firewall {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []policy.Firewall
	for name, s := range r.fleet {
		out = append(out, policy.Firewall{Name: name, Realm: s.health.Realm, Fresh: time.Since(s.at) < freshFor && !s.health.Stopping})
	}
	return out
}

// rememberAlerts is how long an alert's id is remembered after its last update.
const rememberAlerts = time.Hour

// alert decides about one firing alert and carries the decision out. An error
// means: try again.
func (r *Responder) alert(ctx context.Context, m bus.Msg) error {
	var a events.Alert
	err := events.Unmarshal(m.Data, &a)
	if err == nil {
		err = matches(m.Subject, &a)
	}
	if err != nil {
		r.refuse("alert", m.Subject, err)
		return nil // it will not get better
	}
	r.awaitFleet(ctx, &a)
	now := time.Now()
	for id, until := range r.handled {
		if now.After(until) {
			delete(r.handled, id)
		}
	}
	d, ok := r.engine.Decide(&a, now.Sub(m.Time), now, r.known())
	_, before := r.handled[a.ID]
	if !ok || before && d.Outcome == events.OutcomeDeclined {
		return nil // nobody asked about it, or the same "no" to an update of the same alert
	}
	r.handled[a.ID] = now.Add(rememberAlerts)
	return r.carryOut(ctx, &a, d)
}

// awaitFleet waits, for a moment after the start, until the firewalls of an
// alert have been heard.
func (r *Responder) awaitFleet(ctx context.Context, a *events.Alert) {
	for time.Since(r.listening) < fleetWait && ctx.Err() == nil {
		r.mu.Lock()
		heard := 0
		for name := range a.Firewalls {
			if _, ok := r.fleet[name]; ok {
				heard++
			}
		}
		r.mu.Unlock()
		if heard == len(a.Firewalls) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// matches refuses an alert whose subject says something else than its body:
// permissions are granted by subject.
func matches(subject string, a *events.Alert) error {
	key := a.Key
	if p, err := events.ParsePrefix(a.Key); err == nil {
		key = events.SubjectKey(p)
	}
	if want := events.AlertSubject(a.State, a.Rule, a.Scope, key); want != subject {
		return fmt.Errorf("its body belongs on %s", want)
	}
	return nil
}

func (r *Responder) carryOut(ctx context.Context, a *events.Alert, d policy.Decision) error {
	rec := &events.Decision{
		ID: policy.CommandID(a.ID, "", d.Action), Alert: a.ID, Rule: a.Rule, Scope: a.Scope, Realm: a.Realm, Key: a.Key,
		Mode: d.Mode, Action: d.Action, Outcome: d.Outcome, Reason: d.Reason, Firewalls: d.Firewalls, Time: time.Now().UnixMilli(),
		Simulated: d.Outcome == events.OutcomeSimulated,
	}
	if len(d.Away) > 0 {
		rec.Reason += fmt.Sprintf(" (cannot be reached: %s)", strings.Join(d.Away, ", "))
	}
	var commands []*events.Command
	if d.Outcome == events.OutcomeCommanded {
		commands = r.commands(a, d)
		for _, c := range commands {
			rec.Commands = append(rec.Commands, c.ID)
		}
	}
	// First the record, then the deed.
	if err := r.record(ctx, rec); err != nil {
		return err
	}
	r.log.Info("decision", "alert", a.ID, "rule", a.Rule, "key", a.Key, "mode", d.Mode, "outcome", d.Outcome, "firewalls", d.Firewalls, "reason", d.Reason)
	var wg sync.WaitGroup
	failures := make([]error, len(commands))
	for i, c := range commands {
		wg.Go(func() { failures[i] = r.send(ctx, c) })
	}
	wg.Wait()
	if err := errors.Join(failures...); err != nil {
		rec.Outcome, rec.Reason = events.OutcomeFailed, strings.ReplaceAll(err.Error(), "\n", "; ")
		return r.record(ctx, rec)
	}
	return nil
}

// commands makes one command per firewall, to be carried out by its present
// producer within commandLife by its own clock.
func (r *Responder) commands(a *events.Alert, d policy.Decision) []*events.Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*events.Command
	for _, name := range d.Firewalls {
		s := r.fleet[name]
		out = append(out, &events.Command{
			// A firing alert is acted upon again after its cool-down: Updated
			// keeps the second command from being refused as a repetition, and
			// is the same for two responders.
			ID:   policy.CommandID(fmt.Sprintf("%s@%d", a.ID, a.Updated), name, d.Action),
			Verb: events.VerbFlush, Firewall: name, Boot: s.health.Boot,
			Expires: s.health.Sent + int64(time.Since(s.at)+commandLife),
			Actor:   events.ActorResponder, Reason: d.Reason, Alert: a.ID, Rule: a.Rule,
			Addresses: []string{a.Key}, By: d.By,
		})
	}
	slices.SortFunc(out, func(a, b *events.Command) int { return strings.Compare(a.Firewall, b.Firewall) })
	return out
}

// send commands one firewall. A refusal is an answer: the receipt says why.
func (r *Responder) send(ctx context.Context, c *events.Command) error {
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	var receipt events.Receipt
	if err := r.conn.Request(ctx, events.CommandSubject(c.Firewall, c.Verb), c, &receipt); err != nil {
		return fmt.Errorf("%s: %w", c.Firewall, err)
	}
	r.log.Info("receipt", "firewall", receipt.Firewall, "addresses", receipt.Addresses, "matched", receipt.Matched, "deleted", receipt.Deleted,
		"refused", receipt.Refused, "error", receipt.Error, "ms", receipt.DurationMS)
	return nil
}

func (r *Responder) record(ctx context.Context, rec *events.Decision) error {
	r.decisions.WithLabelValues(rec.Outcome).Inc()
	id := fmt.Sprintf("decision:%s:%s:%d", rec.ID, rec.Outcome, rec.Time)
	return r.conn.PublishMessage(ctx, events.AuditSubject(events.ActorResponder, events.VerbDecision), id, rec)
}

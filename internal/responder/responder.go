package responder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Options are what an operator sets; the flags of cmd/responder.
type Options struct {
	Policy  string `type:"existingfile" placeholder:"FILE" help:"What to do about which rule's alerts. Without it the responder only observes."`
	SignKey string `type:"path" placeholder:"FILE" help:"Seed of the nkey that commands are signed with. Firewalls refuse unsigned ones, unless they run with --trust none."`
}

// Signer reads the key of --sign-key; nil where there is none.
func (o *Options) Signer() (*seal.Signer, error) {
	if o.SignKey == "" {
		return nil, nil
	}
	s, err := seal.ReadSigner(o.SignKey)
	if err != nil {
		return nil, fmt.Errorf("--sign-key: %w", err)
	}
	return s, nil
}

// Load returns the policy file, or one that only observes.
func (o *Options) Load() (policy.File, error) {
	f := policy.Default()
	if o.Policy == "" {
		return f, nil
	}
	err := config.ReadFile(o.Policy, &f)
	return f, err
}

// Dependencies are what a responder is given by whoever runs it.
type Dependencies struct {
	Bus      bus.Config   // Role, Name and Patient are filled in
	Signer   *seal.Signer // of commands; nil: they are not signed
	Trust    *seal.Trust  // whose allowlist entries and approvals are believed
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
	// drainTime is how long commands under way may take when we are to stop.
	drainTime = 2 * time.Second
	// maxSending bounds the commands under way.
	maxSending = 256
)

// Responder acts on alerts.
type Responder struct {
	file   policy.File
	conn   *bus.Conn
	signer *seal.Signer
	trust  *seal.Trust
	allow  *allowlist.Live
	mirror *bus.Mirror // of the bucket behind allow
	log    *slog.Logger

	mu     sync.Mutex
	engine *policy.Engine
	fleet  map[string]sighting
	own    map[string]time.Time // ids of our records, until when they are remembered

	// Of the goroutine that handles alerts.
	clock     bus.Clock
	listening time.Time            // since when firewalls are heard
	handled   map[string]time.Time // alerts decided upon, until when they are remembered

	enlisted atomic.Bool // alerts wait for us from now on

	sending sync.WaitGroup
	slots   chan struct{} // one per command under way

	decisions *prometheus.CounterVec
	refused   *prometheus.CounterVec
	reg       *prometheus.Registry
	throttle  daemon.Throttle
}

// New returns a responder for a validated policy.
func New(file policy.File, deps Dependencies) (*Responder, error) {
	if err := file.Validate(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	r := &Responder{
		file: file, engine: policy.New(file), signer: deps.Signer, trust: deps.Trust, log: deps.Log, reg: deps.Registry,
		fleet: map[string]sighting{}, own: map[string]time.Time{}, handled: map[string]time.Time{}, slots: make(chan struct{}, maxSending),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_decisions_total", Help: "Decisions about alerts by outcome."}, []string{"outcome"}),
		refused:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_responder_refused_messages_total", Help: "Messages from the bus that could not be read."}, []string{"kind"}),
	}
	if r.trust == nil {
		r.trust, _ = seal.OpenTrust("") // nobody; reads nothing
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
	r.allow = allowlist.NewLive(r.trust)
	r.mirror = r.conn.NewMirror(bus.BucketAllowlist, bus.Reflection{Begin: r.allow.Begin, Put: r.allowEntry, Done: r.allow.Done})
	if r.reg != nil {
		r.reg.MustRegister(r.decisions, r.refused)
	}
	return r, nil
}

// Ready returns nil when alerts can reach this responder.
func (r *Responder) Ready() error {
	if err := r.conn.Connected(); err != nil {
		return err
	}
	if !r.enlisted.Load() {
		return errors.New("not enlisted for alerts yet")
	}
	return nil
}

// Run acts until ctx ends.
func (r *Responder) Run(ctx context.Context) (err error) {
	defer r.conn.Close()
	stopHealth, err := r.conn.Subscribe(events.SubjectHealth+".*", r.sight)
	if err != nil {
		return err
	}
	defer stopHealth()
	stopDecisions, err := r.conn.Subscribe(decisionSubject, r.learn)
	if err != nil {
		return err
	}
	defer stopDecisions()
	var mirrors errgroup.Group
	mirrorCtx, stopMirrors := context.WithCancel(ctx)
	mirrors.Go(func() error { return r.mirror.Run(mirrorCtx) })
	defer func() {
		stopMirrors()
		err = errors.Join(err, mirrors.Wait())
	}()
	if r.conn.Enlist(ctx, bus.StreamAlerts, durable, firing) != nil || r.recall(ctx) != nil {
		return nil // ctx ended
	}
	r.listening = time.Now()
	r.enlisted.Store(true)
	r.log.Info("waiting for alerts", "mode", r.file.Mode, "policies", len(r.file.Policies))
	// What is under way when we are to stop gets a little time.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	err = r.conn.Work(ctx, bus.StreamAlerts, durable, firing, func(ctx context.Context, m bus.Msg) error {
		return r.alert(ctx, sending, m)
	})
	defer time.AfterFunc(drainTime, cancel).Stop()
	r.sending.Wait()
	return err
}

// firing is what a responder reads of the alerts.
const firing = events.SubjectAlerts + "." + events.Firing + ".>"

// decisionSubject is where all responders record what they decide.
var decisionSubject = events.AuditSubject(events.ActorResponder, events.VerbDecision)

func (r *Responder) refuse(kind, subject string, err error) {
	r.refused.WithLabelValues(kind).Inc()
	r.throttle.Warn(r.log, "refused a message", "subject", subject, "error", err)
}

const (
	// rememberAlerts is how long an alert's id is remembered after its last update.
	rememberAlerts = time.Hour
	// rememberRecords is how long our own record may take to come back to us.
	rememberRecords = time.Minute
)

// alert decides about one firing alert, records the decision and begins to
// carry it out. An error means: try again.
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
	r.awaitFleet(ctx, &a)
	r.refreshClock(ctx)
	now := time.Now()
	forget(r.handled, now)
	d, ok := r.decide(&a, m.Time, now)
	if !ok {
		return nil // nobody asked about it
	}
	if _, before := r.handled[a.ID]; before && d.Outcome == events.OutcomeDeclined {
		r.handled[a.ID] = now.Add(rememberAlerts)
		return nil // the same "no" to an update of the same alert
	}
	rec, commands := r.describe(&a, d, now)
	// First the record, then the deed.
	if err := r.record(ctx, rec); err != nil {
		// Nothing was done: the next attempt begins anew.
		if d.Outcome != events.OutcomeDeclined {
			r.retract(rec)
		}
		r.throttle.Warn(r.log, "cannot record a decision, nothing is done until it is", "alert", a.ID, "error", err)
		return err
	}
	r.handled[a.ID] = now.Add(rememberAlerts)
	r.log.Info("decision", "alert", a.ID, "rule", a.Rule, "key", a.Key, "mode", d.Mode, "outcome", d.Outcome, "firewalls", d.Firewalls, "reason", d.Reason)
	if len(commands) > 0 {
		// A firewall that does not answer must not hold up the next alert.
		r.sending.Go(func() { r.carryOut(sending, rec, commands) })
	}
	return nil
}

// decide asks the policy about an alert that the server stamped with the given
// time.
func (r *Responder) decide(a *events.Alert, stamp, now time.Time) (policy.Decision, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	forget(r.own, now)
	known := policy.Known{Fleet: r.known()}
	known.Allow, known.AllowError = r.allowed(a.Realm)
	return r.engine.Decide(a, r.clock.Age(stamp, now), now, known)
}

// forget removes what need not be remembered any more.
func forget(until map[string]time.Time, now time.Time) {
	maps.DeleteFunc(until, func(_ string, t time.Time) bool { return now.After(t) })
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

// describe makes the record of a decision and the commands that it causes.
func (r *Responder) describe(a *events.Alert, d policy.Decision, now time.Time) (*events.Decision, []*events.Command) {
	rec := &events.Decision{
		ID: policy.CommandID(a.ID, "", d.Action), Alert: a.ID, Rule: a.Rule, Scope: a.Scope, Realm: a.Realm, Key: a.Key,
		Mode: d.Mode, Action: d.Action, Outcome: d.Outcome, Reason: d.Reason, Firewalls: d.Firewalls, Time: now.UnixMilli(),
		Simulated: d.Outcome == events.OutcomeSimulated,
	}
	if len(d.Away) > 0 {
		rec.Reason = short(fmt.Sprintf("%s (cannot be reached: %s)", d.Reason, strings.Join(d.Away, ", ")))
	}
	if d.Outcome != events.OutcomeCommanded {
		return rec, nil
	}
	commands := r.commands(a, d)
	for _, c := range commands {
		rec.Commands = append(rec.Commands, c.ID)
	}
	return rec, commands
}

// recordID identifies a record: recorded twice, it is kept once.
func recordID(d *events.Decision) string {
	return fmt.Sprintf("decision:%s:%s:%d", d.ID, d.Outcome, d.Time)
}

func (r *Responder) record(ctx context.Context, d *events.Decision) error {
	id := recordID(d)
	r.mu.Lock()
	r.own[id] = time.Now().Add(r.file.CoolDown + rememberRecords)
	r.mu.Unlock()
	if err := r.conn.PublishMessage(ctx, decisionSubject, id, d); err != nil {
		return err
	}
	r.decisions.WithLabelValues(d.Outcome).Inc()
	return nil
}

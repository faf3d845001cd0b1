package responder

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/notify"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Options are what an operator sets; the flags of cmd/responder.
type Options struct {
	Policy       string        `type:"existingfile" placeholder:"FILE" help:"What to do about which rule's alerts, read again on SIGHUP. Without it the responder only observes."`
	Alertmanager string        `placeholder:"URL" help:"Tell this Alertmanager of alerts that fire and resolve, such as http://127.0.0.1:9093."`
	Webhook      string        `placeholder:"URL" help:"Post alerts that fire and resolve to this URL, as JSON."`
	NotifyEvery  time.Duration `default:"1m" placeholder:"DURATION" help:"How often they are told again of what fires, with a heartbeat (${default})."`
	SignKey      string        `type:"path" placeholder:"FILE" help:"Seed of the nkey that commands are signed with. Firewalls refuse unsigned ones, unless they run with --trust none."`
}

// Validate reports the first option that is wrong.
func (o *Options) Validate() error {
	if o.NotifyEvery < time.Second {
		return fmt.Errorf("--notify-every: %s is less than 1s", o.NotifyEvery)
	}
	return notify.Check(o.Alertmanager, o.Webhook)
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

// Notify returns who is told of alerts.
func (o *Options) Notify(log *slog.Logger, reg *prometheus.Registry) (*notify.Notifier, error) {
	return notify.New(notify.Config{Alertmanager: o.Alertmanager, Webhook: o.Webhook, Every: o.NotifyEvery, Log: log, Registry: reg})
}

// Load returns the policy file, or one that only observes.
func (o *Options) Load() (policy.File, error) {
	f := policy.Default()
	if o.Policy == "" {
		return f, nil
	}
	digest, err := config.ReadFileDigest(o.Policy, &f)
	f.Digest = digest
	return f, err
}

// Dependencies are what a responder is given by whoever runs it.
type Dependencies struct {
	Bus      bus.Config                  // Role, Name and Patient are filled in
	Signer   *seal.Signer                // of commands; nil: they are not signed
	Trust    *seal.Trust                 // whose allowlist entries and approvals are believed
	Policy   func() (policy.File, error) // reads the policy again, for [Responder.Reload]; nil: it stays as it is
	Notifier *notify.Notifier            // who is told of alerts; nil: nobody
	Log      *slog.Logger
	Registry *prometheus.Registry // may be nil
}

// ServiceName is the micro service of responders. It answers nothing but who there is.
const ServiceName = "ct-responder"

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

// outcomes are those that a decision can have.
var outcomes = []string{events.OutcomeCommanded, events.OutcomeSimulated, events.OutcomeDeclined, events.OutcomeFailed, events.OutcomeProposed, events.OutcomeDenied, events.OutcomeExpired}

// Responder acts on alerts.
type Responder struct {
	conn   *bus.Conn
	signer *seal.Signer
	trust  *seal.Trust
	log    *slog.Logger
	pulse  *daemon.Pulse // of the loop that handles alerts

	// The policy in force: changed between two decisions, for each of which changing is
	// held for reading, from what is proposed to where it is begun.
	changing sync.RWMutex
	file     atomic.Pointer[policy.File]
	engine   atomic.Pointer[policy.Engine]
	reread   func() (policy.File, error)
	acts     chan *events.Act // to be recorded

	notifier  *notify.Notifier
	allow     *bus.Allowlist
	orders    *bus.Mirror // of CT_GUARD: what operators say of the circuit, and of whom nobody is told
	proposals *bus.Mirror // of CT_APPROVALS
	mutes     mutes

	mu        sync.Mutex
	fleet     map[string]sighting
	clock     bus.Clock
	handled   map[string]time.Time // what was decided upon, until when that is remembered
	relieving map[string]bool      // the firewalls whose table is being relieved
	pending   map[string]*pending  // proposals by id

	ledgerMu  sync.Mutex    // one change of the ledger at a time
	serial    uint64        // of the latest ledger that is known
	answered  chan struct{} // something was said to a proposal
	listening time.Time     // since when firewalls are heard

	enlisted atomic.Bool // alerts wait for us from now on

	sending sync.WaitGroup
	slots   chan struct{} // one per command under way

	decisions *prometheus.CounterVec
	refused   *prometheus.CounterVec
	circuit   prometheus.Gauge
	reg       *prometheus.Registry
	throttle  daemon.Throttle
}

// New returns a responder for a validated policy.
func New(file policy.File, deps Dependencies) (*Responder, error) {
	if err := file.Validate(); err != nil {
		return nil, fmt.Errorf("policy: %w", err)
	}
	r := &Responder{
		reread: deps.Policy, acts: make(chan *events.Act, maxActs), pulse: daemon.NewPulse("the loop that handles alerts", standstill), signer: deps.Signer, trust: deps.Trust, notifier: deps.Notifier, log: deps.Log, reg: deps.Registry,
		fleet: map[string]sighting{}, handled: map[string]time.Time{}, mutes: mutes{of: map[string]events.Mute{}}, relieving: map[string]bool{}, pending: map[string]*pending{},
		slots: make(chan struct{}, maxSending), answered: make(chan struct{}, 1),
		decisions: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_decisions_total", Help: "Decisions about alerts by outcome."}, []string{"outcome"}),
		refused:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "ctfleet_responder_refused_messages_total", Help: "Messages from the bus that could not be read."}, []string{"kind"}),
		circuit:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "ctfleet_circuit_open", Help: "1 while policies only observe, since a budget was spent or an operator said so."}),
	}
	r.file.Store(&file)
	r.engine.Store(policy.New(file))
	for _, outcome := range outcomes {
		r.decisions.WithLabelValues(outcome) // from 0 on: who watches for a rise does not see the first otherwise
	}
	if r.trust == nil {
		r.trust, _ = seal.OpenTrust("") // nobody; reads nothing
	}
	if r.signer != nil && !r.trust.Open() && r.trust.Len() == 0 {
		r.log.Warn("nobody is trusted: approvals and orders about the circuit are ignored, and every live allowlist entry lists its prefix whatever it says", "remedy", "--trust FILE")
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
	r.allow = r.conn.NewAllowlist(r.trust, r.refuse)
	r.orders = r.conn.NewMirror(bus.BucketGuard, bus.Reflection{Put: r.guardValue})
	r.proposals = r.conn.NewMirror(bus.BucketApprovals, bus.Reflection{Begin: r.beginApprovals, Put: r.approval})
	if r.reg != nil {
		r.reg.MustRegister(r.decisions, r.refused, r.circuit)
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

// standstill is longer than one alert ever takes: the bus may be asked several times,
// and each time be given seconds to answer.
const standstill = time.Minute

// Alive returns nil unless the loop that handles alerts stands still.
func (r *Responder) Alive() error { return r.pulse.Alive() }

// Run acts until ctx ends.
func (r *Responder) Run(ctx context.Context) error {
	defer r.conn.Close()
	stopHealth, err := r.conn.Subscribe(events.SubjectHealth+".*", r.sight)
	if err != nil {
		return err
	}
	defer stopHealth()
	stopService, err := r.conn.Serve(bus.Service{
		Name: ServiceName, Description: "ctfleet responder: alerts into guarded commands",
		Metadata: map[string]string{"version": daemon.ProgramVersion(), "host": hostName()},
	})
	if err != nil {
		return err
	}
	defer stopService()
	// What is under way when we are to stop gets a little time.
	sending, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var besides errgroup.Group
	beside, stopBesides := context.WithCancel(ctx)
	besides.Go(func() error { return r.allow.Run(beside) })
	besides.Go(func() error { return r.orders.Run(beside) })
	besides.Go(func() error { return r.recordActs(beside) })
	besides.Go(func() error { return r.proposals.Run(beside) })
	besides.Go(func() error { return r.approvals(beside, sending) })
	if r.notifier != nil && !r.notifier.Idle() {
		r.notifier.Mute(r.muted)
		besides.Go(func() error { return r.notifier.Run(beside) })
		besides.Go(func() error { return r.notify(beside) })
		besides.Go(func() error { return r.unmute(beside) })
	}
	err = r.work(ctx, sending)
	defer time.AfterFunc(drainTime, cancel).Stop()
	// Approvals first: they may begin to send.
	stopBesides()
	err = errors.Join(err, besides.Wait())
	r.sending.Wait()
	return err
}

// work handles alerts until ctx ends, together with all other responders.
func (r *Responder) work(ctx, sending context.Context) error {
	if r.conn.Enlist(ctx, bus.StreamAlerts, durable, firing) != nil || r.recall(ctx) != nil {
		return nil // ctx ended
	}
	r.listening = time.Now()
	r.enlisted.Store(true)
	file := r.file.Load()
	r.log.Info("waiting for alerts", "mode", file.Mode, "policies", len(file.Policies), "digest", file.Digest)
	r.act(ctx, &events.Act{Verb: events.VerbMode, What: fmt.Sprintf("a responder began, mode %s, policies: %d", file.Mode, len(file.Policies)), Time: time.Now().UnixMilli()})
	return r.conn.Work(ctx, bus.StreamAlerts, durable, firing, func(ctx context.Context, m bus.Msg) error {
		return r.alert(ctx, sending, m)
	}, r.pulse.Beat)
}

// firing is what a responder reads of the alerts.
const firing = events.SubjectAlerts + "." + events.Firing + ".>"

func (r *Responder) refuse(kind, subject string, err error) {
	r.refused.WithLabelValues(kind).Inc()
	r.throttle.Warn(r.log, "refused a message", "subject", subject, "error", err)
}

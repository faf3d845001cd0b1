package demo

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/responder"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Config of a demo. The listeners may have been opened in another network
// namespace than the one that the demo runs in.
type Config struct {
	HTTP, NATS net.Listener
	Recording  string        // why a recording is shown; "": the lab is, where there can be one
	Access     daemon.Access // who may read what HTTP serves
	Duration   time.Duration // 0: until ctx ends
	Screen     *Screen       // where the show is shown
	Log        *slog.Logger
}

// Result is what happened, as `ctfleet demo -o json` prints it. Times are of
// the first attack.
type Result struct {
	Recording bool             `json:"recording"`     // nothing of it happened now, nor on a firewall
	Why       string           `json:"why,omitempty"` // a recording was shown
	Firewalls int              `json:"firewalls"`
	Events    uint64           `json:"events"`
	Lost      uint64           `json:"lost"`
	Alerts    []events.Alert   `json:"alerts"`
	Receipts  []events.Receipt `json:"receipts"`
	DetectMS  float64          `json:"detect_ms"` // from the packet that crossed the threshold to the alert
	FlushMS   float64          `json:"flush_ms"`  // from the same packet to the last receipt
	Ordinary  Ordinary         `json:"ordinary"`
	// Simulated is what would have been flushed, had it been no recording.
	Simulated []events.Decision `json:"simulated,omitempty"`
	Problems  []string          `json:"problems"` // why the demo failed, when it did
}

// Ordinary is what became of the ordinary traffic.
type Ordinary struct {
	Opened uint64 `json:"opened"` // conversations
	Echoed uint64 `json:"echoed"` // messages that came back
	Broken uint64 `json:"broken"` // conversations that a flush would have broken
}

// The attack: each firewall sees half of what the fleet's threshold is.
const (
	ruleName     = "new-flows-by-source"
	threshold    = 2002
	attackPerFW  = threshold / 2
	attackRate   = 500.0 // flows/s through each firewall: fits the smallest socket buffer
	firstAttack  = 4 * time.Second
	attackEvery  = 30 * time.Second
	windowOfRule = 10 * time.Second
	// patience is how long a conversation waits for its echo: longer than a
	// busy machine may keep the whole show waiting, short enough that a
	// conversation that the flush broke shows before a show of 15 s ends.
	patience = 6 * time.Second
)

var (
	names     = []string{"fw-a", "fw-b", "fw-c"}
	attacked  = names[:2]
	attackers = netip.MustParsePrefix("198.18.66.0/24") // a new address for each attack
)

// stage is where the firewalls of the show are.
type stage interface {
	// enforces reports whether what the policy decides is carried out there.
	enforces() bool
	// watch starts a producer for each firewall, which g ends with ctx.
	watch(ctx context.Context, g *errgroup.Group, deps producer.Dependencies) error
	// ready is nil when all of them report.
	ready() error
	// play has the show begin, whose time began at begin, and returns when ctx ends.
	play(ctx context.Context, s *show, begin time.Time) error
	// judge adds to the result what only the stage knows. s is locked.
	judge(s *show)
	close()
}

// show is one running demo.
type show struct {
	cfg    Config
	stage  stage
	server *embedded.Server
	conn   *bus.Conn
	agg    *aggregator.Aggregator

	mu       sync.Mutex
	res      Result
	alerted  time.Time
	receipts map[string]time.Time // first receipt by firewall
	now      string               // what is happening
}

// Run builds the fleet, runs the show and returns what happened. Where no lab can be
// built it plays a recording, and says so. An error means that it could not be run at
// all.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	s := newShow(cfg)
	if err := s.build(ctx); err != nil {
		return nil, err
	}
	return s.run(ctx)
}

func newShow(cfg Config) *show {
	return &show{cfg: cfg, receipts: map[string]time.Time{}, res: Result{
		Firewalls: len(names), Alerts: []events.Alert{}, Receipts: []events.Receipt{}, Problems: []string{},
	}}
}

// build finds a stage.
func (s *show) build(ctx context.Context) (err error) {
	if s.cfg.Recording == "" {
		s.say("building three firewalls")
		s.stage, err = newLive(ctx)
		// What is not permitted is no failure of ours. Anything else is.
		if !errors.Is(err, fs.ErrPermission) {
			return err
		}
		s.cfg.Recording = err.Error()
	}
	s.res.Recording, s.res.Why = true, s.cfg.Recording
	s.cfg.Screen.record(s.cfg.Recording)
	s.say("playing the recording of three firewalls")
	s.stage, err = newRecorded()
	return err
}

// run is the show on its stage, which it closes.
func (s *show) run(ctx context.Context) (_ *Result, err error) {
	defer s.stage.close()
	if s.server, err = embedded.Start(embedded.Config{Listener: s.cfg.NATS, Open: true, Log: s.cfg.Log}); err != nil {
		return nil, err
	}
	defer s.server.Close()
	if s.conn, err = bus.Connect(bus.Config{Server: s.server, Role: "demo", Log: s.cfg.Log}); err != nil {
		return nil, err
	}
	defer s.conn.Close()
	limits := bus.Limits{EventsAge: 15 * time.Minute, EventsBytes: 64 << 20, Memory: true}
	if _, err := s.conn.Bootstrap(ctx, limits, false); err != nil {
		return nil, err
	}

	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	roles, err := s.startRoles(run)
	if err != nil {
		return nil, err
	}
	err = s.play(ctx)
	s.finish()
	stop()
	if roleErr := roles.Wait(); err == nil {
		err = roleErr
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	return &s.res, nil
}

// startRoles starts aggregator, responder and a producer per firewall.
func (s *show) startRoles(ctx context.Context) (*errgroup.Group, error) {
	reg := prometheus.NewRegistry()
	inside := bus.Config{Server: s.server}
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds, r.Severity = ruleName, rule.BySrc, rule.New, threshold, int(windowOfRule/time.Second), rule.Critical
	r.Recover = 5 * time.Second
	file := rule.File{Rules: []rule.Rule{r}, MaxFiring: rule.DefaultMaxFiring}
	var err error
	s.agg, err = aggregator.New(aggregator.Options{MaxKeys: 1 << 16}, file, aggregator.Dependencies{
		Bus: inside, Log: s.cfg.Log, Registry: reg,
	})
	if err != nil {
		return nil, err
	}
	p := policy.Default()
	p.CoolDown = 20 * time.Second
	if s.stage.enforces() {
		p.Mode = policy.Enforce
	}
	p.Policies = []policy.Policy{{Rule: ruleName, Action: policy.ActionFlush, Where: policy.WhereAlert, Unanswered: policy.UnansweredDelete}} // nobody answers the attacker
	everybody, err := seal.OpenTrust(seal.TrustNone)
	if err != nil {
		return nil, err
	}
	resp, err := responder.New(p, responder.Dependencies{Bus: inside, Trust: everybody, Log: s.cfg.Log, Registry: reg})
	if err != nil {
		return nil, err
	}
	g, ctx := errgroup.WithContext(ctx)
	if err := s.stage.watch(ctx, g, producer.Dependencies{Bus: inside, Log: s.cfg.Log, Registry: reg}); err != nil {
		return nil, err
	}
	g.Go(func() error {
		return api.Serve(ctx, s.cfg.HTTP, &s.cfg.Access, s.agg, reg, daemon.Health{Ready: s.agg.Ready, Alive: s.agg.Alive}, s.cfg.Log)
	})
	g.Go(func() error { return s.agg.Run(ctx) })
	g.Go(func() error { return resp.Run(ctx) })
	g.Go(func() error {
		return s.conn.Follow(ctx, bus.StreamAlerts, bus.FollowFrom{All: true}, s.takeAlert)
	})
	g.Go(func() error { return s.conn.Follow(ctx, bus.StreamAudit, bus.FollowFrom{All: true}, s.takeAudit) })
	return g, nil
}

// play runs the show until its time is over or ctx ends.
func (s *show) play(ctx context.Context) error {
	if s.cfg.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.cfg.Duration)
		defer cancel()
	}
	begin := time.Now()
	if err := s.waitReady(ctx); err != nil {
		return err
	}
	var work errgroup.Group
	work.Go(func() error { return s.stage.play(ctx, s, begin) })
	for ctx.Err() == nil {
		s.draw()
		select {
		case <-ctx.Done():
		case <-time.After(250 * time.Millisecond):
		}
	}
	return work.Wait()
}

func (s *show) waitReady(ctx context.Context) error {
	for {
		missing := errors.Join(s.agg.Ready(), s.stage.ready())
		if missing == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %s", strings.ReplaceAll(missing.Error(), "\n", "; "))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *show) takeAlert(m bus.Msg) {
	var a events.Alert
	if err := events.Unmarshal(m.Data, &a); err != nil {
		s.problem("an alert cannot be read: %v", err)
		return
	}
	s.mu.Lock()
	fired := a.State == events.Firing && !slices.ContainsFunc(s.res.Alerts, func(b events.Alert) bool { return b.ID == a.ID })
	if fired && a.Rule == ruleName && s.alerted.IsZero() {
		s.alerted = time.Now()
	}
	if !slices.ContainsFunc(s.res.Alerts, func(b events.Alert) bool { return b.ID == a.ID && b.State == a.State }) {
		s.res.Alerts = append(s.res.Alerts, a) // its beginning and its end, not what it was in between
	}
	s.mu.Unlock()
	s.event(fmt.Sprintf("%-8s %s", a.State, a.Text))
	if fired && s.stage.enforces() {
		s.say("the fleet alert fired, the responder asks for a flush")
	}
}

func (s *show) takeAudit(m bus.Msg) {
	tail := events.SubjectTail(m.Subject, events.SubjectAudit)
	if len(tail) != 2 {
		return
	}
	switch tail[1] {
	case events.VerbDecision:
		var d events.Decision
		if err := events.Unmarshal(m.Data, &d); err != nil {
			s.problem("a decision cannot be read: %v", err)
			return
		}
		what := fmt.Sprintf("%-8s %s %s", "decision", d.Action, d.Key)
		if d.Outcome == events.OutcomeDeclined {
			s.event(fmt.Sprintf("%s: declined, %s", what, d.Reason))
		} else {
			s.event(fmt.Sprintf("%s on %s: %s", what, strings.Join(d.Firewalls, " and "), d.Outcome))
		}
		if d.Outcome == events.OutcomeSimulated {
			s.mu.Lock()
			s.res.Simulated = append(s.res.Simulated, d)
			s.mu.Unlock()
			s.say("the fleet alert fired; the responder simulates, on firewalls it would ask for a flush")
		}
	case events.VerbFlush, events.VerbResidual:
		var r events.Receipt
		if err := events.Unmarshal(m.Data, &r); err != nil {
			s.problem("a receipt cannot be read: %v", err)
			return
		}
		if tail[1] == events.VerbResidual {
			if r.Residual == nil {
				return // somebody else's: anyone may publish in the lab
			}
			s.event(fmt.Sprintf("%-8s %s: 2 s later %d entries of %s are back", "residual", r.Firewall, *r.Residual, strings.Join(r.Addresses, " ")))
			s.say("ordinary traffic goes on")
			return
		}
		if r.Actor == events.ActorResponder { // a spectator may flush too, that is not the show's
			s.mu.Lock()
			if _, had := s.receipts[r.Firewall]; !had {
				s.receipts[r.Firewall] = time.Now()
			}
			s.res.Receipts = append(s.res.Receipts, r)
			s.mu.Unlock()
		}
		s.event(fmt.Sprintf("%-8s %s: %d entries matched, %d deleted in %.1f ms; the table went from %d to %d", "flushed", r.Firewall, r.Matched, r.Deleted, r.DurationMS, r.TableBefore, r.TableAfter))
	}
}

// finish takes the numbers and judges the show.
func (s *show) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.agg.Firewalls().Firewalls {
		s.res.Events += f.Events
		s.res.Lost += max(f.Lost, f.Stream.Lost()) + f.Missing
	}
	if s.alerted.IsZero() {
		s.fail("the fleet alert did not fire")
	}
	if s.res.Lost > 0 {
		s.fail("%d events were lost", s.res.Lost)
	}
	s.stage.judge(s)
}

// fail notes why the demo failed. s is locked.
func (s *show) fail(format string, args ...any) {
	s.res.Problems = append(s.res.Problems, fmt.Sprintf(format, args...))
}

// simulated reports whether a flush of a firewall was. s is locked.
func (s *show) simulated(firewall string) bool {
	return slices.ContainsFunc(s.res.Simulated, func(d events.Decision) bool { return slices.Contains(d.Firewalls, firewall) })
}

// flushed checks that no other than an attacker was to be flushed. s is locked.
func (s *show) flushed(firewall string, addresses ...string) {
	for _, a := range addresses {
		if ip, err := netip.ParseAddr(a); err != nil || !attackers.Contains(ip) {
			s.fail("%s flushed %s, which was no attacker", firewall, a)
		}
	}
}

func (s *show) problem(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail(format, args...)
}

func (s *show) say(what string) {
	s.mu.Lock()
	s.now = what
	s.mu.Unlock()
	s.cfg.Screen.Say(what)
}

func (s *show) event(line string) { s.cfg.Screen.Event(line) }

// URL is what a client in another terminal connects to.
func (c *Config) URL() string { return "nats://" + c.NATS.Addr().String() }

// draw shows the state of the fleet.
func (s *show) draw() {
	top, err := s.agg.Top(&events.TopQuery{Limit: 5})
	if err != nil {
		s.problem("top: %v", err)
		return
	}
	s.cfg.Screen.Draw(s.agg.Firewalls().Firewalls, top)
}

// Summary says in a few lines what happened.
func (r *Result) Summary() string {
	var b strings.Builder
	if r.Recording {
		fmt.Fprintf(&b, "%s\nBecause: %s\n", aRecording, r.Why)
	}
	fmt.Fprintf(&b, "%d firewalls, %d events counted, %d lost\n", r.Firewalls, r.Events, r.Lost)
	for i := range r.Simulated {
		d := &r.Simulated[i]
		fmt.Fprintf(&b, "simulated: %s of %s on %s\n", d.Action, d.Address, strings.Join(d.Firewalls, " and "))
	}
	for i := range r.Receipts {
		rc := &r.Receipts[i]
		fmt.Fprintf(&b, "%s: %d of %d entries of %s deleted\n", rc.Firewall, rc.Deleted, rc.Matched, strings.Join(rc.Addresses, " "))
	}
	if r.FlushMS > 0 {
		fmt.Fprintf(&b, "from the packet that crossed the threshold: %.1f ms to the alert, %.1f ms to the last receipt\n", r.DetectMS, r.FlushMS)
	}
	if !r.Recording {
		fmt.Fprintf(&b, "ordinary traffic: %d conversations, %d messages echoed, %d broken\n", r.Ordinary.Opened, r.Ordinary.Echoed, r.Ordinary.Broken)
	}
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "PROBLEM: %s\n", p)
	}
	return b.String()
}

package demo

import (
	"context"
	"errors"
	"fmt"
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
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/responder"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Config of a demo. The listeners may have been opened in another network
// namespace than the one that the demo runs in.
type Config struct {
	HTTP, NATS net.Listener
	Access     daemon.Access // who may read what HTTP serves
	Duration   time.Duration // 0: until ctx ends
	Screen     *Screen       // where the show is shown
	Log        *slog.Logger
}

// Result is what happened, as `ctfleet demo -o json` prints it. Times are of
// the first attack.
type Result struct {
	Firewalls int              `json:"firewalls"`
	Events    uint64           `json:"events"`
	Lost      uint64           `json:"lost"`
	Alerts    []events.Alert   `json:"alerts"`
	Receipts  []events.Receipt `json:"receipts"`
	DetectMS  float64          `json:"detect_ms"` // from the packet that crossed the threshold to the alert
	FlushMS   float64          `json:"flush_ms"`  // from the same packet to the last receipt
	Ordinary  Ordinary         `json:"ordinary"`
	Problems  []string         `json:"problems"` // why the demo failed, when it did
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

// show is one running demo.
type show struct {
	cfg       Config
	lab       *lab.Lab
	server    *bus.Server
	conn      *bus.Conn
	producers map[string]*producer.Producer
	talkers   []*traffic.Talkers
	agg       *aggregator.Aggregator

	mu       sync.Mutex
	res      Result
	crossed  time.Time // when the threshold was crossed
	alerted  time.Time
	receipts map[string]time.Time // first receipt by firewall
	attacks  int
	now      string // what is happening
}

// Run builds the fleet, runs the show and returns what happened. An error means
// that it could not be run at all.
func Run(ctx context.Context, cfg Config) (*Result, error) {
	s := &show{cfg: cfg, producers: map[string]*producer.Producer{}, receipts: map[string]time.Time{}}
	s.res = Result{Firewalls: len(names), Alerts: []events.Alert{}, Receipts: []events.Receipt{}, Problems: []string{}}
	s.say("building three firewalls")
	var err error
	if s.lab, err = lab.New(ctx, labSpec()); err != nil {
		return nil, err
	}
	defer s.lab.Close()
	if s.server, err = bus.StartServer(bus.ServerConfig{Listener: cfg.NATS, Open: true, Log: cfg.Log}); err != nil {
		return nil, err
	}
	defer s.server.Close()
	if s.conn, err = bus.Connect(bus.Config{Server: s.server, Role: "demo", Log: cfg.Log}); err != nil {
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
	for _, t := range s.talkers {
		t.Close()
	}
	stop()
	if roleErr := roles.Wait(); err == nil {
		err = roleErr
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return nil, err
	}
	return &s.res, nil
}

func labSpec() lab.Spec {
	var spec lab.Spec
	for i, name := range names {
		spec.Firewalls = append(spec.Firewalls, lab.FirewallSpec{
			Name: name, IPv6: i == len(names)-1,
			Sysctls: map[string]string{
				"net.netfilter.nf_conntrack_events": "1",
				"net.netfilter.nf_conntrack_acct":   "1",
				// A deleted TCP flow must break, so that the show would notice.
				"net.netfilter.nf_conntrack_tcp_loose": "0",
			},
		})
	}
	return spec
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
	s.agg, err = aggregator.New(aggregator.Options{Judging: aggregator.Judging{MaxKeys: 1 << 16}}, file, aggregator.Dependencies{
		Bus: inside, Log: s.cfg.Log, Registry: reg,
	})
	if err != nil {
		return nil, err
	}
	p := policy.Default()
	p.Mode, p.CoolDown = policy.Enforce, 20*time.Second
	p.Policies = []policy.Policy{{Rule: ruleName, Action: policy.ActionFlush, Where: policy.WhereAlert, Unanswered: policy.UnansweredDelete}} // nobody answers the attacker
	everybody, err := seal.OpenTrust(seal.TrustNone)
	if err != nil {
		return nil, err
	}
	resp, err := responder.New(p, responder.Dependencies{Bus: inside, Trust: everybody, Log: s.cfg.Log, Registry: reg})
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		opt := producer.Options{Name: name, Realm: events.RealmDefault, BufferBytes: 64 << 20, Linger: 10 * time.Millisecond, RingBytes: 16 << 20, AllowFlush: true, Trust: "none"}
		if s.producers[name], err = producer.New(opt, producer.Dependencies{Bus: inside, Namespace: s.lab.Firewall(name).NS, Log: s.cfg.Log, Registry: reg}); err != nil {
			return nil, err
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return api.Serve(ctx, s.cfg.HTTP, &s.cfg.Access, s.agg, reg, s.agg.Ready, s.cfg.Log)
	})
	g.Go(func() error { return s.agg.Run(ctx) })
	g.Go(func() error { return resp.Run(ctx) })
	for _, p := range s.producers {
		g.Go(func() error { return p.Run(ctx) })
	}
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
	if err := s.startTalkers(ctx); err != nil {
		return err
	}
	s.say("ordinary traffic through three firewalls")
	var work errgroup.Group
	work.Go(func() error { return s.attackLoop(ctx, begin) })
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
		missing := s.agg.Ready()
		for _, p := range s.producers {
			missing = errors.Join(missing, p.Ready())
		}
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

// startTalkers starts ordinary traffic: some clients that keep TCP and UDP
// conversations up, and short ones besides.
func (s *show) startTalkers(ctx context.Context) error {
	for i, fw := range s.lab.Firewalls() {
		clients := traffic.Addresses(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i + 1), 0}), 24), 6)[1:]
		servers := traffic.Addresses(lab.ServerPrefix4, 4)[1:]
		if fw.IPv6 {
			clients = append(clients, traffic.Addresses(lab.ClientPrefix6, 4)[1:]...)
			servers = append(servers, traffic.Addresses(lab.ServerPrefix6, 3)[1:]...)
		}
		t, err := traffic.Start(context.WithoutCancel(ctx), fw, traffic.Talk{Clients: clients, Servers: servers, Kept: 2, NewPerSecond: 15, Timeout: patience})
		if err != nil {
			return err
		}
		s.talkers = append(s.talkers, t)
	}
	return nil
}

func (s *show) attackLoop(ctx context.Context, begin time.Time) error {
	next := begin.Add(firstAttack)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
		}
		next = time.Now().Add(attackEvery)
		if err := s.attack(ctx); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// attack sends half of the threshold through each of two firewalls.
func (s *show) attack(ctx context.Context) error {
	s.mu.Lock()
	s.attacks++
	n := s.attacks
	s.mu.Unlock()
	attacker := traffic.Addresses(attackers, 255)[1+n%250]
	s.say(fmt.Sprintf("%s attacks through %s: %d new flows through each, %d in the fleet is the threshold", attacker, strings.Join(attacked, " and "), attackPerFW, threshold))
	var g errgroup.Group
	ends := make([]time.Time, len(attacked))
	for i, name := range attacked {
		g.Go(func() error {
			start := time.Now()
			rep, err := traffic.Flood{
				Protocol: 17, Sources: netip.PrefixFrom(attacker, 32), Destinations: lab.ServerPrefix4, DestinationCount: 64, Port: 53,
				Count: attackPerFW, Rate: attackRate,
			}.Run(ctx, s.lab.Firewall(name))
			if err != nil {
				return fmt.Errorf("attack through %s: %w", name, err)
			}
			// Setting up is not counted, so this is early rather than late and
			// makes detection look slower rather than faster.
			ends[i] = start.Add(rep.Elapsed)
			return nil
		})
	}
	err := g.Wait()
	if n == 1 {
		s.mu.Lock()
		s.crossed = ends[0]
		if ends[1].After(ends[0]) {
			s.crossed = ends[1]
		}
		s.mu.Unlock()
	}
	return err
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
	if fired {
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
	res := &s.res
	for _, f := range s.agg.Firewalls().Firewalls {
		res.Events += f.Events
		res.Lost += max(f.Lost, f.Stream.Lost()) + f.Missing
	}
	for _, t := range s.talkers {
		st := t.Stats()
		res.Ordinary.Opened += st.Opened
		res.Ordinary.Echoed += st.Echoed
		res.Ordinary.Broken += st.Broken
	}
	fail := func(format string, args ...any) { res.Problems = append(res.Problems, fmt.Sprintf(format, args...)) }
	if s.alerted.IsZero() {
		fail("the fleet alert did not fire")
	}
	for _, name := range attacked {
		if _, ok := s.receipts[name]; !ok {
			fail("%s sent no receipt", name)
		}
	}
	last := s.alerted
	for i := range res.Receipts {
		r := &res.Receipts[i]
		if r.Deleted == 0 || r.Error != "" || len(r.Refused) > 0 {
			fail("%s deleted %d entries of %d, refused %v, error %q", r.Firewall, r.Deleted, r.Matched, r.Refused, r.Error)
		}
		for _, a := range r.Addresses {
			if ip, err := netip.ParseAddr(a); err != nil || !attackers.Contains(ip) {
				fail("%s flushed %s, which was no attacker", r.Firewall, a)
			}
		}
		if r.Deleted > attackPerFW {
			fail("%s deleted %d entries, the attacker had %d", r.Firewall, r.Deleted, attackPerFW)
		}
	}
	for _, at := range s.receipts {
		if at.After(last) {
			last = at
		}
	}
	if !s.crossed.IsZero() && !s.alerted.IsZero() {
		res.DetectMS = ms(s.alerted.Sub(s.crossed))
		res.FlushMS = ms(last.Sub(s.crossed))
	}
	if res.Ordinary.Echoed == 0 || res.Ordinary.Broken > 0 {
		fail("ordinary traffic: %d messages echoed, %d conversations broke", res.Ordinary.Echoed, res.Ordinary.Broken)
	}
	if res.Lost > 0 {
		fail("%d events were lost", res.Lost)
	}
	if s.attacks == 0 {
		fail("the time was over before the attack")
	}
}

func ms(d time.Duration) float64 { return float64(d.Round(10*time.Microsecond).Microseconds()) / 1000 }

func (s *show) problem(format string, args ...any) {
	s.mu.Lock()
	s.res.Problems = append(s.res.Problems, fmt.Sprintf(format, args...))
	s.mu.Unlock()
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
	fmt.Fprintf(&b, "%d firewalls, %d events counted, %d lost\n", r.Firewalls, r.Events, r.Lost)
	for i := range r.Receipts {
		rc := &r.Receipts[i]
		fmt.Fprintf(&b, "%s: %d of %d entries of %s deleted\n", rc.Firewall, rc.Deleted, rc.Matched, strings.Join(rc.Addresses, " "))
	}
	if r.FlushMS > 0 {
		fmt.Fprintf(&b, "from the packet that crossed the threshold: %.1f ms to the alert, %.1f ms to the last receipt\n", r.DetectMS, r.FlushMS)
	}
	fmt.Fprintf(&b, "ordinary traffic: %d conversations, %d messages echoed, %d broken\n", r.Ordinary.Opened, r.Ordinary.Echoed, r.Ordinary.Broken)
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "PROBLEM: %s\n", p)
	}
	return b.String()
}

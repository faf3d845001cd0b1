package aggregator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/history"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Options are what an operator sets; the flags of cmd/aggregator.
type Options struct {
	Rules   string `type:"existingfile" placeholder:"FILE" help:"Thresholds to alert on, read again on SIGHUP. Without it only the built-in alarms are judged: table fill, kernel drops, silence, loss."`
	MaxKeys int    `default:"2097152" help:"Addresses remembered for each way to count (by source, by destination, and each prefix and match of a rule), over the whole fleet. When that is not enough each firewall keeps its share, and the smallest go first (${default})."`

	MetricsTop int `placeholder:"N" help:"Export the N largest sources and destinations of all firewalls as metrics, at most 100. A label then holds an address: each that was among them once is a series of Prometheus for as long as it keeps any (none)."`

	History      string        `type:"path" placeholder:"FILE" help:"Keep a history in this file, a database of SQLite on a local disk: each minute's largest sources and destinations, the fill of each table, alerts and audit."`
	HistoryAge   time.Duration `default:"168h" placeholder:"DURATION" help:"How long it is kept (${default})."`
	HistoryBytes int64         `default:"1073741824" help:"How large its file may become: then the oldest goes (${default})."`
}

// Validate reports the first option that is wrong.
func (o *Options) Validate() error {
	if o.MaxKeys < 1 {
		return fmt.Errorf("--max-keys: must be at least 1, is %d", o.MaxKeys)
	}
	if o.MetricsTop < 0 || o.MetricsTop > maxMetricsTop {
		return fmt.Errorf("--metrics-top: %d is not within 0 to %d", o.MetricsTop, maxMetricsTop)
	}
	return nil
}

// Load reads the rules file, if there is one.
func (o *Options) Load() (rule.File, error) {
	f := rule.NewFile()
	if o.Rules == "" {
		return f, nil
	}
	digest, err := config.ReadFileDigest(o.Rules, &f)
	f.Digest = digest
	return f, err
}

// Dependencies are what an aggregator is given by whoever runs it.
type Dependencies struct {
	Bus      bus.Config // Role, Name and Patient are filled in
	Limits   bus.Limits // of the streams, where this aggregator is the first to need them; zero: DefaultLimits
	Log      *slog.Logger
	Registry *prometheus.Registry // may be nil
}

// always are the windows that can be asked for whatever the rules say.
var always = []time.Duration{10 * time.Second, 60 * time.Second}

// Aggregator counts and judges.
type Aggregator struct {
	opt  Options
	deps Dependencies
	log  *slog.Logger
	conn *bus.Conn

	outbox *bus.Outbox    // alerts on their way
	past   *history.Store // nil: no history is kept
	allow  *bus.Allowlist
	orders *bus.Mirror // of CT_GUARD: whether the circuit is open, who is muted or dismissed

	alertsFrom bus.FollowFrom // where to follow the alerts of all aggregators from

	intake chan message
	begun  chan struct{} // closed when the streams are there and nothing was judged yet
	purges chan string   // firewalls that were dismissed
	reads  chan struct{} // one for each who reads the streams to answer a question

	throttle daemon.Throttle
	pulse    *daemon.Pulse // of the work loop

	mu sync.Mutex // guards what follows, to the empty line
	core
	rules   rule.File // those in force, the built-in alarms apart
	fleet   map[string]*firewall
	replay  replay
	live    bool          // the replay has caught up: judge and publish
	heard   time.Time     // local time of the last stream message
	judged  time.Time     // local time when the firewalls were last judged
	lag     uint64        // stream messages that had not been sent to us when the last was
	behind  time.Duration // how long after the server stamped it the last one was counted
	clock   bus.Clock     // the server's
	circuit events.Circuit
	said    said // of firewalls, by operators
	pacer   pacer
	over    map[string]time.Time // alerts whose end we know, by id, since when

	ready   atomic.Bool
	refused *prometheus.CounterVec
	fired   *prometheus.CounterVec
	dropped prometheus.Counter
}

// New returns an aggregator for rules that [Options.Load] returned.
func New(opt Options, file rule.File, deps Dependencies) (*Aggregator, error) {
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	if deps.Limits == (bus.Limits{}) {
		deps.Limits = bus.DefaultLimits
	}
	a := &Aggregator{
		pulse: daemon.NewPulse("counting", standstill), rules: file, opt: opt, deps: deps, log: deps.Log, fleet: map[string]*firewall{},
		intake: make(chan message, 1024), begun: make(chan struct{}), purges: make(chan string, maxPurges), said: newSaid(), pacer: pacer{self: rand.Text()}, over: map[string]time.Time{}, reads: make(chan struct{}, readsAtOnce),
	}
	var err error
	if a.core, err = newCore(slices.Concat(file.Rules, alarms), file.MaxFiring, opt.MaxKeys); err != nil {
		return nil, err
	}
	if opt.History != "" {
		if a.past, err = history.Open(context.Background(), opt.history(), deps.Log); err != nil {
			return nil, err
		}
	}
	busCfg := deps.Bus
	busCfg.Role, busCfg.Patient, busCfg.Log = "aggregator", true, deps.Log
	if busCfg.Name == "" {
		busCfg.Name, _ = os.Hostname() // an empty name is fine
	}
	if a.conn, err = bus.Connect(busCfg); err != nil {
		return nil, errors.Join(err, a.closePast())
	}
	a.allow = a.conn.NewAllowlist(everybody, a.refuse)
	a.orders = a.conn.NewMirror(bus.BucketGuard, bus.Reflection{Put: a.takeOrder})
	a.outbox = a.conn.NewOutbox(waitingAlerts, a.dropAlert)
	a.register(deps.Registry)
	return a, nil
}

// Ready returns nil once the replay has caught up and the bus is there.
func (a *Aggregator) Ready() error {
	if err := a.conn.Connected(); err != nil {
		return err
	}
	if !a.ready.Load() {
		return errors.New("the replay has not caught up yet")
	}
	return nil
}

// standstill is longer than one round of the work loop ever takes, also where other
// rules are put in force or a whole table is looked through.
const standstill = 10 * time.Second

// Alive returns nil unless the loop that counts and judges stands still.
func (a *Aggregator) Alive() error { return a.pulse.Alive() }

// Run counts until ctx ends.
func (a *Aggregator) Run(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, a.closePast()) }()
	defer a.conn.Close()
	defer a.unregister()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"find or create the streams", a.ensureStreams},
		{"adopt the alerts that fire", a.adopt},
		{"recall the firewalls", a.recallFleet},
		{"find where the replay begins", a.planReplay},
	} {
		if !a.onBus(ctx, step.what, step.do) {
			return nil
		}
	}
	close(a.begun)
	stopHealth, err := a.conn.Subscribe(events.SubjectHealth+".*", a.takeHealth)
	if err != nil {
		return err
	}
	defer stopHealth()
	stopService, err := a.serve(ctx)
	if err != nil {
		return err
	}
	defer stopService()

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.conn.Follow(ctx, bus.StreamEvents, bus.FollowFrom{Time: a.replay.from}, a.enqueue(ctx, false))
	})
	// A snapshot is of use when all events since it began are replayed too;
	// where there is none, a resync is asked for.
	g.Go(func() error {
		return a.conn.Follow(ctx, bus.StreamSnapshots, bus.FollowFrom{Time: a.replay.from.Add(snapshotMargin)}, a.enqueue(ctx, true))
	})
	g.Go(func() error { return a.work(ctx) })
	g.Go(func() error { return a.outbox.Run(ctx) })
	g.Go(func() error { return a.hearAlerts(ctx) })
	g.Go(func() error { return a.allow.Run(ctx) })
	g.Go(func() error { return a.orders.Run(ctx) })
	g.Go(func() error { return a.purgeLoop(ctx) })
	g.Go(func() error { return a.resyncLoop(ctx) })
	g.Go(func() error { return a.paceLoop(ctx) })
	if a.past != nil {
		g.Go(func() error { return a.past.Run(ctx) })
		g.Go(func() error { return a.minuteLoop(ctx) })
		g.Go(func() error { return a.copyStream(ctx, bus.StreamAlerts, readAlert) })
		g.Go(func() error { return a.copyStream(ctx, bus.StreamAudit, readAudit) })
	}
	return g.Wait()
}

// replayMargin is replayed beyond the longest window, for batches that waited
// in a producer's ring.
const replayMargin = 10 * time.Second

// replay is what has to be counted before anything is judged. All of it is by
// the server's clock: ours may differ.
type replay struct {
	from  time.Time
	until uint64 // sequence in the stream; 0: there is nothing to replay
}

// planReplay asks the event stream how it stands.
func (a *Aggregator) planReplay(ctx context.Context) error {
	asked := time.Now()
	st, err := a.conn.State(ctx, bus.StreamEvents)
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.clock = bus.ClockOf(st, asked)
	a.replay = replay{from: st.Now.Add(-slices.Max(a.windows) - replayMargin)}
	if st.Messages > 0 && st.LastTime.After(a.replay.from) {
		a.replay.until = st.LastSeq
	}
	return nil
}

// onBus calls do until it succeeds, while the bus is there; it returns false when ctx
// ends before.
func (a *Aggregator) onBus(ctx context.Context, what string, do func(context.Context) error) bool {
	return a.retry(ctx, what, func(ctx context.Context) error {
		if err := a.conn.WaitConnected(ctx); err != nil {
			return err
		}
		return do(ctx)
	})
}

// retry calls do until it succeeds; it returns false when ctx ends before.
func (a *Aggregator) retry(ctx context.Context, what string, do func(context.Context) error) bool {
	for {
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			return err == nil
		}
		a.throttle.Warn(a.log, "cannot "+what+", retrying", "error", err)
		if !daemon.Sleep(ctx, time.Second) {
			return false
		}
	}
}

// snapshotMargin keeps the replay of snapshots behind that of events: a
// producer's events may wait for the bus longer than its snapshot.
const snapshotMargin = 5 * time.Second

// ensureStreams creates what is missing. Where the server does not permit that,
// somebody else must have bootstrapped.
func (a *Aggregator) ensureStreams(ctx context.Context) error {
	made, err := a.conn.Bootstrap(ctx, a.deps.Limits, false)
	if err == nil {
		if len(made) > 0 {
			a.log.Info("created streams", "streams", made)
		}
		return nil
	}
	if missing, missErr := a.conn.Missing(ctx); missErr == nil && len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("%w; ctfleet bootstrap creates them", err)
}

// tickInterval is how often time passes where no message says so.
const tickInterval = 100 * time.Millisecond

// work is the one goroutine that counts and judges.
func (a *Aggregator) work(ctx context.Context) error {
	tick := time.NewTicker(tickInterval)
	defer tick.Stop()
	a.mu.Lock()
	if a.replay.until == 0 {
		a.goLive()
	}
	a.mu.Unlock()
	for {
		a.pulse.Beat()
		select {
		case <-ctx.Done():
			return nil
		case m := <-a.intake:
			a.take(m)
		case <-tick.C:
			a.tick(time.Now())
		}
	}
}

// goLive ends the replay: from now on counts are judged and alerts published.
func (a *Aggregator) goLive() {
	a.live, a.heard = true, time.Now()
	a.leaveOut()
	a.ready.Store(true)
	a.log.Info("counting", "rules", len(a.rules.Rules), "digest", a.rules.Digest, "windows", a.windows)
	// The last message may be long past: the present is the server's.
	a.counter.Advance(a.clock.At(time.Now()).UnixNano())
	// What a replay made of the counts crossed its thresholds while nobody looked.
	a.judge(a.counter.Review())
}

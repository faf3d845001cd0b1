package producer

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/live"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/internal/spool"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Dependencies are what a producer is given by whoever runs it.
type Dependencies struct {
	Bus       bus.Config      // Role, Name and OnChange are filled in
	Namespace *host.Namespace // nil: the process's own, or Options.NetNS
	Log       *slog.Logger
	Registry  *prometheus.Registry // may be nil
	// Options reads the options again, for [Producer.Reload]; nil: they stay as they are.
	Options func() (Options, error)
}

// Producer watches one connection table.
type Producer struct {
	opt  Options
	deps Dependencies
	log  *slog.Logger
	ns   *host.Namespace
	boot events.Boot

	conn   *bus.Conn
	reader *conntrack.Reader // nil where events come from input
	input  *input            // nil where they come from the kernel
	guard  *guard.Guard
	blocks *block.Blocker // nil without --allow-block
	trust  *seal.Trust
	allow  *bus.Allowlist

	// What this host cannot live without, the sessions of its operators apart.
	// Nil until it is known.
	ownMu sync.Mutex
	own   []allowlist.Entry

	account  spool.Account
	ring     *spool.Ring // live batches
	snapRing *spool.Ring // snapshot batches
	linger   atomic.Int64
	started  time.Time

	// The live set is shared by capture and resync.
	mu    sync.Mutex
	live  *live.Table
	epoch uint32

	table     tableState
	resync    resyncer
	acting    sync.Mutex // one flush, block or unblock at a time
	records   chan record
	unwritten atomic.Int64    // receipts that are not in the audit yet
	life      context.Context // ends with Run
	end       context.CancelFunc
	later     sync.WaitGroup // what goes on after the command that it belongs to
	changed   chan struct{}  // the connection to the bus came or went
	throttle  daemon.Throttle
	metrics   metrics
	current   atomic.Pointer[Options] // with what was changed since the start
	config    atomic.Pointer[string]  // digest of these and of the trust file
	pulse     *daemon.Pulse           // of capture
	reporting *daemon.Pulse           // of the health loop
	ready     atomic.Bool
	sysctls   atomic.Pointer[conntrack.Sysctls]
	problems  atomic.Pointer[[]string]
}

// snapshotRingBytes bounds what a dump may be ahead of the bus.
const snapshotRingBytes = 8 << 20

// New opens the kernel's socket and starts to connect to the bus. It returns an
// error in plain words when the table cannot be watched; an unreachable bus is
// none.
func New(opt Options, deps Dependencies) (*Producer, error) {
	if err := opt.Validate(); err != nil {
		return nil, err
	}
	p := &Producer{opt: opt, deps: deps, log: deps.Log.With("firewall", opt.Name), ns: deps.Namespace, started: time.Now(), live: live.New(), epoch: 1}
	if _, err := rand.Read(p.boot[:]); err != nil {
		return nil, fmt.Errorf("make a boot id: %w", err)
	}
	p.linger.Store(int64(opt.Linger))
	p.current.Store(&opt)
	p.pulse, p.reporting = daemon.NewPulse("capture", standstill), daemon.NewPulse("the health loop", standstill)
	p.ring, p.snapRing = spool.NewRing(opt.RingBytes), spool.NewRing(snapshotRingBytes)
	p.records, p.changed = make(chan record, maxRecords), make(chan struct{}, 1)
	p.life, p.end = context.WithCancel(context.Background())
	p.resync.init()
	var err error
	if p.trust, err = seal.OpenTrust(opt.Trust); err != nil {
		return nil, fmt.Errorf("--trust: %w", err)
	}
	digest := opt.digest(p.trust.Digest())
	p.config.Store(&digest)
	if opt.NetNS != "" {
		ns, err := host.OpenNamespace(opt.NetNS)
		if err != nil {
			return nil, fmt.Errorf("--netns: %w", err)
		}
		p.ns = ns
	}
	if p.blocks, err = opt.openBlocks(p.ns); err != nil {
		return nil, err
	}
	if p.input, err = opt.openInput(); err != nil {
		return nil, err
	}
	if p.input == nil {
		if p.reader, err = conntrack.NewReader(conntrack.ReaderConfig{Namespace: p.ns, BufferBytes: opt.BufferBytes}); err != nil {
			return nil, fmt.Errorf("watch the connection table: %w", err)
		}
	}
	p.preflight()
	cfg := deps.Bus
	cfg.Role, cfg.Name, cfg.Patient, cfg.Direct, cfg.Log = "producer", opt.Name, true, true, p.log
	cfg.OnChange = func(bool) {
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	if p.conn, err = bus.Connect(cfg); err != nil {
		p.closeSource()
		return nil, err
	}
	p.allow = p.conn.NewAllowlist(p.trust, p.refuse)
	p.guard = guard.New(guard.Config{
		Firewall: opt.Name, Realm: opt.Realm, Boot: p.boot.String(), Trust: p.trust, Now: p.allow.Now, Allowlist: p.allow.List,
		AllowFlush: opt.AllowFlush, AllowBlock: opt.AllowBlock, Limits: opt.guardLimits(),
	})
	if p.input == nil {
		p.protect()
	}
	p.metrics.register(deps.Registry, p)
	return p, nil
}

// Boot identifies this run.
func (p *Producer) Boot() events.Boot { return p.boot }

// Ready returns nil when batches reach the bus, or why not.
func (p *Producer) Ready() error {
	if err := p.conn.Connected(); err != nil {
		return err
	}
	if p.input == nil && !p.ready.Load() {
		return errors.New("the first snapshot is not complete yet")
	}
	return nil
}

// standstill is longer than any round of a loop takes: capture waits for the kernel for
// idleWait at most, and the health loop for the bus for less than a stop may take.
const standstill = 10 * time.Second

// Alive returns nil unless what captures, or what reports, stands still.
func (p *Producer) Alive() error { return errors.Join(p.pulse.Alive(), p.reporting.Alive()) }

// drainTime is how long a clean stop waits for the bus to acknowledge.
const drainTime = 2 * time.Second

// Run watches until ctx or the input ends, then sends what is left and says
// good-bye.
func (p *Producer) Run(ctx context.Context) error {
	defer p.close()
	p.log.Info(p.watching(), "realm", p.opt.Realm, "boot", p.boot.String()[:8], "allow_flush", p.opt.AllowFlush, "allow_block", p.opt.AllowBlock)

	batches, err := p.pump(p.ring, events.EventsSubject(p.opt.Name), true)
	if err != nil {
		return err
	}
	defer batches.Bus.Close()
	snapshots, err := p.pump(p.snapRing, events.SnapshotsSubject(p.opt.Name), false)
	if err != nil {
		return err
	}
	defer snapshots.Bus.Close()
	pumping, stopPumps := context.WithCancel(context.WithoutCancel(ctx))
	defer stopPumps()
	var pumps errgroup.Group
	pumps.Go(func() error { return batches.Run(pumping) })
	pumps.Go(func() error { return snapshots.Run(pumping) })
	pumps.Go(func() error { return p.recordLoop(pumping) })

	stopPace, err := p.conn.Subscribe(events.SubjectPace, p.setPace)
	if err != nil {
		return err
	}
	defer stopPace()
	stopService, err := p.serve()
	if err != nil {
		return err
	}
	stopService = sync.OnceFunc(stopService)
	defer stopService()

	ctx, done := context.WithCancel(ctx)
	defer done()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.healthLoop(ctx) })
	if p.input == nil {
		g.Go(func() error { return p.capture(ctx) })
		g.Go(func() error { return p.resyncLoop(ctx) })
		g.Go(func() error { return p.protectLoop(ctx) })
		g.Go(func() error { return p.allow.Run(ctx) })
		p.requestResync("start")
	} else {
		g.Go(func() error {
			defer done()
			return p.readInput(ctx)
		})
	}
	err = g.Wait()

	deadline := time.Now().Add(drainTime)
	stopService()
	// Half of the time is the command's, which may wait in vain for its events to be
	// read: its receipt has to reach the bus, too.
	p.endActing(deadline.Add(-drainTime / 2))
	err = errors.Join(err, p.clearBlocks())
	// The events were read, so they are ours to deliver.
	for !p.ring.Empty() && time.Now().Before(deadline) && p.conn.Connected() == nil {
		time.Sleep(5 * time.Millisecond)
	}
	for p.unwritten.Load() > 0 && time.Now().Before(deadline) {
		time.Sleep(5 * time.Millisecond)
	}
	p.sendHealth(true)
	stopPumps()
	return errors.Join(err, pumps.Wait())
}

func (p *Producer) close() {
	p.end()
	p.later.Wait()
	p.closeSource()
	p.table.close()
	p.conn.Close()
	if p.opt.NetNS != "" {
		p.ns.Close()
	}
	p.metrics.unregister(p.deps.Registry)
}

func (p *Producer) pump(ring *spool.Ring, subject string, counted bool) (*spool.Pump, error) {
	pub, err := p.conn.NewPublisher(subject)
	if err != nil {
		return nil, err
	}
	return &spool.Pump{
		Ring: ring, Account: &p.account, Bus: pub, Counted: counted,
		Firewall: p.opt.Name, Boot: p.boot, Now: conntrack.Monotonic, Log: p.log,
		Refused: func() { p.requestResync("a batch was refused") },
	}, nil
}

// setPace follows the aggregator's request to linger, never below our own.
func (p *Producer) setPace(_ string, data []byte) {
	var pace events.Pace
	if err := events.Unmarshal(data, &pace); err != nil {
		p.refuse("pace", events.SubjectPace, err)
		return
	}
	p.linger.Store(int64(max(p.opt.Linger, time.Duration(pace.LingerMS)*time.Millisecond)))
}

// refuse counts and logs a message that could not be read.
func (p *Producer) refuse(kind, subject string, err error) {
	p.metrics.refused.WithLabelValues(kind).Inc()
	p.throttle.Warn(p.log, "refused a message", "subject", subject, "error", err)
}

// protectEvery is how often the host's addresses are listed again; a change of
// the bus's server does so at once.
const protectEvery = 10 * time.Second

func (p *Producer) protectLoop(ctx context.Context) error {
	tick := time.NewTicker(protectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.changed:
		}
		p.protect()
	}
}

// protect tells the guard what this host cannot live without, as of now.
func (p *Producer) protect() {
	err := p.identify()
	if err == nil {
		err = p.protectSessions()
	}
	if err != nil {
		// The guard keeps what it knew, and lets nothing be deleted before it
		// knew anything.
		p.throttle.Warn(p.log, "cannot list what to protect", "error", err)
	}
}

// identify lists what changes seldom. It may take long: there may be a million
// routes.
func (p *Producer) identify() error {
	id, err := host.Identify(p.ns)
	if err != nil {
		return err
	}
	entries := allowlist.Addresses("own address", id.Addresses...)
	entries = append(entries, allowlist.Addresses("gateway", id.Gateways...)...)
	entries = append(entries, allowlist.Addresses("resolver", id.Resolvers...)...)
	p.ownMu.Lock()
	p.own = entries
	p.ownMu.Unlock()
	return nil
}

// protectSessions lists who is connected by SSH at this moment, and our NATS server,
// and tells the guard of them and of the rest that is known. It is quick enough to
// come before each flush: 0.4 ms, and 18 ms where there are 100,000 connections.
func (p *Producer) protectSessions() error {
	// Held while they are listed: an older list must not replace a newer one.
	p.ownMu.Lock()
	defer p.ownMu.Unlock()
	if p.own == nil {
		return nil // the sessions alone would make the guard believe that it knows all
	}
	peers, err := host.Peers(p.ns, p.opt.SSHPort...)
	if err != nil {
		return err
	}
	spared := slices.Concat(p.own, allowlist.Addresses("SSH session", peers...))
	if addr, ok := p.conn.ServerAddr(); ok { // which may be another since a moment ago
		spared = append(spared, allowlist.Addresses("NATS server", addr)...)
	}
	p.guard.Protect(spared)
	return nil
}

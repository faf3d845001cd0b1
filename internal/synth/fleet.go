package synth

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/spool"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// FleetConfig describes simulated firewalls on a bus.
type FleetConfig struct {
	Firewalls int
	Rate      float64       // events per second of each
	Sources   int           // addresses of each, its own
	Open      int           // flows that each holds; 0: none ends
	Linger    time.Duration // the least; the aggregator's pace stretches it
	Ramp      time.Duration // over which they come, one after the other; 0: all at once
	Bus       bus.Config    // Role and Name are filled in
	// Identify says who a firewall is on the bus, where each has keys of its own; may be nil.
	Identify func(firewall string) bus.Flags
	Log      *slog.Logger
}

// Fleet is firewalls without a kernel. Each has a connection of its own and what a
// producer has from its ring on: stamps, acknowledgements, the loss account, the pace, health
// every second.
type Fleet struct {
	cfg       FleetConfig
	firewalls []*firewall
	start     time.Time
	resting   atomic.Bool
}

// ringBytes is what each keeps while the bus is away: a minute or so at 2,000 events a second.
const ringBytes = 4 << 20

type firewall struct {
	name    string
	fleet   *Fleet
	conn    *bus.Conn
	boot    events.Boot
	ring    *spool.Ring
	account spool.Account
	linger  atomic.Int64

	mu   sync.Mutex // guards load
	load *Load
}

// NewFleet connects the firewalls, named fw-0 and so on.
func NewFleet(cfg FleetConfig) (*Fleet, error) {
	f := &Fleet{cfg: cfg, start: time.Now()}
	sources, destinations := Even(cfg.Sources, 1), Even(200, 2)
	for i := range cfg.Firewalls {
		w := &firewall{name: fmt.Sprint("fw-", i), fleet: f, ring: spool.NewRing(ringBytes)}
		if _, err := rand.Read(w.boot[:]); err != nil {
			f.close()
			return nil, fmt.Errorf("make a boot id: %w", err)
		}
		w.linger.Store(int64(cfg.Linger))
		w.load = NewLoad(Config{
			Firewall: w.name, Realm: events.RealmDefault, Boot: w.boot, Open: cfg.Open,
			Sources: sources.Share(uint64(i)), Destinations: destinations.Share(uint64(i)),
			First: uint32(i * cfg.Sources), Count: uint32(cfg.Sources),
		})
		bc := cfg.Bus
		if cfg.Identify != nil {
			bc.Flags = cfg.Identify(w.name)
		}
		bc.Role, bc.Name, bc.Direct, bc.Log = "producer", w.name, true, cfg.Log
		conn, err := bus.Connect(bc)
		if err != nil {
			f.close()
			return nil, err
		}
		w.conn = conn
		f.firewalls = append(f.firewalls, w)
	}
	return f, nil
}

func (f *Fleet) close() {
	for _, w := range f.firewalls {
		w.conn.Close()
	}
}

// clock is the monotonic clock of all firewalls.
func (f *Fleet) clock() int64 { return int64(time.Since(f.start)) + 1 }

// Run lets them send until ctx ends.
func (f *Fleet) Run(ctx context.Context) error {
	defer f.close()
	g, ctx := errgroup.WithContext(ctx)
	for i, w := range f.firewalls {
		// Spread over the linger at least, as real ones are.
		delay := max(f.cfg.Linger, f.cfg.Ramp) * time.Duration(i) / time.Duration(len(f.firewalls))
		g.Go(func() error { return w.run(ctx, delay) })
	}
	return g.Wait()
}

// Rest says whether nothing new is made for now: what was made is still sent, and health reported.
func (f *Fleet) Rest(rests bool) { f.resting.Store(rests) }

// Attack makes one firewall see so many flows from a source at once, at the end of its next batch.
func (f *Fleet) Attack(firewall int, source events.Addr, flows int) {
	w := f.firewalls[firewall]
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range flows {
		w.load.Insert(events.Event{
			Type: events.New, Proto: 6, Status: events.StatusConfirmed,
			Orig: events.Tuple{Src: source, Dst: events.Addr{Lo: destination4}, SrcPort: uint16(i), DstPort: 443},
		})
	}
}

// Totals are sums over all firewalls.
type Totals struct {
	Made, Published, Lost uint64
	Linger                time.Duration // the longest in force
}

// Totals says what was made and what became of it.
func (f *Fleet) Totals() (t Totals) {
	for _, w := range f.firewalls {
		t.Made += w.account.Read.Load()
		t.Published += w.account.Published.Load()
		t.Lost += w.account.Lost()
		t.Linger = max(t.Linger, time.Duration(w.linger.Load()))
	}
	return t
}

func (w *firewall) run(ctx context.Context, delay time.Duration) error {
	pump := func(ring *spool.Ring, subject string, counted bool) (func() error, error) {
		pub, err := w.conn.NewPublisher(subject)
		if err != nil {
			return nil, err
		}
		p := &spool.Pump{
			Ring: ring, Account: &w.account, Bus: pub, Firewall: w.name, Boot: w.boot, Now: w.fleet.clock, Log: w.fleet.cfg.Log, Counted: counted,
		}
		return func() error { return p.Run(ctx) }, nil
	}
	live, err := pump(w.ring, events.EventsSubject(w.name), true)
	if err != nil {
		return err
	}
	snapshots := spool.NewRing(ringBytes)
	dump, err := pump(snapshots, events.SnapshotsSubject(w.name), false)
	if err != nil {
		return err
	}
	stop, err := w.conn.Subscribe(events.SubjectPace, func(_ string, data []byte) {
		var pace events.Pace
		if events.Unmarshal(data, &pace) == nil {
			w.linger.Store(int64(max(w.fleet.cfg.Linger, time.Duration(pace.LingerMS)*time.Millisecond)))
		}
	})
	if err != nil {
		return err
	}
	defer stop()
	data, err := w.load.Snapshot()
	if err != nil {
		return err
	}
	snapshots.Put(data, 0)

	if !daemon.Sleep(ctx, delay) {
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(live)
	g.Go(dump)
	g.Go(func() error { return w.produce(ctx) })
	g.Go(func() error { return w.report(ctx) })
	return g.Wait()
}

// produce makes a batch of what happened in each linger or, while the bus is behind, in several.
func (w *firewall) produce(ctx context.Context) error {
	carry, last := 0.0, w.fleet.clock()
	for daemon.Sleep(ctx, time.Duration(w.linger.Load())) {
		now := w.fleet.clock()
		if w.fleet.resting.Load() {
			last = now
			continue
		}
		due := carry + w.fleet.cfg.Rate*float64(now-last)/1e9
		if due < fullBatch && w.ring.Behind() {
			continue
		}
		w.mu.Lock()
		data, n, err := w.load.Batch(int(due), last, now)
		if err == nil && n > 0 {
			w.account.Read.Add(uint64(n))
			w.account.LostRing.Add(uint64(w.ring.Put(data, n)))
		}
		w.mu.Unlock()
		if err != nil {
			return err
		}
		carry, last = max(due-float64(n), 0), now
	}
	return nil
}

// fullBatch is what a producer sends although the bus is behind.
const fullBatch = 2048

// report publishes health, as a producer does.
func (w *firewall) report(ctx context.Context) error {
	for ok := true; ok; ok = daemon.Sleep(ctx, time.Second) {
		ring, limit, oldest := w.ring.Usage()
		h := &events.Health{
			Firewall: w.name, Realm: events.RealmDefault, Boot: w.boot.String(), Version: "synthetic", Sent: w.fleet.clock(), Started: w.fleet.start.UnixMilli(),
			Table: events.TableHealth{Count: uint64(w.fleet.cfg.Open), Limit: 262144, Buckets: 262144, Percent: 100 * float64(w.fleet.cfg.Open) / 262144},
			Stream: events.StreamHealth{
				Events: w.account.Read.Load(), Published: w.account.Published.Load(), LostRing: w.account.LostRing.Load(), LostBus: w.account.LostBus.Load(),
				RingBytes: uint64(ring), RingLimit: uint64(limit), LagMS: uint64(oldest.Milliseconds()), LingerMS: uint64(w.linger.Load() / 1e6), Epoch: 1,
			},
		}
		if w.conn.Connected() != nil {
			continue
		}
		if err := w.conn.Send(events.HealthSubject(w.name), h); err != nil {
			w.fleet.cfg.Log.Debug("cannot publish health", "firewall", w.name, "error", err)
		}
	}
	return nil
}

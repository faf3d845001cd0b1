package responder

import (
	"context"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/notify"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// rig is a NATS server with its streams and a client that plays the other
// parties: firewalls that answer commands, and the aggregator that alerts.
type rig struct {
	t      *testing.T
	server *embedded.Server
	conn   *bus.Conn
	signer *seal.Signer // of the responders
	trust  *seal.Trust  // theirs

	mu   sync.Mutex
	seen []string // what happened, in order: "decision …", "command …"
	decs []events.Decision
	once map[string]bool             // of decisions
	cmds map[string][]events.Command // by firewall
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, cmds: map[string][]events.Command{}, once: map[string]bool{}}
	var err error
	if r.server, err = embedded.Start(embedded.Config{Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.server.Close)
	if r.conn, err = bus.Connect(bus.Config{Server: r.server, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.conn.Close)
	stop, err := r.conn.Subscribe(events.AuditSubject(events.ActorResponder, events.VerbDecision), func(_ string, data []byte) {
		var d events.Decision
		if err := events.Unmarshal(data, &d); err != nil {
			t.Errorf("decision: %v", err)
			return
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		// A record that is made twice is seen twice on the way, and kept once.
		key := d.ID + " " + d.Outcome
		if r.once[key] {
			return
		}
		r.once[key] = true
		r.decs = append(r.decs, d)
		r.seen = append(r.seen, "decision "+d.Outcome)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
	return r
}

func (r *rig) bootstrap() {
	r.t.Helper()
	if _, err := r.conn.Bootstrap(r.t.Context(), bus.DefaultLimits, false); err != nil {
		r.t.Fatal(err)
	}
}

// firewall is a party on the bus that reports health and answers flushes. It
// checks what a producer's guard would.
type firewall struct {
	name, realm string
	boot        string
	health      events.Health
	table       events.TableHealth
	answer      func(*events.Command) (events.Message, error) // nil: 7 entries deleted
}

// clock is the firewalls' monotonic clock: it has nothing to do with ours.
func clock() int64 { return int64(time.Since(epoch)) + int64(5*time.Hour) }

var epoch = time.Now()

// report publishes the firewall's health, and waits until it is kept.
func (r *rig) report(f *firewall) {
	r.t.Helper()
	f.health = events.Health{Firewall: f.name, Realm: f.realm, Boot: f.boot, Sent: clock(), Table: f.table}
	if err := r.conn.PublishMessage(r.t.Context(), events.HealthSubject(f.name), "", &f.health); err != nil {
		r.t.Fatal(err)
	}
}

// join makes a firewall report, and answer commands.
func (r *rig) join(f *firewall) *firewall {
	r.t.Helper()
	if f.realm == "" {
		f.realm = events.RealmDefault
	}
	if f.boot == "" {
		f.boot = "boot-of-" + f.name
	}
	stop, err := r.conn.Serve(bus.Service{Name: "ct-producer", Endpoints: []bus.Endpoint{{
		Name: events.VerbFlush, Subject: events.CommandSubject(f.name, events.VerbFlush), Handle: func(req bus.Request) (events.Message, error) {
			var c events.Command
			if err := events.Unmarshal(req.Data, &c); err != nil {
				r.t.Errorf("%s: %v", f.name, err)
				return nil, err
			}
			life := time.Duration(c.Expires - clock())
			if c.Firewall != f.name || c.Boot != f.boot || life <= 0 || life > commandLife+time.Second {
				r.t.Errorf("%s: a command that a guard would refuse: %+v, to live for %s", f.name, c, life)
			}
			r.mu.Lock()
			r.cmds[f.name] = append(r.cmds[f.name], c)
			r.seen = append(r.seen, "command "+f.name)
			r.mu.Unlock()
			if f.answer != nil {
				return f.answer(&c)
			}
			return &events.Receipt{ID: c.ID, Firewall: f.name, Verb: c.Verb, Actor: c.Actor, Addresses: c.Addresses, Matched: 7, Deleted: 7, Refused: []events.Refusal{}}, nil
		},
	}}})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(stop)
	r.report(f)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(500 * time.Millisecond):
				h := f.health
				h.Sent = clock()
				if err := r.conn.Send(events.HealthSubject(f.name), &h); err != nil {
					r.t.Errorf("%s: %v", f.name, err)
				}
			}
		}
	})
	r.t.Cleanup(func() { cancel(); wg.Wait() })
	return f
}

// run starts a responder and waits until it works.
func (r *rig) run(file policy.File) (stop func()) {
	r.t.Helper()
	return r.runWith(file, nil)
}

func (r *rig) runWith(file policy.File, notifier *notify.Notifier) (stop func()) {
	r.t.Helper()
	resp, err := New(file, Dependencies{Bus: bus.Config{Server: r.server}, Signer: r.signer, Trust: r.trust, Notifier: notifier, Log: slog.New(slog.DiscardHandler), Registry: prometheus.NewRegistry()})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := resp.Run(ctx); err != nil {
			r.t.Errorf("responder: %v", err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.t.Cleanup(stop)
	return stop
}

// working waits until the responders' consumer exists: alerts before it are
// history.
func (r *rig) working() {
	r.t.Helper()
	r.until("the consumer", func() bool {
		_, err := r.conn.JS.Consumer(r.t.Context(), bus.StreamAlerts, durable)
		return err == nil
	})
}

// fire publishes an alert as an aggregator does.
func (r *rig) fire(a *events.Alert) {
	r.t.Helper()
	r.publish(events.AlertSubject(a.State, a.Rule, a.Scope, events.SubjectKey(netip.MustParsePrefix(a.Key+"/32"))), a)
}

func (r *rig) publish(subject string, a *events.Alert) {
	r.t.Helper()
	if err := r.conn.PublishMessage(r.t.Context(), subject, "", a); err != nil {
		r.t.Fatal(err)
	}
}

// alert is one through fw-a and fw-b, of its own id.
func alert(id, key string, change func(*events.Alert)) *events.Alert {
	a := &events.Alert{
		ID: id, Rule: "flood", State: events.Firing, Severity: "critical", Scope: events.ScopeFleet, Realm: events.RealmDefault, Key: key, Track: "by_src", Metric: "new",
		Value: 200, Count: 100, Seconds: 10, Started: 1000, Updated: 1000, Firewalls: map[string]float64{"fw-a": 90, "fw-b": 110}, Text: "flood: " + key + " opened 200 flows",
	}
	if change != nil {
		change(a)
	}
	return a
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(3 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("waited in vain for %s; decisions %+v, commands %+v", what, r.decs, r.cmds)
		}
	}
}

// decisions waits for n decisions and returns them.
func (r *rig) decisions(n int) []events.Decision {
	r.t.Helper()
	r.until("decisions", func() bool { r.mu.Lock(); defer r.mu.Unlock(); return len(r.decs) >= n })
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.decs) > n {
		r.t.Errorf("%d decisions, want %d: %+v", len(r.decs), n, r.decs)
	}
	return slices.Clone(r.decs)
}

func (r *rig) decisionsSoFar() []events.Decision {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.decs)
}

func (r *rig) commands(firewall string) []events.Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.cmds[firewall])
}

// settled waits until every alert so far is decided upon: a last one, which
// every policy here declines, has its record.
func (r *rig) settled(id string) {
	r.t.Helper()
	r.fire(alert(id, "198.18.99.99", func(a *events.Alert) { a.Simulated, a.Firewalls = true, nil }))
	r.until("the last alert", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return slices.ContainsFunc(r.decs, func(d events.Decision) bool { return d.Alert == id })
	})
	r.mu.Lock()
	r.decs = slices.DeleteFunc(r.decs, func(d events.Decision) bool { return d.Alert == id })
	r.mu.Unlock()
}

func enforce(change func(*policy.File)) policy.File {
	f := policy.Default()
	f.Mode = policy.Enforce
	f.Budget = policy.Budget{} // no limit
	f.Policies = []policy.Policy{{Rule: "flood", Unanswered: policy.UnansweredDelete}}
	if change != nil {
		change(&f)
	}
	return f
}

//go:build linux

package aggregator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// rig is a fleet of virtual firewalls with producers, a NATS server on a file
// store, and as many aggregators as a test starts.
type rig struct {
	t      *testing.T
	lab    *lab.Lab
	server *embedded.Server
	conn   *bus.Conn
	log    *slog.Logger

	mu     sync.Mutex
	alerts []events.Alert
}

func newRig(t *testing.T, firewalls ...string) *rig {
	t.Helper()
	var spec lab.Spec
	for _, name := range firewalls {
		spec.Firewalls = append(spec.Firewalls, lab.FirewallSpec{Name: name, IPv6: true, Sysctls: map[string]string{
			"net.netfilter.nf_conntrack_events": "1", "net.netfilter.nf_conntrack_udp_timeout": "300",
		}})
	}
	r := &rig{t: t, lab: labtest.New(t, spec), log: slog.New(slog.NewTextHandler(testLog{t}, nil))}
	var err error
	if r.server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.server.Close)
	if r.conn, err = bus.Connect(bus.Config{Server: r.server, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.conn.Close)
	if _, err := r.conn.Bootstrap(t.Context(), bus.DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	r.run("alerts", func(ctx context.Context) error {
		return r.conn.Follow(ctx, bus.StreamAlerts, bus.FollowFrom{All: true}, func(m bus.Msg) {
			var a events.Alert
			if err := events.Unmarshal(m.Data, &a); err != nil {
				if m.Subject != foreignAlert {
					t.Errorf("%s: %v", m.Subject, err)
				}
				return
			}
			if alertSubject(&a) != m.Subject {
				t.Errorf("alert on %s belongs on %s", m.Subject, alertSubject(&a))
			}
			r.mu.Lock()
			r.alerts = append(r.alerts, a)
			r.mu.Unlock()
		})
	})
	return r
}

// run starts a role that the test stops at its end, or by the function
// returned.
func (r *rig) run(what string, fn func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := fn(ctx); err != nil && !errors.Is(err, context.Canceled) {
			r.t.Errorf("%s: %v", what, err)
		}
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(stop)
	return stop
}

func (r *rig) producer(name string, opt producer.Options) (*producer.Producer, func()) {
	r.t.Helper()
	opt.Name, opt.Trust, opt.Linger, opt.RingBytes, opt.BufferBytes = name, "none", 5*time.Millisecond, 32<<20, 32<<20
	if opt.Realm == "" {
		opt.Realm = events.RealmDefault
	}
	p, err := producer.New(opt, producer.Dependencies{Bus: bus.Config{Flags: bus.Flags{NATSURL: r.server.URL()}}, Namespace: r.lab.Firewall(name).NS, Log: r.log})
	if err != nil {
		r.t.Fatal(err)
	}
	return p, r.run("producer "+name, p.Run)
}

func (r *rig) aggregator(rules ...rule.Rule) (*Aggregator, func()) {
	r.t.Helper()
	a, err := New(Options{MaxKeys: 1 << 20}, rule.File{Rules: rules, MaxFiring: 100}, Dependencies{
		Bus: bus.Config{Flags: bus.Flags{NATSURL: r.server.URL()}}, Log: r.log, Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	stop := r.run("aggregator", a.Run)
	r.until("the aggregator to be ready", func() bool { return a.Ready() == nil })
	return a, stop
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (r *rig) flood(fw string, f traffic.Flood) {
	r.t.Helper()
	rep, err := f.Run(r.t.Context(), r.lab.Firewall(fw))
	if err != nil || rep.Sent != f.Count {
		r.t.Errorf("flood through %s: sent %d of %d: %v", fw, rep.Sent, f.Count, err)
	}
}

func (r *rig) top(a *Aggregator, q events.TopQuery) map[string]uint64 {
	r.t.Helper()
	q.WindowS = 60
	reply, err := a.Top(&q)
	if err != nil {
		r.t.Fatal(err)
	}
	out := map[string]uint64{}
	for _, row := range reply.Rows {
		out[row.Key] = row.Value
	}
	return out
}

func (r *rig) fired(rule string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.alerts {
		if r.alerts[i].Rule == rule {
			n++
		}
	}
	return n
}

// foreignAlert is where TestForeignBytes publishes what is no alert.
var foreignAlert = events.AlertSubject(events.Firing, "foreign", "fleet", "y")

func newFlows(name string, count float64, seconds int) rule.Rule {
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds = name, rule.BySrc, rule.New, count, seconds
	r.Recover = time.Second
	return r
}

func udp(source string, first, count int, rate float64) traffic.Flood {
	return traffic.Flood{Protocol: 17, Sources: netip.MustParsePrefix(source), Destinations: lab.ServerPrefix4, DestinationCount: 10, Port: 53, First: first, Count: count, Rate: rate}
}

// TestCountsAreExact sends a known number of flows through two firewalls and
// asks for them by source and by destination, in the fleet and on each, now and
// of an aggregator that starts late.
func TestCountsAreExact(t *testing.T) {
	r := newRig(t, "fw-a", "fw-b")
	r.producer("fw-a", producer.Options{})
	r.producer("fw-b", producer.Options{})
	a, stop := r.aggregator()
	const n = 3000
	r.flood("fw-a", udp("198.18.0.1/32", 0, n, 0))
	r.flood("fw-b", udp("198.18.0.1/32", 0, n/2, 0))
	r.flood("fw-b", traffic.Flood{Protocol: 6, Sources: netip.MustParsePrefix("2001:db8:18::7/128"), Destinations: lab.ServerPrefix6, DestinationCount: 10, Port: 443, Count: n})
	check := func(a *Aggregator, who string) {
		t.Helper()
		want := map[string]map[string]uint64{
			"src, fleet": {"198.18.0.1": n + n/2, "2001:db8:18::7": n},
			"src, fw-a":  {"198.18.0.1": n},
			"src, fw-b":  {"198.18.0.1": n / 2, "2001:db8:18::7": n},
		}
		queries := map[string]events.TopQuery{"src, fleet": {}, "src, fw-a": {Firewall: "fw-a"}, "src, fw-b": {Firewall: "fw-b"}}
		for _, metric := range []string{events.MetricNew, events.MetricActive} {
			for name, q := range queries {
				q.Metric = metric
				r.until(fmt.Sprintf("%s: %s by %s: %v (it is %v)", who, metric, name, want[name], r.top(a, q)), func() bool {
					got := r.top(a, q)
					return fmt.Sprint(got) == fmt.Sprint(want[name])
				})
			}
			byDst := r.top(a, events.TopQuery{By: events.ByDst, Metric: metric})
			if len(byDst) != 20 || byDst["203.0.113.0"] != n/10+n/20 || byDst["2001:db8:113::"] != n/10 {
				t.Errorf("%s: %s by destination: %v", who, metric, byDst)
			}
		}
		for _, f := range a.Firewalls().Firewalls {
			if f.Lost+f.Missing+f.Refused != 0 || f.State != events.StateFresh || f.Rivals {
				t.Errorf("%s: %s: %+v", who, f.Firewall, f)
			}
		}
	}
	check(a, "the first")
	late, _ := r.aggregator()
	check(late, "a second one, started late")
	stop()
	check(late, "the second one, alone")
}

// TestFleetAlert crosses a threshold through two firewalls, each below it.
func TestFleetAlert(t *testing.T) {
	r := newRig(t, "fw-a", "fw-b")
	r.producer("fw-a", producer.Options{})
	r.producer("fw-b", producer.Options{})
	single := newFlows("one-firewall", 1000, 10)
	single.Scope = rule.Firewall
	_, stop := r.aggregator(newFlows("fleet-wide", 1000, 3), single)
	var wg sync.WaitGroup
	for _, fw := range []string{"fw-a", "fw-b"} {
		wg.Go(func() { r.flood(fw, udp("198.18.0.9/32", 0, 500, 1000)) })
	}
	wg.Wait()
	r.until("the alert", func() bool { return r.fired("fleet-wide") > 0 })
	r.mu.Lock()
	al := r.alerts[0]
	r.mu.Unlock()
	if al.State != events.Firing || al.Key != "198.18.0.9" || al.Value != 1000 || al.Firewalls["fw-a"] != 500 || al.Firewalls["fw-b"] != 500 || al.Scope != "fleet" || al.Lossy || al.Stale {
		t.Errorf("alert: %+v", al)
	}
	if n := r.fired("one-firewall"); n != 0 {
		t.Errorf("a rule for one firewall fired %d times", n)
	}
	// A restarted aggregator takes over what fires and does not fire it again.
	stop()
	a, _ := r.aggregator(newFlows("fleet-wide", 1000, 3), single)
	if got, err := a.Alerts(t.Context(), &events.AlertsQuery{}); err != nil || len(got.Alerts) != 1 || got.Alerts[0].ID != al.ID {
		t.Errorf("adopted: %+v, %v", got, err)
	}
	r.until("its end", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.alerts[len(r.alerts)-1].State == events.Resolved
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range r.alerts {
		if r.alerts[i].ID != al.ID {
			t.Errorf("one breach made a second alert: %+v", r.alerts[i])
		}
	}
}

// TestOutage stops NATS under steady traffic for 5 s and for 20 s. Every event
// is accounted for, as counted or as lost, and what waited does not look like
// an attack when it comes.
func TestOutage(t *testing.T) {
	for _, outage := range []time.Duration{5 * time.Second, 20 * time.Second} {
		t.Run(outage.String(), func(t *testing.T) {
			t.Parallel()
			r := newRig(t, "fw-a")
			p, _ := r.producer("fw-a", producer.Options{})
			const rate = 2000
			seconds := int(outage/time.Second) + 6
			// The truth within any 3 s is 3×rate: more means that events were
			// moved in time.
			a, _ := r.aggregator(newFlows("burst", 3.2*rate, 3))
			var wg sync.WaitGroup
			wg.Go(func() { r.flood("fw-a", udp("198.18.0.3/32", 0, rate*seconds, rate)) })
			time.Sleep(2 * time.Second)
			r.server.Stop()
			time.Sleep(outage)
			if err := r.server.Start(); err != nil {
				t.Fatal(err)
			}
			wg.Wait()
			account := func() (counted, lost uint64) {
				f := a.Firewalls().Firewalls[0]
				return f.Events, f.Stream.Lost() + f.Missing
			}
			r.until("every event", func() bool { n, lost := account(); return n+lost == uint64(rate*seconds) })
			counted, lost := account()
			t.Logf("%d counted, %d lost of %d", counted, lost, rate*seconds)
			if lost != 0 {
				t.Errorf("%d events were lost, although the ring (%s) holds them", lost, p.Boot())
			}
			if n := r.fired("burst"); n != 0 {
				t.Errorf("the outage made %d alerts", n)
			}
		})
	}
}

// TestForeignBytes publishes what is no message of ours on every subject, and
// checks that it is counted and harms nothing.
func TestForeignBytes(t *testing.T) {
	r := newRig(t, "fw-a")
	r.producer("fw-a", producer.Options{})
	a, _ := r.aggregator()
	var w events.BatchWriter
	if err := w.Append(&events.Event{Type: events.New, Proto: 17, Orig: events.Tuple{Src: events.Addr{Lo: 1}, Dst: events.Addr{Lo: 2}}}); err != nil {
		t.Fatal(err)
	}
	good, err := w.Encode(&events.Header{Firewall: "fw-b", Realm: events.RealmDefault})
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{events.EventsSubject("fw-a"), events.SnapshotsSubject("fw-a"), events.HealthSubject("fw-a"), events.SubjectPace,
		events.EventsSubject("fleet"), foreignAlert, events.AuditSubject("fw-a", "flush")} {
		for _, data := range [][]byte{nil, []byte("hello"), {0xc1}, good, good[:len(good)/2], []byte("\x81\xa1v\x02")} {
			if err := r.conn.NC.Publish(subject, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.until("the refusals to be counted", func() bool {
		f := a.Firewalls().Firewalls
		return len(f) == 1 && f[0].Refused == 12
	})
	r.flood("fw-a", udp("198.18.0.1/32", 0, 100, 0))
	r.until("counting to go on", func() bool { return r.top(a, events.TopQuery{})["198.18.0.1"] == 100 })
}

// TestTwoProducersWithOneName starts a second producer under a name in use.
func TestTwoProducersWithOneName(t *testing.T) {
	r := newRig(t, "fw-a", "fw-b")
	r.producer("fw-a", producer.Options{})
	a, _ := r.aggregator()
	p, err := producer.New(producer.Options{Name: "fw-a", Realm: events.RealmDefault, Trust: "none", Linger: 5 * time.Millisecond, RingBytes: 1 << 20, BufferBytes: 1 << 20},
		producer.Dependencies{Bus: bus.Config{Flags: bus.Flags{NATSURL: r.server.URL()}}, Namespace: r.lab.Firewall("fw-b").NS, Log: r.log})
	if err != nil {
		t.Fatal(err)
	}
	r.run("rival", p.Run)
	var wg sync.WaitGroup
	wg.Go(func() { r.flood("fw-a", udp("198.18.0.1/32", 0, 3000, 600)) })
	wg.Go(func() { r.flood("fw-b", udp("198.18.0.2/32", 0, 3000, 600)) })
	r.until("the alarm", func() bool { return r.fired("two-producers") > 0 })
	wg.Wait()
	if f := a.Firewalls().Firewalls; len(f) != 1 || !f[0].Rivals {
		t.Errorf("inventory: %+v", f)
	}
}

// TestRealms: the same address in two realms is two addresses.
func TestRealms(t *testing.T) {
	r := newRig(t, "fw-a", "fw-b")
	r.producer("fw-a", producer.Options{Realm: "lisbon"})
	r.producer("fw-b", producer.Options{Realm: "porto"})
	a, _ := r.aggregator(newFlows("sum", 150, 10))
	r.flood("fw-a", udp("198.18.0.1/32", 0, 100, 0))
	r.flood("fw-b", udp("198.18.0.1/32", 0, 101, 0))
	r.until("both", func() bool {
		return r.top(a, events.TopQuery{Realm: "lisbon"})["198.18.0.1"] == 100 && r.top(a, events.TopQuery{Realm: "porto"})["198.18.0.1"] == 101
	})
	if n := r.fired("sum"); n != 0 {
		t.Error("an alert summed over two realms")
	}
}

// TestSilentFirewall stops a producer without a good-bye: it must not read as
// zero flows.
func TestSilentFirewall(t *testing.T) {
	r := newRig(t, "fw-a", "fw-b")
	r.producer("fw-a", producer.Options{})
	_, stop := r.producer("fw-b", producer.Options{})
	a, _ := r.aggregator()
	state := func(name string) string {
		for _, f := range a.Firewalls().Firewalls {
			if f.Firewall == name {
				return f.State
			}
		}
		return ""
	}
	r.until("both to be fresh", func() bool { return state("fw-a") == events.StateFresh && state("fw-b") == events.StateFresh })
	stop()
	r.until("the good-bye", func() bool { return state("fw-b") == events.StateStopped })
	a.mu.Lock()
	a.fleet["fw-b"].seen = time.Now().Add(-2 * forgetStopped)
	a.mu.Unlock()
	r.until("the stopped one to be forgotten", func() bool { return state("fw-b") == "" })
	a.mu.Lock()
	a.fleet["fw-a"].seen = time.Now().Add(-time.Hour) // until its next report
	a.mu.Unlock()
	if top, err := a.Top(&events.TopQuery{}); err != nil || len(top.Stale) != 1 || top.Stale[0] != "fw-a" || !slices.Equal(top.Windows, []int{10, 60}) {
		t.Errorf("stale: %+v, %v", top, err)
	}
}

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// serveEnv names, in the environment of this test's program, the configuration of a NATS server
// that it is to be, in the directory where that is: a process of its own can be killed.
const serveEnv = "TEST_SERVE_NATS"

func serve(conf string) int {
	opts, err := server.ProcessConfigFile(conf)
	if err == nil {
		var s *server.Server
		if s, err = server.NewServer(opts); err == nil {
			s.ConfigureLogger()
			s.Start()
			s.WaitForShutdown()
			return 0
		}
	}
	fmt.Fprintln(os.Stderr, err)
	return 1
}

// cluster is three servers as deploy/nats/cluster.conf has them, on loopback, with the keys and
// permissions that `ctfleet auth` makes.
type cluster struct {
	t       testing.TB
	dir     string // of the keys
	urls    string
	servers []*natsServer
}

type natsServer struct {
	name, monitor string
	env           []string
	cmd           *exec.Cmd
	log           output
}

func newCluster(t testing.TB, firewalls int) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: filepath.Join(t.TempDir(), "fleet")}
	c.tool(nil, "auth", "init", c.dir)
	for i := range firewalls {
		c.tool(nil, "auth", "add-firewall", fmt.Sprint("fw-", i), "--dir", c.dir)
	}
	conf, err := os.ReadFile("../../deploy/nats/cluster.conf")
	if err == nil {
		err = os.WriteFile(filepath.Join(c.dir, "cluster.conf"), conf, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	var urls, routes []string
	for i := range 3 {
		s := &natsServer{name: fmt.Sprint("nats-", i+1), monitor: freePort(t)}
		client, route := freePort(t), freePort(t)
		urls, routes = append(urls, "tls://"+client), append(routes, "tls://"+route)
		s.env = []string{
			serveEnv + "=cluster.conf", "NATS_SERVER_NAME=" + s.name, "NATS_LISTEN=" + client, "NATS_CLUSTER_LISTEN=" + route, "NATS_HTTP=" + s.monitor, "NATS_STORE=" + t.TempDir(),
		}
		c.servers = append(c.servers, s)
	}
	c.urls = strings.Join(urls, ",")
	for _, s := range c.servers {
		s.env = append(s.env, "NATS_ROUTES=["+strings.Join(routes, ", ")+"]")
		c.start(s)
		t.Cleanup(func() { c.kill(s) })
	}
	return c
}

func (c *cluster) start(s *natsServer) {
	c.t.Helper()
	s.cmd = exec.Command(os.Args[0])
	s.cmd.Dir, s.cmd.Env, s.cmd.Stdout, s.cmd.Stderr = c.dir, environment(s.env...), &s.log, &s.log
	if err := s.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

// kill is a power cut.
func (c *cluster) kill(s *natsServer) {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // killed, which is an error
	if c.t.Failed() {
		c.t.Logf("%s:\n%s", s.name, s.log.String())
	}
}

// env is what a program of this identity is told.
func (c *cluster) env(identity ...string) []string {
	f := c.flags(identity...)
	return []string{"NATS_URL=" + f.NATSURL, "NATS_NKEY=" + f.NATSNKey, "NATS_CA=" + f.NATSCA, "NATS_CERT=" + f.NATSCert, "NATS_KEY=" + f.NATSKey}
}

func (c *cluster) flags(identity ...string) bus.Flags {
	dir := filepath.Join(append([]string{c.dir}, identity...)...)
	in := func(name string) string { return filepath.Join(dir, name) }
	return bus.Flags{NATSURL: c.urls, NATSNKey: in("nats.nk"), NATSCA: in("ca.pem"), NATSCert: in("cert.pem"), NATSKey: in("key.pem")}
}

func (c *cluster) tool(env []string, args ...string) string {
	c.t.Helper()
	r := call{env: env}.run(c.t, "ctfleet", args...)
	if r.code != 0 {
		c.t.Fatalf("ctfleet %q: %+v", args, r)
	}
	return r.stdout
}

func (c *cluster) connect(role string, identity ...string) *bus.Conn {
	c.t.Helper()
	conn, err := bus.Connect(bus.Config{Flags: c.flags(identity...), Role: role, Patient: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(conn.Close)
	return conn
}

// leader is the server that leads a stream.
func (c *cluster) leader(conn *bus.Conn, stream string) *natsServer {
	c.t.Helper()
	s, err := conn.JS.Stream(c.t.Context(), stream)
	if err != nil {
		c.t.Fatal(err)
	}
	for _, srv := range c.servers {
		if info := s.CachedInfo().Cluster; info != nil && info.Leader == srv.name {
			return srv
		}
	}
	c.t.Fatalf("nobody leads %s: %+v", stream, s.CachedInfo().Cluster)
	return nil
}

// whole reports whether each stream has all its replicas, up to date.
func (c *cluster) whole(conn *bus.Conn) bool {
	for _, name := range bus.StreamNames() {
		s, err := conn.JS.Stream(c.t.Context(), name)
		if err != nil || s.CachedInfo().Cluster == nil || len(s.CachedInfo().Cluster.Replicas) != 2 {
			return false
		}
		for _, r := range s.CachedInfo().Cluster.Replicas {
			if !r.Current || r.Offline {
				return false
			}
		}
	}
	return true
}

// watcher keeps what is said of alerts, and when it came.
type watcher struct {
	mu     sync.Mutex
	alerts []events.Alert
	came   map[string]time.Time // by key: the first that fires
}

func watch(t *testing.T, conn *bus.Conn) *watcher {
	w := &watcher{came: map[string]time.Time{}}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		_ = conn.Follow(ctx, bus.StreamAlerts, bus.FollowFrom{All: true}, func(m bus.Msg) {
			var a events.Alert
			if err := events.Unmarshal(m.Data, &a); err != nil {
				t.Error(err)
				return
			}
			w.mu.Lock()
			defer w.mu.Unlock()
			w.alerts = append(w.alerts, a)
			if _, ok := w.came[a.Key]; !ok {
				w.came[a.Key] = time.Now()
			}
		})
	})
	t.Cleanup(func() { cancel(); done.Wait() })
	return w
}

func (w *watcher) fired(key string) (at time.Time, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok = w.came[key]
	return at, ok
}

// commands keeps the flushes that firewalls are asked for. They delete nothing and say so.
type commands struct {
	mu  sync.Mutex
	got map[string][]string // ids by firewall and address
}

func (c *commands) serve(t *testing.T, conn *bus.Conn, firewall string) {
	t.Helper()
	stop, err := conn.Serve(bus.Service{Name: "ct-producer", Endpoints: []bus.Endpoint{{
		Name: events.VerbFlush, Subject: events.CommandSubject(firewall, events.VerbFlush), Handle: func(r bus.Request) (events.Message, error) {
			var cmd events.Command
			if err := events.Unmarshal(r.Data, &cmd); err != nil {
				return nil, err
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			key := firewall + " " + strings.Join(cmd.Addresses, " ")
			c.got[key] = append(c.got[key], cmd.ID)
			return &events.Receipt{ID: cmd.ID, Firewall: firewall, Verb: cmd.Verb, Actor: cmd.Actor, Addresses: cmd.Addresses, Refused: []events.Refusal{}}, nil
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

// of returns the ids that came for an address, by firewall, the same one once.
func (c *commands) of(firewall, address string) map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	ids := map[string]bool{}
	for _, id := range c.got[firewall+" "+address] {
		ids[id] = true
	}
	return ids
}

// source is the address of an attack.
func source(n int) (text string, addr events.Addr) {
	ip := netip.AddrFrom4([4]byte{192, 0, 2, byte(n)})
	addr, _ = events.FromNetip(ip)
	return ip.String(), addr
}

// The window is longer than an election takes, 4 to 9 s: what happened before it would otherwise
// be past when it is counted.
const clusterRules = "rules:\n  - {name: flood, track: by_src, metric: new, count: 500, seconds: 20, recover: 0s, severity: critical}\n"

// repetition is after how many ms what fires on is said again, and change when its value is
// another: 15 s and 1 s, and less by a tick, which may have come earlier at one aggregator than
// at another.
const repetition, change = 14_900, 900

// TestCluster kills the server of a cluster that leads the stream of events, under load, and
// starts it again: events and alerts go on, none is lost, and the server catches up.
func TestCluster(t *testing.T) {
	t.Parallel()
	const firewalls, rate = 5, 400
	c := newCluster(t, firewalls)
	conn := c.connect("operator", "operator")
	bootstrap := call{env: c.env("bootstrap")}
	if r := bootstrap.run(t, "ctfleet", "bootstrap", "--wait", "30s"); r.code != 0 {
		t.Fatalf("bootstrap: %+v", r)
	}
	if r := bootstrap.run(t, "ctfleet", "bootstrap", "--replicas", "3"); r.code != 1 || !strings.Contains(r.stderr, "CT_EVENTS, CT_SNAPSHOTS, CT_LAST: made for one server") {
		t.Errorf("streams that cannot be replicated: %+v", r)
	}
	if r := bootstrap.run(t, "ctfleet", "bootstrap", "--replicas", "3", "--anew", "--wait", "30s"); r.code != 0 {
		t.Fatalf("bootstrap with replicas: %+v", r)
	}
	until(t, "the replicas", func() bool { return c.whole(conn) })
	if r := bootstrap.run(t, "ctfleet", "bootstrap", "-o", "raw"); r.code != 0 || r.stdout != "" {
		t.Errorf("bootstrap of what is there changes it: %+v", r)
	}

	agg := call{env: c.env("aggregator")}.start(t, "aggregator", "--listen", "127.0.0.1:0", "--rules", file(t, "rules.yaml", clusterRules))
	url := agg.says(&agg.stderr, `msg=serving url=(http://[0-9.:]+)`)
	agg.until("it to be ready", func() bool { code, _ := get(t, url+"/readyz"); return code == 200 })
	policy := "mode: enforce\nbudget: {addresses_per_minute: 0, table_percent: 0}\npolicies: [{rule: flood, action: flush, unanswered: delete}]\n"
	resp := call{env: c.env("responder")}.start(t, "responder", "--policy", file(t, "policy.yaml", policy), "--metrics-listen", "127.0.0.1:0",
		"--sign-key", filepath.Join(c.dir, "responder", "sign.nk"), "--trust", filepath.Join(c.dir, "responder", "trust.yaml"))
	resp.until("it to be ready", func() bool {
		code, _ := get(t, resp.says(&resp.stderr, `msg=metrics url=(http://[0-9.:]+)`)+"/readyz")
		return code == 200
	})
	cmds := &commands{got: map[string][]string{}}
	for i := range firewalls {
		name := fmt.Sprint("fw-", i)
		cmds.serve(t, c.connect("producer", "firewalls", name), name)
	}
	w := watch(t, conn)
	fleet, err := synth.NewFleet(synth.FleetConfig{
		Firewalls: firewalls, Rate: rate, Sources: 100, Open: 200, Linger: 10 * time.Millisecond, Bus: bus.Config{Patient: true}, Log: slog.New(slog.DiscardHandler),
		Identify: func(name string) bus.Flags { return c.flags("firewalls", name) },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := fleet.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer running.Wait()
	defer cancel()

	var began []time.Time
	attack := func(n int) { // that many, four a second
		for range n {
			_, addr := source(len(began))
			began = append(began, time.Now())
			fleet.Attack(len(began)%firewalls, addr, 600)
			time.Sleep(250 * time.Millisecond)
		}
	}
	attack(8)
	killed := c.leader(conn, bus.StreamEvents)
	cut := time.Now()
	c.kill(killed)
	first, _ := source(len(began))
	until(t, "alerts to go on without it", func() bool {
		attack(1)
		_, goesOn := w.fired(first)
		return goesOn
	})
	attack(4)
	c.start(killed)
	attack(4)
	fleet.Rest(true)
	until(t, "the server that was killed to catch up", func() bool { return c.whole(conn) })

	interruption := time.Duration(0)
	for n, at := range began {
		key, _ := source(n)
		until(t, "the alert about "+key, func() bool { _, ok := w.fired(key); return ok })
		came, _ := w.fired(key)
		took := came.Sub(at)
		interruption = max(interruption, took)
		if testing.Verbose() {
			t.Logf("attack %d, %s after the cut: its alert after %s", n, at.Sub(cut).Round(time.Millisecond), took.Round(time.Millisecond))
		}
	}
	t.Logf("the longest from an attack to its alert: %s", interruption.Round(time.Millisecond))
	until(t, "all events to be counted", func() bool { counted, _ := counts(t, url); return counted == fleet.Totals().Made })
	if _, lost := counts(t, url); lost != 0 || fleet.Totals().Lost != 0 {
		t.Errorf("%d events lost, and %d by the firewalls", lost, fleet.Totals().Lost)
	}
	for n := range began {
		key, _ := source(n)
		firewall := fmt.Sprint("fw-", (n+1)%firewalls)
		until(t, "the command about "+key, func() bool { return len(cmds.of(firewall, key)) > 0 })
	}
	ids := w.onceEach(t)
	if len(ids) != len(began) {
		t.Errorf("%d alerts of %d attacks", len(ids), len(began))
	}
	for n := range began {
		key, _ := source(n)
		if got := cmds.of(fmt.Sprint("fw-", (n+1)%firewalls), key); len(got) != 1 {
			t.Errorf("commands about %s: %v, want one", key, got)
		}
	}
}

// BenchmarkCluster publishes to the stream of events of a cluster, batches as producers send them, with as many
// in flight as one producer has: what a second carries.
func BenchmarkCluster(b *testing.B) {
	const size = 8 << 10
	for _, limits := range []bus.Limits{{Replicas: 1}, {Replicas: 1, Memory: true}, {Replicas: 3}, {Replicas: 3, Memory: true}} {
		limits.EventsAge, limits.EventsBytes = time.Hour, 128<<20
		name := fmt.Sprintf("replicas=%d/memory=%t", limits.Replicas, limits.Memory)
		b.Run(name, func(b *testing.B) {
			c := newCluster(b, 1)
			conn := c.connect("ctfleet", "bootstrap")
			until(b, "the streams", func() bool {
				_, err := conn.Bootstrap(b.Context(), limits, true)
				return err == nil
			})
			pub, err := c.connect("producer", "firewalls", "fw-0").NewPublisher(events.EventsSubject("fw-0"))
			if err != nil {
				b.Fatal(err)
			}
			defer pub.Close()
			data := make([]byte, size)
			flying, sent := 0, uint64(0)
			ack := func() {
				if r, ok := pub.Result(<-pub.Acks()); !ok || r.Err != nil {
					b.Fatalf("not kept: %+v", r)
				}
				flying--
			}
			b.SetBytes(size)
			for b.Loop() {
				for flying >= bus.MaxInFlight {
					ack()
				}
				sent++
				if err := pub.Publish(sent, fmt.Sprint("fw-0:bench:", sent), data); err != nil {
					b.Fatal(err)
				}
				flying++
			}
			for flying > 0 {
				ack()
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s")
		})
	}
}

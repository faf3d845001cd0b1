//go:build linux

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// fleet is two virtual firewalls and a NATS server that programs reach by TCP.
type fleet struct {
	t      *testing.T
	lab    *lab.Lab
	server *embedded.Server
	conn   *bus.Conn
	call   // with the server, whom to trust, and the operator's key in its environment

	keys, trust string   // the folder of the keys, and the trust file
	bus         []string // how the operator connects, in its environment: without a key to sign with
	auth        string   // what auth init made; "": the server asks nobody who he is
	trespass    bool     // somebody will ask for what he is not permitted
	servers     int      // that talk to clients
}

// key makes a key that the trust file names.
func (f *fleet) key(name string, args ...string) {
	f.t.Helper()
	if r := f.run(f.t, "ctfleet", append([]string{"auth", "key", f.seed(name), "--name", name, "--trust", f.trust}, args...)...); r.code != 0 {
		f.t.Fatalf("auth key: %+v", r)
	}
}

func (f *fleet) seed(name string) string {
	if made := filepath.Join(f.auth, name, "sign.nk"); f.auth != "" {
		if _, err := os.Stat(made); err == nil {
			return made
		}
	}
	return filepath.Join(f.keys, name+".nk")
}

// responder starts one, with a key of its own.
func (f *fleet) responder(policy string, args ...string) *process {
	f.t.Helper()
	p := f.start(f.t, "responder", append([]string{"--policy", file(f.t, "policy.yaml", policy), "--sign-key", f.seed("responder"), "--metrics-listen", "127.0.0.1:0"}, args...)...)
	p.until("it to be ready", func() bool {
		code, _ := get(f.t, p.says(&p.stderr, `msg=metrics url=(http://[0-9.:]+)`)+"/readyz")
		return code == 200
	})
	return p
}

// as is the environment of a program that connects as somebody: a service, or firewalls/NAME.
func (f *fleet) as(who string) []string {
	if f.auth == "" {
		return f.bus
	}
	at := func(name string) string { return filepath.Join(f.auth, who, name) }
	return []string{"NATS_URL=" + f.server.URL(), "NATS_NKEY=" + at("nats.nk"), "NATS_CA=" + at("ca.pem"), "NATS_CERT=" + at("cert.pem"), "NATS_KEY=" + at("key.pem")}
}

// with is the fleet's environment, and more that wins over it.
func (f *fleet) with(env ...string) call { return call{env: append(slices.Clone(f.env), env...)} }

// start starts a program as who it is; ctfleet is the operator.
func (f *fleet) start(t *testing.T, program string, args ...string) *process {
	t.Helper()
	c := f.call
	switch program {
	case "aggregator", "responder":
		c = f.with(f.as(program)...)
	case "producer":
		c = f.with(f.as("firewalls/" + args[slices.Index(args, "--name")+1])...)
	}
	return c.start(t, program, args...)
}

// bootstrap makes the streams.
func (f *fleet) bootstrap() {
	f.t.Helper()
	if r := f.with(f.as("bootstrap")...).run(f.t, "ctfleet", "bootstrap"); r.code != 0 {
		f.t.Fatalf("bootstrap: %+v", r)
	}
}

// secureFleet is a fleet as it is deployed: keys, certificates, and a server that lets each do what its
// role needs.
func secureFleet(t *testing.T, firewalls ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, lab: newLab(t, firewalls), auth: t.TempDir()}
	addr := freePort(t)
	ctfleet := func(args ...string) {
		t.Helper()
		if r := f.run(t, "ctfleet", args...); r.code != 0 {
			t.Fatalf("%q: %+v", args, r)
		}
	}
	ctfleet("auth", "init", f.auth, "--listen", addr, "--monitor", "none")
	for _, name := range firewalls {
		ctfleet("auth", "add-firewall", name, "--dir", f.auth)
	}
	var log output
	var err error
	if f.server, err = embedded.Start(embedded.Config{File: filepath.Join(f.auth, "nats.conf"), Log: slog.New(slog.NewTextHandler(&log, nil))}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		f.server.Close()
		// Nobody may ask for what it is not permitted, even where it would get on without.
		if i := strings.Index(log.String(), "Violation"); i >= 0 && !f.trespass {
			t.Errorf("the server refused something:\n%s", log.String())
		}
	})
	f.keys, f.trust = t.TempDir(), filepath.Join(f.auth, "trust.yaml")
	f.bus = f.as("operator")
	f.env = append(slices.Clone(f.bus), "CTFLEET_TRUST="+f.trust, "CTFLEET_SIGN_KEY="+f.seed("operator"))
	f.conn = f.connection("analyst")
	return f
}

// connection is one of this test's own, as somebody: a service, or firewalls/NAME.
func (f *fleet) connection(who string) *bus.Conn {
	f.t.Helper()
	flags := bus.Flags{NATSURL: f.server.URL()}
	if f.auth != "" {
		at := func(name string) string { return filepath.Join(f.auth, who, name) }
		flags.NATSNKey, flags.NATSCA, flags.NATSCert, flags.NATSKey = at("nats.nk"), at("ca.pem"), at("cert.pem"), at("key.pem")
	}
	conn, err := bus.Connect(bus.Config{Flags: flags, Role: "operator"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(conn.Close)
	return conn
}

// newFleet is one whose server lets everybody do everything.
func newFleet(t *testing.T, firewalls ...string) *fleet {
	t.Helper()
	f := &fleet{t: t, lab: newLab(t, firewalls)}
	var err error
	if f.server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.server.Close)
	f.keys = t.TempDir()
	f.trust = filepath.Join(f.keys, "trust.yaml")
	f.bus = []string{"NATS_URL=" + f.server.URL()}
	f.env = f.bus
	f.key("operator", "--role", "operator")
	f.key("responder", "--role", "responder")
	f.env = append(slices.Clone(f.bus), "CTFLEET_TRUST="+f.trust, "CTFLEET_SIGN_KEY="+f.seed("operator"))
	f.conn = f.connection("")
	return f
}

// newLab is the firewalls.
func newLab(t *testing.T, firewalls []string) *lab.Lab {
	t.Helper()
	var spec lab.Spec
	for _, name := range firewalls {
		spec.Firewalls = append(spec.Firewalls, lab.FirewallSpec{Name: name, IPv6: true, Sysctls: map[string]string{
			"net.netfilter.nf_conntrack_events": "1", "net.netfilter.nf_conntrack_udp_timeout": "300",
		}})
	}
	return labtest.New(t, spec)
}

// producer starts the agent of a firewall and waits until it has taken stock.
func (f *fleet) producer(firewall string, args ...string) *process {
	f.t.Helper()
	p := f.start(f.t, "producer", append([]string{"--name", firewall, "--netns", f.lab.Firewall(firewall).NS.Path()}, args...)...)
	p.says(&p.stderr, `(resynced)`)
	return p
}

// aggregator starts the centre and returns the URL of its API.
func (f *fleet) aggregator(args ...string) (*process, string) {
	f.t.Helper()
	p := f.start(f.t, "aggregator", append([]string{"--listen", "127.0.0.1:0"}, args...)...)
	url := p.says(&p.stderr, `msg=serving url=(http://[0-9.:]+)`)
	p.until("it to be ready", func() bool { code, _ := get(f.t, url+"/readyz"); return code == 200 })
	return p, url
}

// flood sends new flows of one source through a firewall.
func (f *fleet) flood(firewall, source string, first, count int) {
	f.t.Helper()
	src, servers := netip.MustParseAddr(source), lab.ServerPrefix4
	if src.Is6() {
		servers = lab.ServerPrefix6
	}
	rep, err := traffic.Flood{
		Protocol: 17, Sources: netip.PrefixFrom(src, src.BitLen()), Destinations: servers, DestinationCount: 10, Port: 53, First: first, Count: count,
	}.Run(f.t.Context(), f.lab.Firewall(firewall))
	if err != nil || rep.Sent != count || rep.Lost != 0 {
		f.t.Fatalf("flood through %s: sent %d of %d, lost %d: %v", firewall, rep.Sent, count, rep.Lost, err)
	}
}

// topAnswer is the shape that scripts depend on.
type topAnswer struct {
	By      string   `json:"by"`
	Metric  string   `json:"metric"`
	WindowS int      `json:"window_s"`
	Scope   string   `json:"scope"`
	Rows    []topRow `json:"rows"`
}

type topRow struct {
	Key       string            `json:"key"`
	Value     uint64            `json:"value"`
	Firewalls map[string]uint64 `json:"firewalls"`
}

func (f *fleet) top(args ...string) topAnswer {
	f.t.Helper()
	r := f.run(f.t, "ctfleet", append([]string{"top", "--once", "-o", "json"}, args...)...)
	if r.code != 0 {
		f.t.Fatalf("top %q: exit code %d: %s", args, r.code, r.stderr)
	}
	return parse[topAnswer](f.t, r.stdout)
}

// becomes waits until top says what is expected, and says what it says instead.
func (f *fleet) becomes(want topAnswer, args ...string) {
	f.t.Helper()
	var got topAnswer
	ok := func() bool { got = f.top(args...); return fmt.Sprint(got) == fmt.Sprint(want) }
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			f.t.Fatalf("top %q:\n%+v, want\n%+v", args, got, want)
		}
	}
}

// receiptsAnswer is what flush prints.
type receiptsAnswer struct {
	ID       string
	Receipts []struct {
		Firewall    string
		Matched     uint64
		Deleted     uint64
		Gone        *uint64
		Refused     []events.Refusal
		TableBefore uint64   `json:"table_before"`
		TableAfter  uint64   `json:"table_after"`
		DurationMS  *float64 `json:"duration_ms"`
		TCPLoose    *bool    `json:"tcp_loose"`
		Error       string
	}
}

// stored returns the messages of a stream so far.
func (f *fleet) stored(stream string) (out []bus.Msg) {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 10*time.Second)
	defer cancel()
	err := f.conn.Follow(ctx, stream, bus.FollowFrom{All: true}, func(m bus.Msg) {
		out = append(out, m)
		if m.Pending == 0 {
			cancel()
		}
	})
	if err != nil {
		f.t.Fatal(err)
	}
	return out
}

const (
	attacker = "198.18.66.1"
	ordinary = "198.18.1.1"
)

const fleetRules = `rules:
  - name: new-flows-by-source
    track: by_src
    metric: new
    count: 600
    seconds: 60
    severity: critical
`

const fleetPolicy = `mode: enforce
policies:
  - rule: new-flows-by-source
    action: flush
    unanswered: delete
allowlist: [198.18.200.0/24]
`

//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"path/filepath"
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

	keys, trust string // the folder of the keys, and the trust file
	servers     int    // that talk to clients
}

// key makes a key that the trust file names.
func (f *fleet) key(name string, args ...string) {
	f.t.Helper()
	if r := f.run(f.t, "ctfleet", append([]string{"auth", "key", f.seed(name), "--name", name, "--trust", f.trust}, args...)...); r.code != 0 {
		f.t.Fatalf("auth key: %+v", r)
	}
}

func (f *fleet) seed(name string) string { return filepath.Join(f.keys, name+".nk") }

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

func newFleet(t *testing.T, firewalls ...string) *fleet {
	t.Helper()
	var spec lab.Spec
	for _, name := range firewalls {
		spec.Firewalls = append(spec.Firewalls, lab.FirewallSpec{Name: name, IPv6: true, Sysctls: map[string]string{
			"net.netfilter.nf_conntrack_events": "1", "net.netfilter.nf_conntrack_udp_timeout": "300",
		}})
	}
	f := &fleet{t: t, lab: labtest.New(t, spec)}
	var err error
	if f.server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.server.Close)
	f.keys = t.TempDir()
	f.trust = filepath.Join(f.keys, "trust.yaml")
	f.env = []string{"NATS_URL=" + f.server.URL()}
	f.key("operator", "--role", "operator")
	f.key("responder", "--role", "responder")
	f.env = append(f.env, "CTFLEET_TRUST="+f.trust, "CTFLEET_SIGN_KEY="+f.seed("operator"))
	if f.conn, err = bus.Connect(bus.Config{Flags: bus.Flags{NATSURL: f.server.URL()}, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.conn.Close)
	return f
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

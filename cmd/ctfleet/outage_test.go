//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestNATSComesLate: a producer keeps what it reads while the bus is away, says
// so, and delivers it when the bus comes; what its ring cannot hold is counted.
func TestNATSComesLate(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a", "fw-b")
	if r := f.run(t, "ctfleet", "bootstrap"); r.code != 0 {
		t.Fatalf("bootstrap: %+v", r)
	}
	f.server.Stop()
	start := func(name string, ring int) *process {
		p := f.start(t, "producer", "--name", name, "--netns", f.lab.Firewall(name).NS.Path(), "--ring-bytes", fmt.Sprint(ring))
		p.says(&p.stderr, `level=WARN msg="(NATS is unreachable, retrying)"`)
		return p
	}
	pa, pb := start("fw-a", 64<<20), start("fw-b", 1<<20)
	url := pa.says(&pa.stderr, `msg=metrics url=(http://[0-9.:]+)`)
	if code, body := get(t, url+"/readyz"); code != 503 || !strings.Contains(body, "not ready: no connection to NATS") {
		t.Errorf("readyz without NATS: %d %s", code, body)
	}
	const kept, tooMany = 3000, 60_000
	f.flood("fw-a", ordinary, 0, kept)
	rep, err := traffic.Flood{
		Protocol: 17, Sources: netip.MustParsePrefix(ordinary + "/32"), Destinations: lab.ServerPrefix4, DestinationCount: 2, Port: 53, Count: tooMany, Rate: 30_000,
	}.Run(t.Context(), f.lab.Firewall("fw-b"))
	if err != nil || rep.Sent != tooMany {
		t.Fatalf("flood: %+v, %v", rep, err)
	}
	read := func(p *process, n int) {
		t.Helper()
		url := p.says(&p.stderr, `msg=metrics url=(http://[0-9.:]+)`)
		p.until(fmt.Sprintf("%d events to be read", n), func() bool {
			_, body := get(t, url+"/metrics")
			total := 0
			for line := range strings.Lines(body) {
				for _, name := range []string{"ctfleet_events_total{", "ctfleet_socket_lost_events_total{"} {
					var v float64
					if _, rest, found := strings.Cut(line, "} "); found && strings.HasPrefix(line, name) {
						if _, err := fmt.Sscan(rest, &v); err == nil {
							total += int(v)
						}
					}
				}
			}
			return total >= n
		})
	}
	read(pa, kept)
	read(pb, tooMany-rep.Lost)
	if err := f.server.Start(); err != nil {
		t.Fatal(err)
	}
	for _, p := range []*process{pa, pb} {
		p.says(&p.stderr, `msg="(connected to NATS)`)
	}
	f.aggregator()
	value := func(fw string) uint64 {
		rows := f.top("--window", "60s", "--firewall", fw).Rows
		if len(rows) != 1 {
			return 0
		}
		return rows[0].Value
	}
	until(t, "fw-a's flows", func() bool { return value("fw-a") == kept })
	var counted, lost uint64
	until(t, "fw-b's flows, counted or lost", func() bool {
		counted = value("fw-b")
		for _, fw := range f.firewalls() {
			if fw.Firewall == "fw-b" {
				lost = fw.Lost
			}
			if fw.Firewall == "fw-a" && fw.Lost+fw.Missing != 0 {
				t.Fatalf("fw-a lost %d, missing %d, want none", fw.Lost, fw.Missing)
			}
		}
		return counted+lost == uint64(tooMany-rep.Lost)
	})
	if lost == 0 || counted < 20_000 {
		t.Errorf("of %d events %d were counted and %d lost, want the 1 MiB that the ring holds, and no more", tooMany, counted, lost)
	}
	pa.stop()
	pb.stop()
}

// TestStoppedProducer stops a producer while more flows begin than its socket's
// buffer holds: what it heard and what it reports as lost are all of them, and
// after the resync that follows active is what the table holds.
func TestStoppedProducer(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a")
	f.aggregator()
	p := f.producer("fw-a", "--buffer-bytes", fmt.Sprint(1<<20))
	status := func() (fw events.FirewallStatus) {
		if list := f.firewalls(); len(list) == 1 {
			fw = list[0]
		}
		return fw
	}
	until(t, "the first resync to be counted", func() bool { return status().ActiveKnown })
	before := status()
	if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	const flows = 10_000
	f.flood("fw-a", attacker, 0, flows)
	if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	var fw events.FirewallStatus
	until(t, "the resync after the loss", func() bool {
		fw = status()
		return fw.Stream.Resyncs > before.Stream.Resyncs && fw.Active >= flows && !fw.Approximate
	})
	if heard := fw.Events - before.Events; fw.Lost == 0 || heard == 0 || heard+fw.Lost != flows || fw.Missing != 0 {
		t.Errorf("%d events heard, %d lost, %d missing, want some of both, and %d together", heard, fw.Lost, fw.Missing, flows)
	}
	if fw.Active != flows {
		t.Errorf("%d flows are active, want %d", fw.Active, flows)
	}
}

// TestStopWithoutNATS: no daemon hangs on a bus that never came.
func TestStopWithoutNATS(t *testing.T) {
	t.Parallel()
	ns := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}}).Firewall("fw-a").NS
	c := call{env: []string{"NATS_URL=nats://127.0.0.1:1"}}
	daemons := []*process{
		c.start(t, "producer", "--name", "fw-a", "--netns", ns.Path()),
		c.start(t, "aggregator", "--listen", "127.0.0.1:0"),
		c.start(t, "responder"),
	}
	for _, p := range daemons {
		p.says(&p.stderr, `level=WARN msg="(NATS is unreachable, retrying)" .*server=.*127\.0\.0\.1:1`)
	}
	for _, p := range daemons {
		p.stop()
	}
}

// TestRivalsAndForeignBytes: two producers with one name, and bytes that are
// none of ours on every subject. All is counted and shown, nothing breaks.
func TestRivalsAndForeignBytes(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a", "fw-b")
	_, api := f.aggregator()
	resp := f.start(t, "responder")
	resp.says(&resp.stderr, `(waiting for alerts)`)
	f.producer("fw-a")
	f.flood("fw-a", ordinary, 0, 200)

	batch := func() []byte {
		for _, m := range f.stored(bus.StreamEvents) {
			return m.Data
		}
		return nil
	}
	until(t, "a batch", func() bool { return len(batch()) > 0 })
	whole := batch()
	newer := append([]byte(nil), whole...)
	at := strings.Index(string(newer), "\xa1v") + 2 // the key "v" and its value, a small number
	newer[at] = 0x7f
	foreign := [][]byte{{}, []byte("hello"), {0xc1}, whole[:len(whole)/2], newer, append(append([]byte(nil), whole...), 0), binary.BigEndian.AppendUint32([]byte{0xdd}, 1<<31)}
	subjects := []string{"ct.v1.events.fw-a", "ct.v1.snapshots.fw-a", "ct.v1.health.fw-a", "ct.v1.pace", "ct.v1.cmd.fw-a.flush", "ct.v1.cmd.fw-a.resync", "ct.v1.query.top",
		events.AlertSubject(events.Firing, "foreign", "fleet", "198-18-1-1"), "ct.v1.audit.fw-a.flush", "ct.v1.events.fw-nosuch"}
	for _, subject := range subjects {
		for _, data := range foreign {
			if err := f.conn.NC.Publish(subject, data); err != nil {
				t.Fatal(err)
			}
		}
	}
	until(t, "the refused messages to be counted", func() bool {
		for _, fw := range f.firewalls() {
			if fw.Firewall == "fw-a" {
				return fw.Refused >= uint64(2*len(foreign))
			}
		}
		return false
	})
	f.flood("fw-a", ordinary, 200, 100)
	f.becomes(topAnswer{By: "src", Metric: "new", WindowS: 60, Scope: "fleet", Rows: []topRow{{ordinary, 300, map[string]uint64{"fw-a": 300}}}}, "--window", "60s")
	if code, _ := get(t, api+"/readyz"); code != 200 {
		t.Errorf("the aggregator is not ready any more: %d", code)
	}
	if r := f.run(t, "ctfleet", "audit", "list", "-o", "json"); r.code != 0 || strings.Contains(r.stdout, "receipt") || strings.Contains(r.stdout, "decision") || strings.Count(r.stderr, "refused a message") != len(foreign) {
		t.Errorf("audit with foreign bytes in it: %+v", r)
	}
	if !resp.running() {
		t.Error("the responder died of foreign bytes")
	}

	// Another one of the same name, on another table.
	rival := f.start(t, "producer", "--name", "fw-a", "--netns", f.lab.Firewall("fw-b").NS.Path())
	rival.says(&rival.stderr, `(resynced)`)
	for i := 0; ; i++ {
		f.flood("fw-a", ordinary, 300+10*i, 10)
		f.flood("fw-b", ordinary, 300+10*i, 10)
		if fw := f.firewalls()[0]; fw.Rivals && fw.Boots >= 2 {
			break
		}
		if i == 100 {
			t.Fatalf("two producers are not noticed: %+v", f.firewalls())
		}
		time.Sleep(50 * time.Millisecond)
	}
	if r := f.run(t, "ctfleet", "firewalls"); !strings.Contains(r.stdout, "two-producers-with-this-name") {
		t.Errorf("firewalls with rivals: %+v", r)
	}
	until(t, "the alarm about two producers", func() bool {
		return strings.Contains(f.run(t, "ctfleet", "alerts", "-o", "raw").stdout, "two-producers\tfw-a\ttable")
	})
}

// TestPortInUse says so, at once.
func TestPortInUse(t *testing.T) {
	t.Parallel()
	f := newFleet(t)
	addr := f.server.Addr()
	program(t, "aggregator") // built before time is taken
	for _, args := range []string{"aggregator --listen " + addr, "responder --metrics-listen " + addr, "ctfleet demo --listen " + addr,
		"aggregator --embedded-nats --listen 127.0.0.1:0 --embedded-dir " + t.TempDir() + " --nats-listen " + addr} {
		begin := time.Now()
		words := strings.Fields(args)
		r := f.run(t, words[0], words[1:]...)
		if r.code != 1 || !strings.Contains(r.stderr, addr) || !strings.Contains(r.stderr, "address already in use") || time.Since(begin) > 5*time.Second {
			t.Errorf("%s: %s later: %+v", args, time.Since(begin).Round(time.Millisecond), r)
		}
	}
}

// TestUp is one host's whole set in one process, and top in another.
func TestUp(t *testing.T) {
	t.Parallel()
	var ns *host.Namespace
	fw := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}}).Firewall("fw-a")
	ns = fw.NS
	dir := t.TempDir()
	up := call{}.start(t, "ctfleet", "up", "--name", "fw-a", "--netns", ns.Path(), "--dir", dir, "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0",
		"--rules", file(t, "rules.yaml", fleetRules))
	api := up.says(&up.stdout, `Page: +(http://[0-9.:]+)/`)
	up.says(&up.stderr, `(resynced)`)
	up.until("it to be ready", func() bool { code, _ := get(t, api+"/readyz"); return code == 200 })
	path := up.says(&up.stdout, `NATS_URL=\$\(cat (.*)\) ctfleet top`)
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%s: %v, %v", path, info, err)
	}
	url, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if filepath.Dir(path) != dir || strings.Contains(up.stdout.String()+up.stderr.String(), strings.TrimSpace(string(url))) {
		t.Errorf("the URL with its password is shown:\n%s%s", up.stdout.String(), up.stderr.String())
	}
	rep, err := traffic.Flood{Protocol: 6, Sources: netip.MustParsePrefix(ordinary + "/32"), Destinations: lab.ServerPrefix4, DestinationCount: 5, Port: 443, Count: 500}.Run(t.Context(), fw)
	if err != nil || rep.Sent != 500 {
		t.Fatalf("flood: %+v, %v", rep, err)
	}
	f := &fleet{t: t, call: call{env: []string{"NATS_URL=" + strings.TrimSpace(string(url))}}}
	f.becomes(topAnswer{By: "src", Metric: "new", WindowS: 60, Scope: "fleet", Rows: []topRow{{ordinary, 500, map[string]uint64{"fw-a": 500}}}}, "--window", "60s")
	// It never implies --allow-flush.
	if r := f.run(t, "ctfleet", "flush", ordinary, "-y", "-o", "json"); r.code != 3 || !strings.Contains(r.stdout, `{"reason":"not-enabled","count":0}`) {
		t.Errorf("flush without --allow-flush: %+v", r)
	}
	if r := (call{}).run(t, "ctfleet", "top", "--once", "--nats-url", strings.Replace(string(url), "ctfleet:", "ctfleet:x", 1)); r.code != 1 || !strings.Contains(r.stderr, "Authorization Violation") {
		t.Errorf("top with a wrong password: %+v", r)
	}
	up.stop()
}

package main

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// serviceManager hears what a daemon with Type=notify says.
type serviceManager struct {
	socket string

	mu   sync.Mutex
	said []string
}

func newServiceManager(t *testing.T) *serviceManager {
	t.Helper()
	m := &serviceManager{socket: filepath.Join(t.TempDir(), "notify")}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := conn.Read(buf)
			if err != nil {
				return // closed
			}
			m.mu.Lock()
			m.said = append(m.said, string(buf[:n]))
			m.mu.Unlock()
		}
	}()
	return m
}

// env is what a service manager sets for a daemon with WatchdogSec=1.
func (m *serviceManager) env() []string {
	return []string{"NOTIFY_SOCKET=" + m.socket, "WATCHDOG_USEC=1000000"}
}

// heard counts what begins so.
func (m *serviceManager) heard(prefix string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.said {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// hangup asks a daemon to read its files again.
func (p *process) hangup() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		p.t.Fatal(err)
	}
}

func rewrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestLife is the life of the daemons under a service manager: started before there is
// a bus, ready when they work, told to read other files, and stopped.
func TestLife(t *testing.T) {
	t.Parallel()
	f := newFleet(t, "fw-a")
	f.server.Stop()
	bare := f.env
	managers := map[string]*serviceManager{}
	under := func(name string) {
		managers[name] = newServiceManager(t)
		f.env = append(slices.Clone(bare), managers[name].env()...)
	}
	rules, policy, flags := file(t, "rules.yaml", fleetRules), file(t, "policy.yaml", "mode: observe\n"), file(t, "producer.yaml", "protect: [198.18.200.1]\n")
	under("producer")
	producer := f.start(t, "producer", "--name", "fw-a", "--netns", f.lab.Firewall("fw-a").NS.Path(), "--config", flags, "--allow-flush", "--metrics-listen", "127.0.0.1:0")
	under("aggregator")
	aggregator := f.start(t, "aggregator", "--rules", rules, "--listen", "127.0.0.1:0")
	under("responder")
	responder := f.start(t, "responder", "--policy", policy, "--sign-key", f.seed("responder"), "--metrics-listen", "127.0.0.1:0")
	f.env = bare
	daemons := map[string]*process{"producer": producer, "aggregator": aggregator, "responder": responder}
	for name, m := range managers {
		until(t, name+" says what it waits for", func() bool {
			return m.heard("STATUS=waiting: no connection to NATS") > 0
		})
	}
	until(t, "a beat of each", func() bool {
		return managers["producer"].heard("WATCHDOG=1") > 0 && managers["aggregator"].heard("WATCHDOG=1") > 0 && managers["responder"].heard("WATCHDOG=1") > 0
	})
	// A boot does not wait for the bus.
	for name, m := range managers {
		until(t, name+" counts as started", func() bool { return m.heard("READY=1\nSTATUS=waiting: no connection to NATS") == 1 })
	}
	if err := f.server.Start(); err != nil {
		t.Fatal(err)
	}
	for name, m := range managers {
		until(t, name+" is ready", func() bool { return m.heard("STATUS=ready") > 0 })
	}

	metrics := map[string]string{
		"producer": producer.says(&producer.stderr, `msg=metrics url=(http://[0-9.:]+)`), "responder": responder.says(&responder.stderr, `msg=metrics url=(http://[0-9.:]+)`),
		"aggregator": aggregator.says(&aggregator.stderr, `msg=serving url=(http://[0-9.:]+)`),
	}
	reloads := func(name, outcome string, want string) {
		t.Helper()
		until(t, name+" has reloaded", func() bool {
			_, body := get(t, metrics[name]+"/metrics")
			return strings.Contains(body, "\nctfleet_reloads_total{outcome=\""+outcome+"\"} "+want+"\n")
		})
	}
	// Good ones, bad ones, and the good ones again.
	good := map[string]string{
		rules: strings.ReplaceAll(fleetRules, "600", "500"), policy: fleetPolicy, flags: "protect: [198.18.200.1, 198.18.201.0/24]\n",
	}
	of := map[string]string{"aggregator": rules, "responder": policy, "producer": flags}
	for name, p := range daemons {
		rewrite(t, of[name], "\nno: such key\n")
		p.hangup()
		reloads(name, "refused", "1")
		p.says(&p.stderr, `reload refused: what was in force stays so" error="[^"]*\.yaml:2[^\n]*unknown key`)
		rewrite(t, of[name], good[of[name]])
		p.hangup()
		reloads(name, "applied", "1")
		// Its manager is told after the metric has risen.
		m := managers[name]
		until(t, name+": its manager to hear of both", func() bool { return m.heard("RELOADING=1\nMONOTONIC_USEC=") == 2 && m.heard("READY=1") == 3 })
	}
	// What is in force, and what the audit says of it.
	f.flood("fw-a", attacker, 0, 500)
	until(t, "the alert of the new threshold", func() bool {
		return strings.Contains(f.run(t, "ctfleet", "alerts", "list").stdout, attacker)
	})
	until(t, "the flush of the new policy", func() bool {
		return strings.Contains(f.run(t, "ctfleet", "audit", "list").stdout, "matched 500, deleted 500")
	})
	if r := f.run(t, "ctfleet", "flush", "198.18.201.7", "--yes"); r.code != 3 || !strings.Contains(r.stdout+r.stderr, "protected") {
		t.Errorf("what is protected since: %+v", r)
	}
	r := f.run(t, "ctfleet", "audit", "list", "-o", "json")
	for actor, want := range map[string][2]string{
		events.ActorAggregator: {config.Digest([]byte(fleetRules)), config.Digest([]byte(good[rules]))},
		events.ActorResponder:  {config.Digest([]byte("mode: observe\n")), config.Digest([]byte(fleetPolicy))},
		"fw-a":                 {},
	} {
		list := parse[audit.List](t, r.stdout).Entries
		i := slices.IndexFunc(list, func(e audit.Entry) bool { return e.Actor == actor && e.Verb == events.VerbReload })
		if i < 0 {
			t.Errorf("no reload of %s in the audit: %s", actor, r.stdout)
			continue
		}
		a := list[i].Act
		if want[0] != "" && (a.Before != want[0] || a.After != want[1]) || a.Before == a.After || a.After == "" {
			t.Errorf("%s: %+v, want %v", actor, a, want)
		}
	}
	versions := f.run(t, "ctfleet", "version", "--fleet", "-o", "raw")
	for _, want := range []string{"aggregator\t", "responder\t", "producer\tfw-a\t"} {
		if strings.Count(versions.stdout, want) != 1 || strings.Contains(versions.stdout, "behind") {
			t.Errorf("versions: %+v", versions)
		}
	}
	for _, name := range []string{"producer", "responder", "aggregator"} {
		daemons[name].stop()
		until(t, name+" says that it stops", func() bool { return managers[name].heard("STOPPING=1") == 1 })
	}
}

// TestUpReloads: all roles in one process read all their files, or none of them.
func TestUpReloads(t *testing.T) {
	t.Parallel()
	ns := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}}).Firewall("fw-a").NS
	rules, policy, flags := file(t, "rules.yaml", fleetRules), file(t, "policy.yaml", "mode: observe\n"), file(t, "up.yaml", "protect: [198.18.200.1]\n")
	m := newServiceManager(t)
	p := call{env: m.env()}.start(t, "ctfleet", "up", "--name", "fw-a", "--netns", ns.Path(), "--dir", t.TempDir(), "--listen", "127.0.0.1:0", "--nats-listen", "127.0.0.1:0",
		"--rules", rules, "--policy", policy, "--config", flags)
	p.until("it to be ready", func() bool { return m.heard("READY=1") == 1 })
	rewrite(t, rules, strings.ReplaceAll(fleetRules, "600", "500"))
	rewrite(t, policy, "mode: enforced\n")
	p.hangup()
	p.says(&p.stderr, `(reload refused[^\n]*policy.yaml:1:7)`)
	if s := p.stderr.String(); strings.Contains(s, "other rules are in force") {
		t.Errorf("half of it is in force:\n%s", s)
	}
	rewrite(t, policy, fleetPolicy)
	rewrite(t, flags, "protect: [198.18.201.0/24]\n")
	p.hangup()
	for _, said := range []string{`(other rules are in force)`, `(mode enforce, policies: 1, instead of)`, `(another configuration is in force)`} {
		p.says(&p.stderr, said)
	}
	time.Sleep(time.Second) // which is two beats
	if m.heard("WATCHDOG=1") == 0 {
		t.Error("no beat")
	}
	p.stop()
}

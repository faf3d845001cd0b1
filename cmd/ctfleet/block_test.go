//go:build linux

package main

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

// TestBlock: what an operator blocks makes no entry, on the firewalls that permit it
// and for those who may; it outlives the producer, and ends when it is told to.
func TestBlock(t *testing.T) {
	t.Parallel()
	const bad, good = "198.18.0.66", "198.18.0.67"
	f := secureFleet(t, "fw-a", "fw-b")
	f.bootstrap()
	options := []string{"--allow-flush", "--allow-block", "--metrics-listen", "127.0.0.1:0"}
	f.key("flusher", "--verbs", "flush")
	a := f.producer("fw-a", options...)
	f.producer("fw-b", "--allow-flush", "--metrics-listen", "none")
	do := func(code int, want string, args ...string) result {
		t.Helper()
		r := f.run(t, "ctfleet", args...)
		if r.code != code || !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("%q: exit code %d, %s%s, want %d and %q", args, r.code, r.stdout, r.stderr, code, want)
		}
		return r
	}
	// holds is what the table has of an address.
	holds := func(address, want string) {
		t.Helper()
		until(t, address+" to have "+want+" entries", func() bool { // a producer that was just started may not have read the allowlist
			return strings.Contains(f.run(t, "ctfleet", "flush", address, "--dry-run", "--firewall", "fw-a", "-o", "json").stdout, `"matched":`+want+`,"deleted":0,"gone":0,"refused":[]`)
		})
	}
	f.flood("fw-a", bad, 0, 10)
	do(3, `"reason":"not-enabled"`, "block", "add", bad, "--for", "10m", "-y", "--firewall", "fw-b", "-o", "json")
	do(3, `"reason":"not-for-verb"`, "block", "add", bad, "--for", "10m", "-y", "--firewall", "fw-a", "-o", "json", "--sign-key", f.seed("flusher"))
	unsigned := call{env: f.bus}
	if r := unsigned.run(t, "ctfleet", "block", "add", bad, "--for", "10m", "-y", "--firewall", "fw-a"); r.code != 3 || !strings.Contains(r.stdout, "unsigned") {
		t.Errorf("unsigned: %+v", r)
	}
	do(3, "a block cannot go round it", "block", "add", "192.0.2.0/24", "--for", "1m", "-y", "--firewall", "fw-a")
	do(3, "before their zone is known", "block", "add", bad, "--for", "1m", "-y", "--firewall", "fw-a", "--realm", "default_z7")
	do(0, "dry run: nothing was blocked", "block", "add", bad, "--for", "10m", "--dry-run", "--firewall", "fw-a")
	do(0, `{"firewalls":[{"firewall":"fw-a","allow_block":true,"blocked":[],"blocked_more":0},{"firewall":"fw-b","allow_block":false,"blocked":[],"blocked_more":0}]}`, "block", "list", "-o", "json")

	// One blocks, the other says why it does not.
	r := do(3, "fw-a      10m0s        10       10       0", "block", "add", bad, "--for", "10m", "--flush", "-y", "--reason", "a test")
	if !strings.Contains(r.stdout, "without --allow-block") {
		t.Errorf("of fw-b it says nothing: %s", r.stdout)
	}
	do(0, "fw-a      198.18.0.66  in 9m5", "block", "list")
	do(0, `"blocked":[{"prefix":"198.18.0.66","left_s":5`, "block", "list", "--firewall", "fw-a", "-o", "json")
	f.flood("fw-a", bad, 10, 10)
	f.flood("fw-a", good, 0, 10)
	holds(bad, "0")
	holds(good, "10")
	_, metrics := get(t, a.says(&a.stderr, `msg=metrics url=(http://[0-9.:]+)`)+"/metrics")
	for _, want := range []string{`ctfleet_blocked_prefixes_total{firewall="fw-a"} 1`, `ctfleet_flush_refused_total{firewall="fw-a",reason="unsigned"} 1`} {
		if !strings.Contains(metrics, want) {
			t.Errorf("there is no %s among its metrics", want)
		}
	}

	// It goes on without the producer, which finds it again.
	a.stop()
	do(1, "fw-a: no answer: its producer is not connected", "block", "list", "--firewall", "fw-a")
	do(1, "no answer: its producer is not connected", "block", "add", good, "--for", "1m", "-y", "--firewall", "fw-a")
	f.flood("fw-a", bad, 20, 10)
	f.producer("fw-a", options...)
	holds(bad, "0")
	do(0, "fw-a      198.18.0.66  in 9m", "block", "list", "--firewall", "fw-a")

	do(0, "dry run: no block was ended", "block", "delete", bad, "--firewall", "fw-a", "--dry-run")
	do(0, "fw-a      1          ", "block", "delete", bad, "--firewall", "fw-a", "-y")
	do(0, "it was not blocked", "block", "delete", bad, "--firewall", "fw-a", "-y")
	f.flood("fw-a", bad, 30, 10)
	holds(bad, "10")
	for _, want := range []string{"198.18.0.66: blocked until ", "matched 10, deleted 10, gone 0", "operator (operator): a test", "198.18.0.66: unblocked", "198.18.0.66: it was not blocked", "not blocked, matched 0, deleted 0, gone 0, refused unsigned"} {
		do(0, want, "audit", "list", "--address", bad)
	}
	t.Run("at a terminal", func(t *testing.T) { f.testBlockAsks(t) })
}

// testBlockAsks sits at a terminal: nothing but a yes blocks.
func (f *fleet) testBlockAsks(t *testing.T) {
	for typed, blocked := range map[string]string{"n\n": `"blocked":[]`, "y\n": `"prefix":"2001:db8:18::66"`} {
		keyboard, tty := openTerminal(t)
		p := f.startWith(t, tty, "ctfleet", "block", "add", "2001:db8:18::66", "--for", "90s", "--firewall", "fw-a")
		p.says(&p.stderr, `dry run: nothing was blocked\s+(Block 2001:db8:18::66 for 1m30s on 1 firewalls\? \[y/N\])`)
		if _, err := keyboard.WriteString(typed); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.ended:
		case <-time.After(stopTime):
			t.Fatalf("after %q it still waits", typed)
		}
		if r := f.run(t, "ctfleet", "block", "list", "--firewall", "fw-a", "-o", "json"); !strings.Contains(r.stdout, blocked) {
			t.Errorf("after %q: %s%s", typed, r.stdout, r.stderr)
		}
		f.run(t, "ctfleet", "block", "delete", "2001:db8:18::66", "--firewall", "fw-a", "-y")
	}
}

// TestFlushTells: what came back, and what a flush was kept to.
func TestFlushTells(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a", "fw-b")
	f.bootstrap()
	for _, name := range []string{"fw-a", "fw-b"} {
		f.producer(name, "--allow-flush", "--metrics-listen", "none")
	}
	const client = "198.18.0.66"
	flush := func(code int, want string, args ...string) {
		t.Helper()
		r := f.run(t, "ctfleet", append([]string{"flush", "-y", "-o", "json"}, args...)...)
		if r.code != code || !strings.Contains(r.stdout, want) {
			t.Errorf("flush %q: exit code %d, %s%s, want %d and %s", args, r.code, r.stdout, r.stderr, code, want)
		}
	}
	f.flood("fw-b", client, 0, 40)
	flush(0, `"most":3,"matched":4,"deleted":3,"gone":0,"refused":[{"reason":"over-budget","count":1}]`, client, "--towards", "203.0.113.0", "--most", "3", "--firewall", "fw-b")
	flush(0, `"towards":"203.0.113.0/30","matched":13,"deleted":13`, client, "--towards", "203.0.113.0/30", "--firewall", "fw-b")
	flush(3, `"reason":"malformed"`, client, "--towards", "2001:db8::1", "--firewall", "fw-b")

	// Two conversations go on through one firewall, what was sent through the other
	// has ended.
	if err := f.lab.Firewall("fw-a").SetSysctl("net.netfilter.nf_conntrack_tcp_loose", "1"); err != nil {
		t.Fatal(err)
	}
	talkers, err := traffic.Start(t.Context(), f.lab.Firewall("fw-a"), traffic.Talk{
		Clients: []netip.Addr{netip.MustParseAddr(client)}, Servers: traffic.Addresses(lab.ServerPrefix4, 1), Kept: 1, Interval: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer talkers.Close()
	begin := time.Now()
	// By either side: an echo under way may come first, and makes an entry of which
	// the server is the source.
	r := f.run(t, "ctfleet", "flush", client, "--by", "either", "-y", "--wait", "-o", "raw")
	lines := strings.Split(r.stdout, "\n")
	if len(lines) < 3 || !strings.HasPrefix(lines[1], "fw-a\t2\t2\t0\t2\t") || !strings.HasPrefix(lines[2], "fw-b\t24\t24\t0\t0\t") || r.code != 0 || r.stderr != "" {
		t.Errorf("--wait: %+v", r)
	}
	if took := time.Since(begin); took < 2*time.Second || took > 6*time.Second {
		t.Errorf("--wait took %s", took)
	}
	begin = time.Now()
	flush(0, `"residual":null`, "198.18.0.99", "--wait")
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("where nothing was deleted, --wait took %s", took)
	}
}

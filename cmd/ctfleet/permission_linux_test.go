package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

// requireRoot skips, or fails, as labtest does, where this process is not root
// of the host: root of a user namespace cannot become another user.
func requireRoot(t *testing.T) {
	t.Helper()
	labtest.Require(t)
	users, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 && slices.Equal(strings.Fields(string(users)), []string{"0", "0", "4294967295"}) {
		return
	}
	labtest.Lacks(t, "root of the host")
}

// TestWithoutPermission runs the producer as a user who may not.
func TestWithoutPermission(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	weak := call{as: nobody, dir: "/"}
	r := weak.run(t, "producer", "--name", "fw-a", "--metrics-listen", "none")
	if r.code != 1 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, "CAP_NET_ADMIN") || !strings.Contains(r.stderr, "watch the connection table") {
		t.Errorf("producer as nobody: %+v", r)
	}
	r = weak.run(t, "producer", "--name", "fw-a", "--check")
	if r.code != 1 || !strings.Contains(r.stdout, "FATAL") || !strings.Contains(r.stdout, "CAP_NET_ADMIN") {
		t.Errorf("producer --check as nobody: %+v", r)
	}
	dir := t.TempDir()
	if err := errors.Join(os.Chmod(filepath.Dir(dir), 0o755), os.Chown(dir, int(nobody.Credential.Uid), -1)); err != nil {
		t.Fatal(err)
	}
	r = weak.run(t, "ctfleet", "up", "--name", "fw-a", "--dir", dir, "--nats-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0")
	if r.code != 1 || r.stdout != "" || !strings.Contains(r.stderr, "CAP_NET_ADMIN") || !strings.Contains(r.stderr, "watch the connection table") {
		t.Errorf("up as nobody: %+v", r)
	}
	r = weak.run(t, "ctfleet", "up", "--name", "fw-a", "--dir", "/nosuch", "--nats-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0")
	if r.code != 1 || !strings.Contains(r.stderr, "/nosuch") {
		t.Errorf("up as nobody, in a folder that cannot be made: %+v", r)
	}
}

// TestWithoutTracking watches a namespace with a name, as `ip netns add` makes
// it, in which nothing asks for connection tracking.
func TestWithoutTracking(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	if _, err := exec.LookPath("ip"); err != nil {
		labtest.Lacks(t, "ip(8)")
	}
	name := fmt.Sprintf("ctfleet-e2e-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		labtest.Lacks(t, "a namespace with a name: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("delete namespace %s: %v: %s", name, err, out)
		}
	})
	check := func() result { return call{}.run(t, "producer", "--name", "fw-a", "--netns", name, "--check") }
	rule := []string{
		"add table inet filter", "add chain inet filter forward { type filter hook forward priority 0; }", "add rule inet filter forward ct state new counter",
	}
	r := check()
	if r.code != 0 || !strings.Contains(r.stdout, "note   Nothing in this network namespace asks for connection tracking") || !strings.Contains(r.stdout, "nft add rule inet filter forward ct state new counter") {
		t.Errorf("producer --check where nothing is tracked: %+v", r)
	}
	// The remedy is one that works.
	if _, err := exec.LookPath("nft"); err != nil {
		labtest.Lacks(t, "nft(8) to follow the advice")
	}
	for _, line := range rule {
		if out, err := exec.Command("ip", "netns", "exec", name, "nft", line).CombinedOutput(); err != nil {
			t.Fatalf("nft %s: %v: %s", line, err, out)
		}
	}
	if r := check(); r.code != 0 || strings.Contains(r.stdout, "asks for connection tracking") || !strings.HasSuffix(r.stdout, "\nok\n") {
		t.Errorf("producer --check after its advice was followed: %+v", r)
	}
}

// TestChecks runs --check of the daemons where nothing is wrong.
func TestChecks(t *testing.T) {
	t.Parallel()
	ns := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}}).Firewall("fw-a").NS
	for _, c := range []struct{ program, args, want string }{
		{"producer", "--name fw-a --protect 192.0.2.1 --protect 2001:db8::/32 --ssh-port 22 --ssh-port 2222 --netns " + ns.Path(), "protect [192.0.2.1/32 2001:db8::/32]"},
		{"aggregator", "--rules " + file(t, "rules.yaml", fleetRules), "1 rules, at most 100 alerts at a time"},
		{"responder", "--policy " + file(t, "policy.yaml", fleetPolicy), "mode enforce, 1 policies, 1 allowlisted prefixes"},
	} {
		r := call{}.run(t, c.program, append(strings.Fields(c.args), "--check")...)
		if r.code != 0 || r.stderr != "" || !strings.Contains(r.stdout, c.want) || !strings.HasSuffix(r.stdout, "\nok\n") {
			t.Errorf("%s --check: %+v", c.program, r)
		}
	}
}

// TestSilentKernel: a kernel that announces no flow is no firewall without
// flows.
func TestSilentKernel(t *testing.T) {
	t.Parallel()
	ns := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", Sysctls: map[string]string{"net.netfilter.nf_conntrack_events": "0"}}}}).Firewall("fw-a").NS
	const what, remedy = "nf_conntrack_events is 0: the kernel announces no flow.", "sysctl -w net.netfilter.nf_conntrack_events=1"
	r := call{}.run(t, "producer", "--name", "fw-a", "--netns", ns.Path(), "--check")
	if r.code != 1 || !strings.Contains(r.stdout, "FATAL  "+what+"\n       "+remedy+"\n") {
		t.Errorf("producer --check: %+v", r)
	}
	p := call{env: []string{"NATS_URL=nats://127.0.0.1:1"}}.start(t, "producer", "--name", "fw-a", "--netns", ns.Path())
	p.says(&p.stderr, `level=ERROR msg="(nf_conntrack_events is 0: the kernel announces no flow\.)".*remedy=".*nf_conntrack_events=1`)
	p.stop()
}

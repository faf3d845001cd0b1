//go:build linux

package main

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/demo"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

// TestDemo runs the show as root, as a rule, and as a user without rights, looks at it from
// the host meanwhile, and reads its one JSON object at the end.
func TestDemo(t *testing.T) {
	t.Parallel()
	requireLab(t)
	t.Run("as we are", func(t *testing.T) {
		t.Parallel()
		testDemo(t, call{})
	})
	t.Run("nobody", func(t *testing.T) {
		t.Parallel()
		requireRoot(t) // to become nobody
		home := t.TempDir()
		if err := os.Chmod(filepath.Dir(home), 0o755); err != nil { // others may not pass as it is
			t.Fatal(err)
		}
		if err := os.Chown(home, int(nobody.Credential.Uid), int(nobody.Credential.Gid)); err != nil {
			t.Fatal(err)
		}
		testDemo(t, call{as: nobody, dir: home, env: []string{"HOME=" + home, "TMPDIR=" + home}})
	})
}

// requireLab skips, or fails, where no lab can be built, not even in a user
// namespace.
func requireLab(t *testing.T) {
	t.Helper()
	if err := lab.Permitted(); err != nil {
		labtest.Lacks(t, "a lab: %v", err)
	}
}

func testDemo(t *testing.T, c call) {
	program(t, "ctfleet") // built before time is taken
	begin := time.Now()
	p := c.start(t, "ctfleet", "demo", "--duration", "15s", "-o", "json")
	nats := p.says(&p.stderr, `--nats-url (nats://[0-9.:]+)`)
	api := p.says(&p.stderr, `browser: +(http://[0-9.:]+)/`)

	// From another terminal.
	f := &fleet{t: t, call: call{env: []string{"NATS_URL=" + nats}}}
	p.until("it to be ready", func() bool { code, _ := get(t, api+"/readyz"); return code == 200 })
	p.until("ordinary traffic", func() bool { return len(f.top("--window", "60s").Rows) > 0 })
	p.until("all three firewalls to report", func() bool {
		fleet := f.firewalls()
		return len(fleet) == 3 && fleet[0].Firewall == "fw-a" && fleet[2].Firewall == "fw-c"
	})
	if code, body := get(t, api+"/api/v1/top?window=60"); code != 200 || !strings.Contains(body, `"rows":[{"key":"`) {
		t.Errorf("top by HTTP: %d %s", code, body)
	}
	select {
	case <-p.ended:
	case <-time.After(callTime):
		t.Fatal("the demo does not end")
	}
	took := time.Since(begin)
	if code := p.cmd.ProcessState.ExitCode(); code != 0 || took < 15*time.Second || took > 25*time.Second {
		t.Errorf("exit code %d after %s, want 0 after 15 s and a little", code, took)
	}
	if n := strings.Count(p.stdout.String(), "\n"); n != 1 {
		t.Errorf("%d lines on standard output, want one JSON object", n)
	}
	for _, key := range []string{`"firewalls":3,`, `"events":`, `"lost":0,`, `"alerts":[`, `"receipts":[`, `"detect_ms":`, `"flush_ms":`, `"matched":`} {
		if !strings.Contains(p.stdout.String(), key) {
			t.Errorf("no %s in %s", key, p.stdout.String())
		}
	}
	r := parse[demo.Result](t, p.stdout.String())
	deleted := map[string]uint64{}
	for _, receipt := range r.Receipts {
		deleted[receipt.Firewall] += receipt.Deleted
	}
	if r.Events == 0 || len(r.Alerts) == 0 || deleted["fw-a"] == 0 || deleted["fw-b"] == 0 || deleted["fw-c"] != 0 || len(r.Problems) != 0 {
		t.Errorf("result: %+v", r)
	}
	t.Logf("alert after %.1f ms, flushed after %.1f ms", r.DetectMS, r.FlushMS)
}

// TestDemoStops: Ctrl-C ends the show early, and says that it was too early.
func TestDemoStops(t *testing.T) {
	t.Parallel()
	requireLab(t)
	p := call{}.start(t, "ctfleet", "demo")
	p.says(&p.stdout, `(ordinary traffic through three firewalls)`)
	if err := p.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.ended:
	case <-time.After(2 * stopTime):
		t.Fatal("the demo does not end on Ctrl-C")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(p.stdout.String(), "PROBLEM: the fleet alert did not fire") {
		t.Errorf("exit code %d:\n%s", code, p.stdout.String())
	}
}

// TestDemoNotPermitted: where no lab can be built, the demo plays its recording and says
// why. The kernel gives no user namespace to who lives in a chroot.
func TestDemoNotPermitted(t *testing.T) {
	t.Parallel()
	requireRoot(t) // for the chroot
	root := t.TempDir()
	data, err := os.ReadFile(staticProgram(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(filepath.Dir(root), 0o755), os.WriteFile(filepath.Join(root, "ctfleet"), data, 0o755), os.Mkdir(filepath.Join(root, "tmp"), 0o777), os.Chmod(filepath.Join(root, "tmp"), 0o777)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/ctfleet", "demo", "--duration", "8s", "-o", "json")
	cmd.Env, cmd.Dir = environment("TMPDIR=/tmp"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root, Credential: nobody.Credential}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s%s", err, stdout.String(), stderr.String())
	}
	r := parse[demo.Result](t, stdout.String())
	if !r.Recording || !strings.Contains(r.Why, "not permitted here") || len(r.Alerts) != 1 || len(r.Problems) != 0 {
		t.Errorf("result: %+v", r)
	}
	if !strings.Contains(stderr.String(), "because network namespaces are not permitted here: ") {
		t.Errorf("it does not say why:\n%s", stderr.String())
	}
	if left, err := os.ReadDir(filepath.Join(root, "tmp")); err != nil || len(left) != 0 {
		t.Errorf("it leaves %v, %v", left, err)
	}
}

// staticProgram is ctfleet without libraries that it would have to find.
func staticProgram(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ctfleet")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return path
}

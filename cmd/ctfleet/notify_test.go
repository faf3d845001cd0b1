package main

import (
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

// debian is the path of a program of Debian's, which the test lacks where it is missing.
func debian(t *testing.T, program, pkg string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err == nil {
		return path
	}
	labtest.Lacks(t, "%s: apt-get install %s", program, pkg)
	return ""
}

// freePort is one that nobody listened on a moment ago.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// listens reports whether somebody takes connections there.
func listens(addr string) bool {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return false
	}
	return c.Close() == nil
}

// foreign starts a program that is not ours, which the test kills at its end.
func foreign(t *testing.T, path string, args ...string) {
	t.Helper()
	cmd := exec.Command(path, args...)
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s %q\n%s", path, args, out.String())
		}
	})
}

// TestAlertmanager: a real one shows what fires, and the heartbeat, and no longer what
// is resolved.
func TestAlertmanager(t *testing.T) {
	t.Parallel()
	am := debian(t, "prometheus-alertmanager", "prometheus-alertmanager")
	addr := freePort(t)
	url := "http://" + addr
	foreign(t, am, "--config.file", file(t, "alertmanager.yml", "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"),
		"--storage.path", t.TempDir(), "--web.listen-address", addr, "--cluster.listen-address=")
	until(t, "Alertmanager to listen", func() bool { return listens(addr) })
	f := newFleet(t, "fw-a")
	f.aggregator("--rules", file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_src, metric: new, count: 60, seconds: 3, recover: 0s, severity: critical}\n"))
	f.producer("fw-a")
	f.responder("mode: observe\n", "--alertmanager", url)
	active := func() string {
		code, body := get(t, url+"/api/v2/alerts?active=true")
		if code != 200 {
			return fmt.Sprint(code)
		}
		return body
	}
	until(t, "the heartbeat", func() bool { return strings.Contains(active(), `"alertname":"ctfleet-heartbeat"`) })
	f.flood("fw-a", attacker, 0, 60)
	until(t, "the alert", func() bool {
		a := active()
		return strings.Contains(a, `"alertname":"flood"`) && strings.Contains(a, `"key":"`+attacker+`"`) && strings.Contains(a, "opened 60 flows within 3 s in the fleet")
	})
	until(t, "its end", func() bool {
		a := active()
		return !strings.Contains(a, `"alertname":"flood"`) && strings.Contains(a, "heartbeat")
	})
}

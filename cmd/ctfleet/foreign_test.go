package main

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os/exec"
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

// freePort is one that nobody listened on a moment ago, and below those that the kernel gives
// out by itself: a server that is killed finds it free again.
func freePort(t testing.TB) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", 12000+rand.IntN(18000)))
		if err == nil {
			defer l.Close()
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
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

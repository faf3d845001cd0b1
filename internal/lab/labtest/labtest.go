// Package labtest gives tests a lab of virtual firewalls that lasts as long as the test.
package labtest

import (
	"fmt"
	"os"
	"testing"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
)

// New builds the lab and closes it when the test ends. Where the process may not
// create network namespaces, the test is skipped with the reason, or fails when
// CTFLEET_REQUIRE_KERNEL=1.
func New(t testing.TB, spec lab.Spec) *lab.Lab {
	t.Helper()
	Require(t)
	l, err := lab.New(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// Require skips the test, or fails it when CTFLEET_REQUIRE_KERNEL=1, where this
// process may not create network namespaces.
func Require(t testing.TB) {
	t.Helper()
	ns, err := host.NewNamespace()
	if err == nil {
		if err := ns.Close(); err != nil {
			t.Fatal(err)
		}
		return
	}
	Lacks(t, "network namespaces; run as root or under `unshare --user --map-root-user --net`: %v", err)
}

// Lacks skips the test for want of something, or fails it where nothing may be
// wanting: when CTFLEET_REQUIRE_KERNEL=1, as in CI.
func Lacks(t testing.TB, format string, args ...any) {
	t.Helper()
	what := fmt.Sprintf(format, args...)
	if os.Getenv("CTFLEET_REQUIRE_KERNEL") == "1" {
		t.Fatalf("CTFLEET_REQUIRE_KERNEL=1, and this test needs %s", what)
	}
	t.Skip("needs " + what)
}

// RequireRoom skips the test, or fails it when CTFLEET_REQUIRE_KERNEL=1, where the
// kernel granted a socket buffer for too few events.
func RequireRoom(t testing.TB, events, want int) {
	t.Helper()
	if events >= want {
		return
	}
	Lacks(t, "a socket buffer for %d events, the kernel grants one for %d (net.core.rmem_max)", want, events)
}

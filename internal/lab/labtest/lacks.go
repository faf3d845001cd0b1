// Package labtest gives tests a lab of virtual firewalls that lasts as long as the test,
// and skips those that lack what they need. Without Linux there is only the latter.
package labtest

import (
	"fmt"
	"os"
	"testing"
)

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

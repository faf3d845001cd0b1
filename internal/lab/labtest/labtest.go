//go:build linux

package labtest

import (
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

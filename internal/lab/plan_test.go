//go:build linux

package lab

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestLinkAddrsAreDistinct(t *testing.T) {
	links4, links6 := netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8:ffff::/48")
	seen := map[netip.Addr]int{}
	for n := range 2 * MaxFirewalls {
		near, far := linkAddrs(n)
		for i := range near {
			if near[i].Masked() != far[i].Masked() {
				t.Errorf("link %d: %s and %s are not on one link", n, near[i], far[i])
			}
		}
		for _, p := range append(near, far...) {
			a := p.Addr()
			if other, taken := seen[a]; taken {
				t.Errorf("links %d and %d both have %s", other, n, a)
			}
			seen[a] = n
			if !links4.Contains(a) && !links6.Contains(a) {
				t.Errorf("link %d: %s is outside %s and %s", n, a, links4, links6)
			}
		}
	}
}

func TestObstacle(t *testing.T) {
	for _, c := range []struct {
		setting, value string
		err            error
		want           string
	}{
		{"user/max_user_namespaces", "0\n", unix.ENOSPC, "sysctl -w user.max_user_namespaces=63000"},
		{"user/max_user_namespaces", "100\n", unix.ENOSPC, "raise user.max_user_namespaces"},
		{"kernel/unprivileged_userns_clone", "0\n", unix.EPERM, "sysctl -w kernel.unprivileged_userns_clone=1"},
		{"kernel/apparmor_restrict_unprivileged_userns", "1\n", unix.EPERM, "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"},
		{"kernel/apparmor_restrict_unprivileged_userns", "0\n", unix.EINVAL, "CONFIG_USER_NS"},
		{"kernel/other", "0\n", unix.EPERM, "container"},
	} {
		sysctls := t.TempDir()
		path := filepath.Join(sysctls, c.setting)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(c.value), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := obstacle(c.err, sysctls); !strings.Contains(got, c.want) {
			t.Errorf("%s=%q and %v: %q does not say %q", c.setting, strings.TrimSpace(c.value), c.err, got, c.want)
		}
	}
}

func TestPermitted(t *testing.T) {
	err := canCreate()
	if err != nil && os.Getenv("CTFLEET_REQUIRE_KERNEL") != "1" {
		t.Skipf("needs the right to create namespaces: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := Permitted(); err != nil {
		t.Errorf("namespaces can be created, and Permitted says %v", err)
	}
}

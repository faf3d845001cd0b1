//go:build linux

package main

import (
	"os"
	"strings"
	"syscall"
	"testing"
)

// TestSigned: a producer carries out what is signed by a key that it trusts, and
// no longer when its trust file, read again, does not name it.
func TestSigned(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	p := f.producer("fw-a", "--allow-flush")
	if r := f.run(t, "ctfleet", "auth", "key", f.seed("mallory"), "--name", "mallory", "--trust", f.keys+"/other.yaml"); r.code != 0 {
		t.Fatalf("auth key: %+v", r)
	}
	unsigned := call{env: f.bus}
	flush := func(want string, code int, args ...string) {
		t.Helper()
		f.flood("fw-a", ordinary, 0, 10)
		as := f.call
		if args[0] == "unsigned" {
			as, args = unsigned, args[1:]
		}
		r := as.run(t, "ctfleet", append([]string{"flush", ordinary, "-o", "json"}, args...)...)
		if wants := strings.Contains(r.stderr, "want this signed"); wants != strings.Contains(want, `"unsigned"`) {
			t.Errorf("flush %q: %s", args, r.stderr)
		}
		if r.code != code || !strings.Contains(r.stdout, want) {
			t.Errorf("flush %q: exit code %d, %s%s, want %d and %s", args, r.code, r.stdout, r.stderr, code, want)
		}
	}
	flush(`"reason":"unsigned"`, 3, "unsigned", "-y")
	flush(`"reason":"untrusted-key"`, 3, "-y", "--sign-key", f.seed("mallory"))
	flush(`"matched":10,"deleted":0`, 0, "unsigned", "--dry-run")
	flush(`"who":"operator"`, 0, "-y")
	if r := f.run(t, "ctfleet", "audit", "list"); !strings.Contains(r.stdout, "operator (operator)") || !strings.Contains(r.stdout, "refused untrusted-key") {
		t.Errorf("the audit says %s%s", r.stdout, r.stderr)
	}

	overwrite(t, f.trust, "keys: []\n")
	hangUp := func() {
		t.Helper()
		if err := p.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	hangUp()
	p.says(&p.stderr, `(msg=reloaded)`)
	flush(`"reason":"untrusted-key"`, 3, "-y")
	overwrite(t, f.trust, "keys: [nonsense]\n")
	hangUp()
	p.says(&p.stderr, `(msg="reload refused: what was in force stays so".*trust.yaml:1)`)
	flush(`"reason":"untrusted-key"`, 3, "-y")
}

func overwrite(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

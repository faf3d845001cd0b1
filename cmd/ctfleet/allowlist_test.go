//go:build linux

package main

import (
	"strings"
	"testing"
	"time"
)

// TestAllowlist: what an operator lists is spared within a second, by a firewall
// that was not told anything else, and by the responder; and acted upon again when
// the entry is gone.
func TestAllowlist(t *testing.T) {
	t.Parallel()
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.producer("fw-a", "--allow-flush", "--metrics-listen", "none")
	do := func(code int, want string, args ...string) {
		t.Helper()
		r := f.run(t, "ctfleet", args...)
		if r.code != code || !strings.Contains(r.stdout+r.stderr, want) {
			t.Errorf("%q: exit code %d, %s%s, want %d and %q", args, r.code, r.stdout, r.stderr, code, want)
		}
	}
	// flushed waits for what a flush of one address of a prefix says.
	flushed := func(want string, address string) {
		t.Helper()
		begin := time.Now()
		for {
			f.flood("fw-a", "198.18.1.1", 0, 10)
			f.flood("fw-a", "198.18.1.2", 0, 10)
			r := f.run(t, "ctfleet", "flush", address, "-y", "-o", "json")
			if strings.Contains(r.stdout, want) {
				return
			}
			if time.Since(begin) > time.Second { // a run of ctfleet included
				t.Errorf("after %s a flush of %s says %s%s, want %s", time.Since(begin), address, r.stdout, r.stderr, want)
				return
			}
		}
	}
	do(1, "198.18.1.1 is not on the live allowlist", "allowlist", "check", "198.18.1.1")
	do(0, "is in force", "allowlist", "add", "198.18.0.0/15", "--for", "1h", "--comment", "backup run")
	do(0, "198.18.1.1 is covered by 198.18.0.0/15: live allowlist: backup run", "allowlist", "check", "198.18.1.1")
	flushed(`"reason":"allowlisted"`, "198.18.1.1")
	// A single address within it.
	do(0, "is in force", "allowlist", "add", "198.18.1.2", "--except")
	flushed(`"deleted":10`, "198.18.1.2")
	flushed(`"reason":"allowlisted","count":0`, "198.18.1.0/24")
	do(0, "198.18.0.0/15   all    in ", "allowlist", "list")
	do(0, `"who":"operator"`, "allowlist", "-o", "json", "--trust", f.trust)
	// In another realm it would say nothing here.
	do(0, "", "allowlist", "delete", "198.18.0.0/15")
	do(0, "is in force", "allowlist", "add", "198.18.1.1", "--realm", "elsewhere")
	flushed(`"deleted":10`, "198.18.1.1")
	// A prefix that contains a listed address is flushed around it.
	do(0, "is in force", "allowlist", "add", "198.18.1.1", "--realm", "default")
	flushed(`"matched":20,"deleted":10,"gone":0,"refused":[{"reason":"allowlisted","count":10}]`, "198.18.1.0/24")
	// What is not signed can only add to it.
	unsigned := call{env: f.bus}
	if r := unsigned.run(t, "ctfleet", "allowlist", "add", "198.18.1.2", "--except"); r.code != 0 {
		t.Errorf("unsigned: %+v", r)
	}
	flushed(`"reason":"allowlisted"`, "198.18.1.2")
	do(0, "cannot be verified: allowlist entry 198.18.1.2: it is not signed", "allowlist", "list", "--trust", f.trust)
	do(0, "NOT VERIFIED (it is not signed): ", "audit", "list", "--trust", f.trust)
	do(0, "added 198.18.0.0/15 until ", "audit", "list", "--address", "198.18.0.0/15")
	do(0, "operator: backup run", "audit", "list", "--trust", f.trust)
	do(0, "deleted 198.18.0.0/15", "audit", "list")

	do(0, "2 entries are in force", "allowlist", "import", file(t, "list", "203.0.113.0/24  the servers\n\n# nothing\n2001:db8::/32\n"))
	do(0, "live allowlist: the servers", "allowlist", "check", "203.0.113.9")
	do(2, "list:2: ", "allowlist", "import", file(t, "list", "192.0.2.1\nnonsense\n"))
	do(1, "is not on", "allowlist", "check", "192.0.2.1") // all or nothing
	do(1, "192.0.2.1 is not on the live allowlist for every realm", "allowlist", "delete", "192.0.2.1")
	do(2, "bits beyond", "allowlist", "add", "192.0.2.1/24")
	do(2, "--for: must not be negative", "allowlist", "add", "192.0.2.1", "--for=-1s")
	do(0, `{"listed":true,"prefix":"203.0.113.0/24","why":"live allowlist: the servers"}`, "allowlist", "check", "203.0.113.9", "-o", "json")
}

package policy

import (
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/config"
)

func TestValidate(t *testing.T) {
	f := func(want string, change func(*File)) {
		t.Helper()
		v := file(change)
		err := v.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", v, err, want)
		}
	}
	f("", nil)
	f("", func(f *File) { f.CoolDown = 0 })
	f("", func(f *File) { f.Mode = "approve" })
	f(`mode: "" is none of "observe", "approve", "enforce"`, func(f *File) { f.Mode = "" })
	f(`approve_within: must be positive`, func(f *File) { f.ApproveWithin = 0 })
	f(`approve_within: must be positive and at most 24h0m0s`, func(f *File) { f.ApproveWithin = 25 * time.Hour })
	f(`budget: table_percent: must be 0 to 100, is 101`, func(f *File) { f.Budget.TablePercent = 101 })
	f(`budget: table_percent: must be 0 to 100, is NaN`, func(f *File) { f.Budget.TablePercent = math.NaN() })
	f(`budget: realm_percent: must be 0 to 100, is -1`, func(f *File) { f.Budget.RealmPercent = -1 })
	f(`budget: firewalls: must not be negative`, func(f *File) { f.Budget.Firewalls = -1 })
	f(`budget: addresses_per_minute: must be 0 to 500, is 501`, func(f *File) { f.Budget.AddressesPerMinute = 501 })
	f(`cool_down: must not be negative`, func(f *File) { f.CoolDown = -1 })
	f(`budget: addresses_per_minute: must be 0 to 500, is -1`, func(f *File) { f.Budget.AddressesPerMinute = -1 })
	f(`max_age: must be positive`, func(f *File) { f.MaxAge = 0 })
	f(`allowlist: 10.0.0.1/8 has bits beyond its length, 10.0.0.0/8 is meant?`, func(f *File) { f.Allowlist[0] = netip.MustParsePrefix("10.0.0.1/8") })
	f(`allowlist: an entry is empty`, func(f *File) { f.Allowlist[0] = netip.Prefix{} })
	f(`policies[0]: rule: name is empty`, func(f *File) { f.Policies[0].Rule = "" })
	f(`policies[0]: rule: name "A"`, func(f *File) { f.Policies[0].Rule = "A" })
	f(`policies[1]: rule flood has a policy already`, func(f *File) { f.Policies = append(f.Policies, f.Policies[0]) })
	f(`policy for flood: mode: "enforced" is none of`, func(f *File) { f.Policies[0].Mode = "enforced" })
	f(`policy for flood: action: "drop" is none of "flush", "block", "flush+block", "relieve"`, func(f *File) { f.Policies[0].Action = "drop" })
	f(`policy for flood: where: "site" is none of "alert", "realm"`, func(f *File) { f.Policies[0].Where = "site" })
	block := func(p Policy) func(*File) { return func(f *File) { p.Rule = "flood"; f.Policies[0] = p } }
	f("", block(Policy{Action: ActionBlock}))
	f("", block(Policy{Action: ActionFlushBlock, BlockFor: 24 * time.Hour}))
	f(`block_for: must be 1s to 24h0m0s, is 1ms`, block(Policy{Action: ActionBlock, BlockFor: time.Millisecond}))
	f(`block_for: must be 1s to 24h0m0s, is 25h0m0s`, block(Policy{Action: ActionBlock, BlockFor: 25 * time.Hour}))
	f(`block_for: "flush" blocks nothing`, block(Policy{BlockFor: time.Hour}))
	f(`unanswered: a source without answers may be forged`, block(Policy{Action: ActionBlock, Unanswered: UnansweredDelete}))
	f("", block(Policy{Action: ActionRelieve, UntilPercent: 70}))
	f(`until_percent: "relieve" goes on until the table is that full: must be above 0 and below 100, is 0`, block(Policy{Action: ActionRelieve}))
	f(`until_percent: goes with "relieve" only`, block(Policy{UntilPercent: 70}))
	f(`mode: "relieve" goes step by step`, block(Policy{Action: ActionRelieve, UntilPercent: 70, Mode: Approve}))
	f(`action: "relieve" goes step by step`, func(f *File) {
		f.Mode = Approve
		f.Policies[0] = Policy{Rule: "flood", Action: ActionRelieve, UntilPercent: 70}
	})
}

// TestPolicyFile reads files as an operator writes them.
func TestPolicyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy.yaml")
	read := func(doc string) (File, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		f := Default()
		return f, config.ReadFile(path, &f)
	}
	got, err := read(`
mode: enforce
policies:
  - rule: new-flows-by-source
    action: flush
    where: realm
  - rule: other
    mode: observe
allowlist: [10.0.0.0/8, "2001:db8::/32"]
cool_down: 2m
`)
	if err != nil {
		t.Fatal(err)
	}
	if got.Mode != Enforce || len(got.Policies) != 2 || got.Policies[0].Where != WhereRealm || got.Policies[1] != (Policy{Rule: "other", Mode: Observe, Action: ActionFlush, Where: WhereAlert, Unanswered: UnansweredRefuse}) ||
		len(got.Allowlist) != 2 || got.CoolDown != 2*time.Minute || got.MaxAge != 30*time.Second {
		t.Errorf("read: %+v", got)
	}
	if got, err := read(""); err != nil || got.Mode != Observe || len(got.Policies) != 0 {
		t.Errorf("an empty file must only observe: %+v, %v", got, err)
	}
	if got, err := read("allowlist: [192.0.2.1, \"2001:db8::1\"]\n"); err != nil || got.Allowlist[0] != netip.MustParsePrefix("192.0.2.1/32") || got.Allowlist[1] != netip.MustParsePrefix("2001:db8::1/128") {
		t.Errorf("single addresses: %v, %v", got.Allowlist, err)
	}
	f := func(doc string, want ...string) {
		t.Helper()
		_, err := read(doc)
		if err == nil {
			t.Fatalf("%q: accepted", doc)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: %q does not say %q", doc, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: more than one line: %q", doc, err)
		}
	}
	f("mode: enforce\npolices: []\n", "policy.yaml:2", `unknown key "polices"`, `did you mean "policies"?`)
	f("policies:\n  - rule: a\n    aktion: flush\n", "policy.yaml:3", `did you mean "action"?`)
	f("allowlist:\n  - 10.0.0.0/33\n", "policy.yaml", "10.0.0.0/33")
	f("allowlist: [10.0.0.0/8, host.example]\n", "policy.yaml:1", "host.example")
	f("policies:\n  - rule: a\n    block_for: 10m\n", "policy.yaml:3", "blocks nothing")
	f("mode: enfroce\n", "policy.yaml", `"enfroce" is none of`)
	f("cool_down: soon\n", "policy.yaml", `"soon"`)
	f("cool_down: -1s\n", "policy.yaml", "negative")
	f("policies:\n  - rule: a\n    unanswered: keep\n", "policy.yaml:3", `unanswered: "keep" is none of "refuse", "delete"`)
	f("policies:\n  - rule: a\n  - rule: a\n", "policy.yaml", "rule a has a policy already")
}

package responder

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
)

// TestCheck holds what an operator is told before a responder is started, each with
// what mends it.
func TestCheck(t *testing.T) {
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	newKey := func(name, role string, verbs ...string) string {
		t.Helper()
		if err := auth.NewKey(file(name+".nk"), file("trust.yaml"), &seal.Party{Name: name, Role: role, Verbs: verbs}); err != nil {
			t.Fatal(err)
		}
		return file(name + ".nk")
	}
	good := newKey("responder", seal.RoleResponder, auth.DefaultVerbs(seal.RoleResponder)...)
	flusher := newKey("flusher", seal.RoleResponder, seal.VerbFlush)
	person := newKey("anna", seal.RoleOperator, auth.DefaultVerbs(seal.RoleOperator)...)
	if err := auth.NewKey(file("stranger.nk"), file("other.yaml"), &seal.Party{Name: "x", Role: seal.RoleResponder, Verbs: []string{seal.VerbFlush}}); err != nil {
		t.Fatal(err)
	}
	rules := file("rules.yaml")
	if err := os.WriteFile(rules, []byte("rules:\n  - {name: flood, track: by_src, metric: new, count: 100, seconds: 10}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f := func(what, key, trustFile string, change func(*policy.File), want ...string) {
		t.Helper()
		opt := Options{SignKey: key}
		signer, err := opt.Signer()
		if err != nil {
			t.Fatal(err)
		}
		trust, err := seal.OpenTrust(trustFile)
		if err != nil {
			t.Fatal(err)
		}
		p := enforce(change)
		if err := p.Validate(); err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		if err := Check(&out, opt, p, signer, trust, rules, bus.Flags{NATSURL: "nats://127.0.0.1:1"}); err != nil {
			t.Errorf("%s: %v\n%s", what, err, out.String())
		}
		// That no server is there is always among them.
		if notes := strings.Count(out.String(), "note "); notes != len(want)+1 || !strings.Contains(out.String(), "cannot be reached") || !strings.HasSuffix(out.String(), "\nok\n") {
			t.Errorf("%s: %d findings, want %d\n%s", what, notes, len(want)+1, out.String())
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: %q is missing\n%s", what, w, out.String())
			}
		}
	}
	trust := file("trust.yaml")
	f("all is well", good, trust, nil)
	f("observes, and needs no key", "", "", func(f *policy.File) { f.Mode = policy.Observe })
	f("acts without a key", "", trust, nil, "commands are not signed")
	f("everybody is trusted", "", seal.TrustNone, nil)
	f("nobody is trusted", good, "", nil, "Nobody is trusted")
	f("a key that firewalls do not know", file("stranger.nk"), trust, nil, "is not in the file of --trust")
	f("a person's key", person, trust, nil, "is an operator's")
	f("a key that may not block", flusher, trust, func(f *policy.File) {
		f.Policies[0].Action, f.Policies[0].Unanswered = policy.ActionFlushBlock, ""
	}, "firewalls block, and the file of --trust does not permit that to flusher")
	f("a rule that is no rule", good, trust, func(f *policy.File) { f.Policies = append(f.Policies, policy.Policy{Rule: "fload"}) }, "names rule fload, which does not exist.\n       Nothing will ever come of it; did you mean \"flood\"?")
	f("a built-in alarm", good, trust, func(f *policy.File) {
		f.Policies = append(f.Policies, policy.Policy{Rule: "table-95", Action: policy.ActionRelieve, UntilPercent: 80})
	})
	if err := os.Chmod(good, 0o644); err != nil {
		t.Fatal(err)
	}
	f("a key for everybody", good, trust, nil, "chmod 600 "+good)
}

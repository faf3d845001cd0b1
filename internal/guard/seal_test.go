package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// parties are a guard that trusts alice to flush, the responder to flush, and bob
// to approve only; and their keys.
func parties(t *testing.T) (*Guard, map[string]*seal.Signer) {
	t.Helper()
	keys, file := map[string]*seal.Signer{}, "keys:\n"
	for _, p := range [][3]string{{"alice", "operator", "flush"}, {"robot", "responder", "flush"}, {"bob", "operator", "approve"}} {
		keys[p[0]] = newKey(t, &file, p[0], p[1], p[2])
	}
	var nowhere string
	keys["stranger"] = newKey(t, &nowhere, "stranger", "operator", "flush")
	c := config()
	c.Trust, c.MinLocal = trustFile(t, file), 50
	return newGuard(c), keys
}

// newKey makes a key, and adds it to what is to be a trust file.
func newKey(t *testing.T, file *string, name, role, verbs string) *seal.Signer {
	t.Helper()
	s, _, err := seal.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	*file += fmt.Sprintf("  - {name: %s, role: %s, key: %s, verbs: [%s]}\n", name, role, s.Public(), verbs)
	return s
}

// trustFile reads a trust file of this content.
func trustFile(t *testing.T, content string) *seal.Trust {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trust.yaml")
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return trust(path)
}

// signed is a command as it comes; change alters it after it was signed.
func signed(t *testing.T, key *seal.Signer, c *events.Command, change func(*events.Command)) (*events.Command, Sealed) {
	t.Helper()
	encode := func() []byte {
		data, err := events.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	s := Sealed{Subject: events.CommandSubject("fw-a", events.VerbFlush)}
	var err error
	if s.Seal, err = key.Sign(s.Subject, encode()); err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(c)
	}
	s.Body = encode()
	return c, s
}

func TestSignatures(t *testing.T) {
	g, keys := parties(t)
	n := 0
	is := func(what, reason, who string, key *seal.Signer, change func(*events.Command), dry bool) {
		t.Helper()
		n++
		c, s := signed(t, key, command(func(c *events.Command) { c.ID, c.DryRun, c.Actor = fmt.Sprint(n), dry, events.ActorOperator }), change)
		if v, _ := check(g, c, s, now); v.Reason != reason || v.Who != who || reason != "" && v.Text == "" {
			t.Errorf("%s: %+v, want %q by %q", what, v, reason, who)
		}
	}
	is("alice's", "", "alice", keys["alice"], nil, false)
	is("unsigned", Unsigned, "", nil, nil, false)
	is("a stranger's", Untrusted, "", keys["stranger"], nil, false)
	is("of one who may only approve", NotForVerb, "", keys["bob"], nil, false)
	is("another address", Forged, "", keys["alice"], func(c *events.Command) { c.Addresses = []string{"198.18.0.2"} }, false)
	is("a longer life", Forged, "", keys["alice"], func(c *events.Command) { c.Expires++ }, false)
	is("an unsigned dry run", "", "", nil, nil, true)
	is("alice's dry run", "", "alice", keys["alice"], nil, true)

	c, s := signed(t, keys["alice"], command(func(c *events.Command) { c.ID = "moved" }), nil)
	s.Subject = events.CommandSubject("fw-b", events.VerbFlush)
	if v, _ := check(g, c, s, now); v.Reason != Forged {
		t.Errorf("published elsewhere: %+v", v)
	}
	// Nothing of what was refused was remembered, or took from the rate.
	if len(g.seen) != 1 {
		t.Errorf("remembers %v", g.seen)
	}
}

// TestRoleIsTheKeys: what a command says of itself does not spare a program the
// claim, and a command of nobody's owes it too.
func TestRoleIsTheKeys(t *testing.T) {
	g, keys := parties(t)
	for who, least := range map[string]uint64{"alice": 0, "robot": 50} {
		c, s := signed(t, keys[who], command(func(c *events.Command) { c.ID, c.Actor = who, events.ActorOperator }), nil)
		v, _ := check(g, c, s, now)
		if got, _ := g.Claim(v, c); !v.Allowed() || v.Who != who || got != least {
			t.Errorf("%s: %+v, %d entries must be here, want %d", who, v, got, least)
		}
	}
	c, s := signed(t, keys["robot"], command(func(c *events.Command) {
		c.ID, c.Actor, c.Addresses = "two", events.ActorOperator, []string{"198.18.0.1", "198.18.0.2"}
	}), nil)
	if v, _ := check(g, c, s, now); v.Reason != Malformed {
		t.Errorf("a program that names two addresses: %+v", v)
	}
}

// TestNobodyIsTrusted: without a trust file every command that deletes is refused.
func TestNobodyIsTrusted(t *testing.T) {
	c := config()
	c.Trust = nil
	g := newGuard(c)
	_, keys := parties(t)
	cmd, s := signed(t, keys["alice"], command(nil), nil)
	if v, _ := check(g, cmd, s, now); v.Reason != Untrusted {
		t.Errorf("signed: %+v", v)
	}
	if v, _ := check(g, cmd, Sealed{}, now); v.Reason != Unsigned {
		t.Errorf("unsigned: %+v", v)
	}
}

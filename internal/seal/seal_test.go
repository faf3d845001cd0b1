package seal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func write(t testing.TB, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func signer(t testing.TB) *Signer {
	t.Helper()
	s, _, err := NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func party(name, role, key, verbs string) string {
	return "  - {name: " + name + ", role: " + role + ", key: " + key + ", verbs: [" + verbs + "]}\n"
}

func TestVerify(t *testing.T) {
	alice, robot, stranger := signer(t), signer(t), signer(t)
	trust, err := OpenTrust(write(t, "keys:\n"+party("alice", "operator", alice.Public(), "flush, allowlist")+party("robot", "responder", robot.Public(), "flush")))
	if err != nil {
		t.Fatal(err)
	}
	const subject = "ct.v1.cmd.fw-a.flush"
	body := []byte("body")
	sealed := func(s *Signer, subject string, body []byte) Seal {
		t.Helper()
		out, err := s.Sign(subject, body)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	good := sealed(alice, subject, body)
	if p, err := trust.Verify(good, VerbFlush, subject, body); err != nil || p.Name != "alice" || p.Role != RoleOperator {
		t.Errorf("a good seal: %+v, %v", p, err)
	}
	for _, f := range []struct {
		what    string
		seal    Seal
		verb    string
		subject string
		body    string
		want    error
	}{
		{"none", Seal{}, VerbFlush, subject, "body", ErrUnsigned},
		{"a stranger's", sealed(stranger, subject, body), VerbFlush, subject, "body", ErrUntrusted},
		{"another verb", sealed(robot, subject, body), VerbAllowlist, subject, "body", ErrVerb},
		{"another body", good, VerbFlush, subject, "bodY", ErrForged},
		{"a longer body", good, VerbFlush, subject, "body ", ErrForged},
		{"another subject", good, VerbFlush, "ct.v1.cmd.fw-b.flush", "body", ErrForged},
		{"a line moved from the body to the subject", sealed(alice, subject, []byte("x\nbody")), VerbFlush, subject + "\nx", "body", ErrForged},
		{"another's signature", Seal{alice.Public(), sealed(robot, subject, body).Signature}, VerbFlush, subject, "body", ErrForged},
		{"no signature", Seal{Key: alice.Public()}, VerbFlush, subject, "body", ErrForged},
		{"no key", Seal{Signature: good.Signature}, VerbFlush, subject, "body", ErrUntrusted},
		{"no base64", Seal{alice.Public(), "*"}, VerbFlush, subject, "body", ErrForged},
		{"a short one", Seal{alice.Public(), good.Signature[:40]}, VerbFlush, subject, "body", ErrForged},
	} {
		if _, err := trust.Verify(f.seal, f.verb, f.subject, []byte(f.body)); !errors.Is(err, f.want) {
			t.Errorf("%s: %v, want %v", f.what, err, f.want)
		}
	}
	for path, want := range map[string]error{"": ErrUnsigned, TrustNone: nil} {
		open, err := OpenTrust(path)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := open.Verify(Seal{}, VerbFlush, subject, body); !errors.Is(err, want) {
			t.Errorf("trust %q: %v, want %v", path, err, want)
		}
	}
}

// TestReload: a key that is taken out is trusted no more, and a file that cannot
// be read changes nothing.
func TestReload(t *testing.T) {
	a, b := signer(t), signer(t)
	path := write(t, "keys:\n"+party("a", "operator", a.Public(), "flush"))
	trust, err := OpenTrust(path)
	if err != nil {
		t.Fatal(err)
	}
	trusts := func(s *Signer) bool {
		seal, err := s.Sign("subject", nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = trust.Verify(seal, VerbFlush, "subject", nil)
		return err == nil
	}
	if !trusts(a) || trusts(b) {
		t.Error("at first")
	}
	for text, fails := range map[string]bool{"keys: 7": true, "keys:\n" + party("b", "operator", b.Public(), "flush"): false} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		before := trusts(a)
		if err := trust.Reload(); (err != nil) != fails {
			t.Errorf("%s: %v", text, err)
		}
		if fails && trusts(a) != before {
			t.Errorf("%s changed who is trusted", text)
		}
	}
	if trusts(a) || !trusts(b) {
		t.Error("after the reload")
	}
}

func TestTrustFileIsStrict(t *testing.T) {
	k := signer(t).Public()
	for text, want := range map[string]string{
		"keys:\n" + party("a", "operator", k, "flush") + party("b", "operator", k, "flush"): "listed already",
		"keys:\n" + party("a", "operator", k, "flsh"):                                       `"flsh" is not known, did you mean "flush"?`,
		"keys:\n" + party("a", "operator", k, ""):                                           "may do nothing",
		"keys:\n" + party("a", "boss", k, "flush"):                                          `role: "boss" is neither`,
		"keys:\n" + party("a", "operator", "SU"+k[2:], "flush"):                             "not the public key of a user nkey",
		"keys:\n" + party(`"a b"`, "operator", k, "flush"):                                  "is no name",
		"kays: []": `unknown key "kays", did you mean "keys"?`,
	} {
		_, err := OpenTrust(write(t, text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
	if _, err := OpenTrust("/nonexistent/trust.yaml"); err == nil {
		t.Error("a file that is not there")
	}
}

func TestReadSigner(t *testing.T) {
	s, seed, err := NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := ReadSigner(write(t, string(seed)+"\n")); err != nil || r.Public() != s.Public() {
		t.Errorf("read back: %v", err)
	}
	for _, bad := range []string{"", s.Public(), string(seed[:20]), "SA" + string(seed[2:])} {
		_, err := ReadSigner(write(t, bad))
		if err == nil || !strings.Contains(err.Error(), "not the seed of a user nkey") {
			t.Errorf("%.10q…: %v", bad, err)
		}
		if err != nil && len(bad) > 20 && strings.Contains(err.Error(), bad[:20]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func FuzzVerify(f *testing.F) {
	s := signer(f)
	trust, err := OpenTrust(write(f, "keys:\n"+party("a", "operator", s.Public(), "flush")))
	if err != nil {
		f.Fatal(err)
	}
	good, err := s.Sign("subject", []byte("body"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good.Key, good.Signature, "subject", []byte("body"))
	f.Add("", "", "", []byte(nil))
	f.Fuzz(func(t *testing.T, key, signature, subject string, body []byte) {
		_, err := trust.Verify(Seal{key, signature}, VerbFlush, subject, body)
		if err == nil && (subject != "subject" || string(body) != "body") {
			t.Errorf("accepted %q, %q", subject, body)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	s := signer(b)
	trust, err := OpenTrust(write(b, "keys:\n"+party("a", "operator", s.Public(), "flush")))
	if err != nil {
		b.Fatal(err)
	}
	body := make([]byte, 300)
	seal, err := s.Sign("ct.v1.cmd.fw-a.flush", body)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := trust.Verify(seal, VerbFlush, "ct.v1.cmd.fw-a.flush", body); err != nil {
			b.Fatal(err)
		}
	}
}

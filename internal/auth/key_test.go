package auth

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/seal"
)

func TestNewKey(t *testing.T) {
	dir := t.TempDir()
	trustFile := filepath.Join(dir, "trust.yaml")
	newKey := func(name, role string) error {
		return NewKey(filepath.Join(dir, name+".nk"), trustFile, &seal.Party{Name: name, Role: role, Verbs: DefaultVerbs(role)})
	}
	if err := newKey("alice", seal.RoleOperator); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(trustFile, append(read(t, trustFile), "  # a comment"...), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := newKey("robot", seal.RoleResponder); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(read(t, trustFile)), "# a comment") {
		t.Error("the comment is gone")
	}
	trust, err := seal.OpenTrust(trustFile)
	if err != nil {
		t.Fatal(err)
	}
	for name, verbs := range map[string]map[string]bool{"alice": {seal.VerbFlush: true, seal.VerbGuard: true}, "robot": {seal.VerbFlush: true, seal.VerbGuard: false}} {
		file := filepath.Join(dir, name+".nk")
		s, err := seal.ReadSigner(file)
		if err != nil {
			t.Fatal(err)
		}
		sig, err := s.Sign("subject", nil)
		if err != nil {
			t.Fatal(err)
		}
		for verb, want := range verbs {
			if p, err := trust.Verify(sig, verb, "subject", nil); (err == nil) != want || want && p.Name != name {
				t.Errorf("%s may %s: %v (%+v), want %t", name, verb, err, p, want)
			}
		}
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
	}

	// What goes wrong changes nothing.
	before := string(read(t, trustFile))
	if err := newKey("alice", seal.RoleOperator); err == nil || !strings.Contains(err.Error(), "listed already") {
		t.Errorf("a second alice: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bob.nk"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := newKey("bob", seal.RoleOperator); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a seed that is there: %v", err)
	}
	if string(read(t, trustFile)) != before {
		t.Error("the trust file was changed")
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

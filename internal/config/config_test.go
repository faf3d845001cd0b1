package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"
)

type sample struct {
	Rules []struct {
		Name    string        `yaml:"name"`
		Seconds int           `yaml:"seconds"`
		For     time.Duration `yaml:"for"`
	} `yaml:"rules"`
	MaxFiring int `yaml:"max_firing"`
}

func TestParseNamesWhatAndWhere(t *testing.T) {
	f := func(doc string, want ...string) {
		t.Helper()
		var v sample
		err := Parse("rules.yaml", []byte(doc), &v)
		if len(want) == 0 {
			if err != nil {
				t.Fatalf("%q: %v", doc, err)
			}
			return
		}
		if err == nil {
			t.Fatalf("%q: accepted", doc)
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q: error %q does not say %q", doc, err, w)
			}
		}
		if strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error is more than one line: %q", doc, err)
		}
	}
	f("")
	f("# nothing but a comment\n")
	f("---\n")
	f("---\nmax_firing: 3\n...\n")
	f("max_firing: 3\nrules:\n  - name: a\n    seconds: 10\n    for: 5s\n")
	f("max_firing: 3\nrules:\n  - name: a\n    secnds: 10\n", "rules.yaml:4:5", `unknown key "secnds"`, `did you mean "seconds"?`)
	f("rules:\n  - name: a\n    seconds: soon\n", "rules.yaml:3:14")
	f("max_firing: 1\nmax_firing: 2\n", "rules.yaml:2")
	f("zzzzzzzzzzzz: 1\n", "rules.yaml:1:1", "valid are", "max_firing")
	f("rules: [\n", "rules.yaml:1")
	f("max_firing: 1\n---\nmax_firing: 2\n", "second")
}

// TestEmptyKeepsDefaults: what a file does not say stays as it was.
func TestEmptyKeepsDefaults(t *testing.T) {
	for _, doc := range []string{"", "\n", "# comment\n", "---\n"} {
		v := sample{MaxFiring: 7}
		if err := Parse("rules.yaml", []byte(doc), &v); err != nil || v.MaxFiring != 7 {
			t.Errorf("%q: %+v, %v", doc, v, err)
		}
	}
}

// FuzzParse feeds any text; nothing may panic. The library does on
// "rules:\n  ! #0000".
func FuzzParse(f *testing.F) {
	f.Add([]byte("max_firing: 3\nrules:\n  - name: a\n    seconds: 10\n"))
	f.Add([]byte("rules:\n  ! #0000"))
	f.Add([]byte("a: &a [*a]\n---\nb"))
	f.Fuzz(func(_ *testing.T, data []byte) {
		var v sample
		_ = Parse("fuzz.yaml", data, &v) // an error is an answer
	})
}

func TestFlagsFileEnvironmentOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "producer.yaml")
	parse := func(doc string, args ...string) (string, []string, error) {
		t.Helper()
		if err := os.WriteFile(path, []byte(doc), 0o600); err != nil {
			t.Fatal(err)
		}
		var cli struct {
			Name    string `env:"CONFIGTEST_NAME" default:"default"`
			Protect []string
		}
		r, err := LoadFlags(path)
		if err != nil {
			return "", nil, err
		}
		p, err := kong.New(&cli, kong.Resolvers(r), kong.Exit(func(int) {}))
		if err != nil {
			t.Fatal(err)
		}
		_, err = p.Parse(args)
		return cli.Name, cli.Protect, err
	}
	if name, _, err := parse("protect: [192.0.2.1, 192.0.2.2]\n"); err != nil || name != "default" {
		t.Fatalf("default: %q, %v", name, err)
	}
	name, protect, err := parse("name: file\nprotect: [192.0.2.1, 192.0.2.2]\n")
	if err != nil || name != "file" || len(protect) != 2 {
		t.Fatalf("file: %q %q, %v", name, protect, err)
	}
	t.Setenv("CONFIGTEST_NAME", "environment")
	if name, _, err := parse("name: file\n"); err != nil || name != "environment" {
		t.Fatalf("environment: %q, %v", name, err)
	}
	if name, _, err := parse("name: file\n", "--name=flag"); err != nil || name != "flag" {
		t.Fatalf("flag: %q, %v", name, err)
	}
	_, _, err = parse("\nnmae: file\n")
	if err == nil || !strings.Contains(err.Error(), "producer.yaml:2") || !strings.Contains(err.Error(), `did you mean "name"?`) {
		t.Fatalf("a misspelt key: %v", err)
	}
}

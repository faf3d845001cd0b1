package host

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestResolvers(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "resolv.conf")
	f := func(content string, fails bool, want ...string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readResolvers(path)
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		if !slices.Equal(text, want) || (err != nil) != fails {
			t.Errorf("%.60q: %v, %v; want %v", content, text, err, want)
		}
	}
	f("", false)
	f("# nameserver 192.0.2.9\nsearch example.net\nnameserver 192.0.2.1 \n\tnameserver\t2001:db8::1\nnameserver fe80::1%eth0\nnameserver\nnameserver somewhere\nnameserver ::ffff:192.0.2.2",
		false, "192.0.2.1", "2001:db8::1", "fe80::1", "192.0.2.2")
	f("nameserver 192.0.2.1\n"+strings.Repeat("x", 1<<17), true, "192.0.2.1")
	if got, err := readResolvers(filepath.Join(dir, "none")); got != nil || err != nil {
		t.Errorf("no file: %v, %v", got, err)
	}
	if _, err := readResolvers(dir); err == nil {
		t.Error("a directory was read")
	}
}

func TestNameOf(t *testing.T) {
	f := func(hostname, want string) {
		t.Helper()
		got := nameOf(hostname)
		if got != want {
			t.Errorf("%q: %q, want %q", hostname, got, want)
		}
		if err := events.CheckName(got); err != nil {
			t.Errorf("%q: %v", hostname, err)
		}
	}
	f("fw-a", "fw-a")
	f("FW1.lis.example.net", "fw1-lis-example-net")
	f("a_b", "a_b")
	f("-_x", "x")
	f("wächter", "w-chter")
	f("a b/c>*", "a-b-c--")
	f("", "firewall")
	f("---", "firewall")
	f(strings.Repeat("long.", 20), strings.Repeat("long-", 20)[:63])
	if err := events.CheckName(Name()); err != nil {
		t.Errorf("this host: %v", err)
	}
}

func FuzzResolvers(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\nnameserver fe80::1%eth0"))
	path := filepath.Join(f.TempDir(), "resolv.conf")
	f.Fuzz(func(t *testing.T, content []byte) {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		got, _ := readResolvers(path)
		for _, a := range got {
			if !a.IsValid() || a.Zone() != "" || a.Is4In6() {
				t.Fatalf("%q: %v", content, a)
			}
		}
	})
}

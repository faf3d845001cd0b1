//go:build linux

package producer

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestReload changes what a producer protects, and whom it trusts, while it runs.
func TestReload(t *testing.T) {
	trust := filepath.Join(t.TempDir(), "trust.yaml")
	if err := os.WriteFile(trust, []byte("# nobody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, Options{AllowFlush: true, Trust: trust})
	r.flood(udp4("198.18.0.9/32", 0, 20))
	r.until("all flows", func() bool { return r.new == 20 })
	dry := func(id, want string) {
		t.Helper()
		var reasons []string
		for _, f := range r.flush(events.Command{ID: id, Addresses: []string{"198.18.0.9"}, DryRun: true}).Refused {
			reasons = append(reasons, f.Reason)
		}
		if got := strings.Join(reasons, " "); got != want {
			t.Errorf("%s: refused %q, want %q", id, got, want)
		}
	}
	next := r.p.options()
	var fails error
	r.p.deps.Options = func() (Options, error) { return next, fails }
	reload := func() error {
		apply, err := r.p.Reload()
		if err == nil {
			apply(t.Context())
		}
		return err
	}
	dry("before", "")
	config := r.p.health(false).Config

	next.Protect = []netip.Prefix{netip.MustParsePrefix("198.18.0.8/29")}
	next.RingBytes *= 2 // which needs a restart
	if err := reload(); err != nil {
		t.Fatal(err)
	}
	dry("protected", guard.Protected)
	after := r.p.health(false).Config
	if after == config || r.p.options().RingBytes == next.RingBytes {
		t.Errorf("config %s was %s, ring %d: health must say what runs", after, config, r.p.options().RingBytes)
	}

	// What is wrong changes nothing, of the other file neither.
	next.Protect = nil
	for what, change := range map[string]func(){
		"a flag":              func() { fails = errors.New("producer.yaml:3: unknown key") },
		"a value":             func() { fails, next.MinLocal = nil, 1<<62 },
		"a trust file":        func() { next.MinLocal = 0; rewrite(t, trust, "keys: [{name: x}]\n") },
		"no file, and so on ": func() { _ = os.Remove(trust) },
	} {
		change()
		if err := reload(); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line", what, err)
		}
		dry("still protected "+what, guard.Protected)
		fails, next.MinLocal = nil, 0
		rewrite(t, trust, "# nobody\n")
	}

	if err := os.Remove(trust); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "operator.nk")
	if err := auth.NewKey(key, trust, &seal.Party{Name: "anna", Role: seal.RoleOperator, Verbs: auth.DefaultVerbs(seal.RoleOperator)}); err != nil {
		t.Fatal(err)
	}
	if err := reload(); err != nil {
		t.Fatal(err)
	}
	r.until("the allowlist is read again", func() bool { return r.p.allow.Current() == nil })
	dry("free again", "")
	if r.p.trust.Len() != 1 {
		t.Errorf("trusts %s", r.p.trust)
	}
	if err := reload(); err != nil { // nothing has changed
		t.Fatal(err)
	}

	var acts []audit.Entry
	r.until("both changes in the audit", func() bool {
		acts = nil
		err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{All: true, Filter: events.AuditSubject("fw-a", events.VerbReload)}, func(m bus.Msg) {
			e, err := audit.Read(&m, nil)
			if err != nil {
				t.Errorf("%s: %v", m.Subject, err)
			}
			acts = append(acts, e)
		})
		return err == nil && len(acts) == 2
	})
	for i, want := range []struct{ before, after, what string }{{config, after, "changed: --protect"}, {after, r.p.health(false).Config, "trusts 1 keys"}} {
		if a := acts[i].Act; acts[i].Actor != "fw-a" || a.Before != want.before || a.After != want.after || !strings.Contains(a.What, want.what) {
			t.Errorf("audit: %+v, want %+v", a, want)
		}
	}
}

func rewrite(t *testing.T, file, content string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestFlagNames: a reload that needs a restart names flags as they are typed.
func TestFlagNames(t *testing.T) {
	var cli struct{ Options }
	parser, err := kong.New(&cli, kong.Vars{"version": ""})
	if err != nil {
		t.Fatal(err)
	}
	var flags []string
	for _, f := range parser.Model.Flags {
		flags = append(flags, f.Name)
	}
	for f := range reflect.TypeFor[Options]().Fields() {
		if name := flagName(f); !slices.Contains(flags, name) {
			t.Errorf("%s is no flag: %v", name, flags)
		}
	}
}

// TestDigest: what must differ between firewalls does not count, what must not does.
func TestDigest(t *testing.T) {
	a := Options{Name: "fw-a", Realm: "lis1", Label: map[string]string{"site": "lis1"}, MinLocal: 50}
	b := Options{Name: "fw-b", Realm: "opo1", Label: map[string]string{"site": "opo1"}, MinLocal: 50}
	if a.digest("x") != b.digest("x") {
		t.Error("two firewalls with the same configuration have two digests")
	}
	if b.MinLocal = 49; a.digest("x") == b.digest("x") || a.digest("x") == a.digest("y") {
		t.Error("another configuration, or another trust file, has the same digest")
	}
}

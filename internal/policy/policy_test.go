package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/pkg/events"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// file is one that flushes what rule "flood" finds.
func file(change func(*File)) File {
	f := Default()
	f.Mode = Enforce
	f.Policies = []Policy{{Rule: "flood"}}
	f.Allowlist = []netip.Prefix{netip.MustParsePrefix("198.18.5.0/24"), netip.MustParsePrefix("198.18.6.7/32")}
	if change != nil {
		change(&f)
	}
	return f
}

func engine(t *testing.T, change func(*File)) *Engine {
	t.Helper()
	f := file(change)
	if err := f.Validate(); err != nil {
		t.Fatal(err)
	}
	return New(f)
}

func alert(change func(*events.Alert)) *events.Alert {
	a := &events.Alert{
		ID: "a1", Rule: "flood", State: events.Firing, Scope: "fleet", Realm: events.RealmDefault, Key: "198.18.0.1", Track: "by_src", Metric: "new",
		Value: 200, Count: 100, Seconds: 10, Firewalls: map[string]float64{"fw-a": 90, "fw-b": 110}, Text: "flood: 198.18.0.1 opened 200 flows",
	}
	if change != nil {
		change(a)
	}
	return a
}

// fleet has a firewall that the alert does not name, one that is silent, and
// one of another realm.
func fleet() []Firewall {
	return []Firewall{
		{"fw-c", events.RealmDefault, true}, {"fw-b", events.RealmDefault, true}, {"fw-a", events.RealmDefault, true},
		{"fw-d", events.RealmDefault, false}, {"fw-x", "branch", true},
	}
}

func known() Known { return Known{Fleet: fleet(), Allow: &allowlist.List{}} }

// TestLiveAllowlist: it counts beside the file's, and where it is not known nothing
// is done. What an alert says of it does not matter: it may be of a moment ago.
func TestLiveAllowlist(t *testing.T) {
	live := func(entries ...allowlist.Entry) Known {
		return Known{Fleet: fleet(), Allow: allowlist.New(entries...)}
	}
	ten := netip.MustParsePrefix("198.18.0.0/24")
	one := netip.MustParsePrefix("198.18.0.1/32")
	for what, c := range map[string]struct {
		known  Known
		reason string
	}{
		"on it":         {live(allowlist.Entry{Prefix: ten, Why: "backup"}), "198.18.0.1/32 is on the allowlist: 198.18.0.0/24 (backup)"},
		"an exception":  {live(allowlist.Entry{Prefix: ten}, allowlist.Entry{Prefix: one, Except: true}), ""},
		"not on it":     {live(), ""},
		"it is unknown": {Known{Fleet: fleet(), AllowError: errors.New("not read yet")}, "the live allowlist is not known: not read yet"},
	} {
		d, _ := engine(t, nil).Decide(alert(func(a *events.Alert) { a.Allowlisted = true }), 0, start, c.known)
		if (c.reason == "") != (d.Outcome == events.OutcomeCommanded) || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %s because %q, want %q", what, d.Outcome, d.Reason, c.reason)
		}
	}
}

func TestDecide(t *testing.T) {
	f := func(outcome, reason string, firewalls string, change func(*events.Alert)) {
		t.Helper()
		a := alert(change)
		d, ok := engine(t, nil).Decide(a, time.Second, start, known())
		if !ok || d.Outcome != outcome || !strings.Contains(d.Reason, reason) {
			t.Errorf("%+v: %q because %q (%t), want %q because %q", a, d.Outcome, d.Reason, ok, outcome, reason)
		}
		if got := strings.Join(d.Firewalls, " "); outcome == events.OutcomeCommanded && got != firewalls {
			t.Errorf("%+v: commands %s, want %s", a, got, firewalls)
		}
		if d.Action != ActionFlush || d.Mode != Enforce || outcome == events.OutcomeCommanded && d.By != events.BySrc {
			t.Errorf("%+v: %+v", a, d)
		}
	}
	key := func(k string) func(*events.Alert) { return func(a *events.Alert) { a.Key = k } }
	const no = events.OutcomeDeclined
	f(events.OutcomeCommanded, "opened 200 flows", "fw-a fw-b", nil)
	f(events.OutcomeCommanded, "", "fw-a fw-b", key("2001:db8:18::/64"))
	f(events.OutcomeCommanded, "", "fw-a fw-b", key("198.18.6.0/30"))
	f(no, "the victim is not flushed", "", func(a *events.Alert) { a.Track = "by_dst" })
	f(no, "names no address", "", func(a *events.Alert) { a.Track, a.Key = "table", "table" })
	f(no, "names no address", "", func(a *events.Alert) { a.Track = "by_moon" })
	f(no, "no address", "", key("table"))
	f(no, "simulated", "", func(a *events.Alert) { a.Simulated = true })
	f(no, "under the threshold", "", func(a *events.Alert) { a.Value = 99 })
	f(events.OutcomeCommanded, "", "fw-a fw-b", func(a *events.Alert) { a.Value = 100 })
	f(no, "198.18.5.9/32 is on the allowlist: 198.18.5.0/24 (policy file)", "", key("198.18.5.9"))
	f(no, "on the allowlist", "", key("::ffff:198.18.5.9"))
	f(no, "which is on the allowlist", "", key("198.18.6.0/24"))
	f(no, "can be reached", "", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-d": 1} })
	f(no, "can be reached", "", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-unheard": 1} })
	f(no, "can be reached", "", func(a *events.Alert) { a.Firewalls = nil })
	// Realms never mix, whatever the alert names.
	f(no, "can be reached", "", func(a *events.Alert) { a.Realm = "branch" })
	f(no, "can be reached", "", func(a *events.Alert) { a.Firewalls = map[string]float64{"fw-x": 1} })
	f(events.OutcomeCommanded, "", "fw-x", func(a *events.Alert) {
		a.Realm, a.Firewalls = "branch", map[string]float64{"fw-x": 1, "fw-a": 1}
	})
	// A conntrack zone is a realm of its own, and its firewall's to flush.
	f(events.OutcomeCommanded, "", "fw-a fw-b", func(a *events.Alert) { a.Realm = events.ZoneRealm(events.RealmDefault, 7) })
}

func TestNobodyAsked(t *testing.T) {
	e := engine(t, nil)
	for what, a := range map[string]*events.Alert{
		"a rule without a policy": alert(func(a *events.Alert) { a.Rule = "other" }),
		"a resolved alert":        alert(func(a *events.Alert) { a.State = events.Resolved }),
	} {
		if d, ok := e.Decide(a, 0, start, known()); ok {
			t.Errorf("%s: %+v", what, d)
		}
	}
	def := New(Default())
	if _, ok := def.Decide(alert(nil), 0, start, known()); ok {
		t.Error("without a file something was decided")
	}
}

func TestAge(t *testing.T) {
	f := func(age time.Duration, want string) {
		t.Helper()
		if d, _ := engine(t, nil).Decide(alert(nil), age, start, known()); d.Outcome != want {
			t.Errorf("%s old: %q because %q", age, d.Outcome, d.Reason)
		}
	}
	f(-time.Second, events.OutcomeCommanded) // the server's clock is ahead
	f(30*time.Second, events.OutcomeCommanded)
	f(30*time.Second+1, events.OutcomeDeclined)
}

func TestModes(t *testing.T) {
	f := func(whole, own, outcome, mode string) {
		t.Helper()
		e := engine(t, func(f *File) { f.Mode, f.Policies[0].Mode = whole, own })
		d, ok := e.Decide(alert(nil), 0, start, known())
		if !ok || d.Outcome != outcome || d.Mode != mode || len(d.Firewalls) != 2 {
			t.Errorf("mode %s, policy's %q: %+v", whole, own, d)
		}
	}
	f(Enforce, "", events.OutcomeCommanded, Enforce)
	f(Observe, "", events.OutcomeSimulated, Observe)
	f(Enforce, Observe, events.OutcomeSimulated, Observe)
	f(Observe, Enforce, events.OutcomeCommanded, Enforce)
}

func TestUnanswered(t *testing.T) {
	for says, want := range map[string]bool{"": false, UnansweredRefuse: false, UnansweredDelete: true} {
		e := engine(t, func(f *File) { f.Policies[0].Unanswered = says })
		if d, ok := e.Decide(alert(nil), 0, start, known()); !ok || d.Unanswered != want {
			t.Errorf("unanswered: %q: %+v", says, d)
		}
	}
}

func TestWhere(t *testing.T) {
	e := engine(t, func(f *File) { f.Policies[0].Where = WhereRealm })
	d, _ := e.Decide(alert(func(a *events.Alert) { a.Firewalls["fw-unheard"] = 1 }), 0, start, known())
	if !slices.Equal(d.Firewalls, []string{"fw-a", "fw-b", "fw-c"}) || !slices.Equal(d.Away, []string{"fw-d", "fw-unheard"}) {
		t.Errorf("the realm: commands %v, away %v", d.Firewalls, d.Away)
	}
	d, _ = engine(t, nil).Decide(alert(func(a *events.Alert) { a.Firewalls["fw-d"] = 1 }), 0, start, known())
	if !slices.Equal(d.Firewalls, []string{"fw-a", "fw-b"}) || !slices.Equal(d.Away, []string{"fw-d"}) {
		t.Errorf("the alert's: commands %v, away %v", d.Firewalls, d.Away)
	}
}

func TestCoolDown(t *testing.T) {
	e := engine(t, func(f *File) { f.CoolDown = time.Minute })
	f := func(at time.Duration, outcome, reason string, change func(*events.Alert)) {
		t.Helper()
		d, _ := e.Decide(alert(change), 0, start.Add(at), known())
		if d.Outcome != outcome || !strings.Contains(d.Reason, reason) {
			t.Errorf("at %s: %q because %q, want %q because %q", at, d.Outcome, d.Reason, outcome, reason)
		}
	}
	const yes, no = events.OutcomeCommanded, events.OutcomeDeclined
	other := func(a *events.Alert) { a.Key = "198.18.0.2" }
	branch := func(a *events.Alert) { a.Realm, a.Firewalls = "branch", map[string]float64{"fw-x": 1} }
	f(0, yes, "", nil)
	f(time.Second, no, "left alone for another 59s", nil)
	f(time.Second, no, "", func(a *events.Alert) { a.ID, a.Key = "a2", "::ffff:198.18.0.1" }) // another alert of the same address
	f(time.Second, yes, "", other)
	f(time.Second, yes, "", branch) // another host
	f(time.Minute-1, no, "", nil)
	f(time.Minute, yes, "", nil)
	f(time.Minute+1, no, "", nil)
	deed := func(at time.Duration) Deed { return Deed{"a1", start.Add(at).UnixMilli()} }
	first := netip.MustParsePrefix("198.18.0.1/32")
	e.Retract(events.RealmDefault, first, deed(0)) // what failed late ends no cool-down but its own
	e.Retract("branch", first, deed(time.Minute))
	f(time.Minute+1, no, "", nil)
	e.Retract(events.RealmDefault, first, deed(time.Minute))
	f(time.Minute+1, yes, "", nil)

	// Another responder acted, or this one before a restart.
	third := func(a *events.Alert) { a.Key = "198.18.0.3" }
	p := netip.MustParsePrefix("198.18.0.3/32")
	e.Acted(events.RealmDefault, p, Deed{"a3", 90}, start.Add(90*time.Second))
	e.Acted(events.RealmDefault, p, Deed{"a3", 80}, start.Add(80*time.Second)) // records may come in any order
	f(2*time.Minute, no, "left alone for another 30s", third)
	f(3*time.Minute, yes, "", third)

	// What was declined does not begin one, a simulation does.
	fourth := func(a *events.Alert) { a.Key = "198.18.0.4" }
	f(0, no, "", func(a *events.Alert) { fourth(a); a.Value = 1 })
	f(0, yes, "", fourth)
	o := engine(t, func(f *File) { f.Mode = Observe })
	for _, want := range []string{events.OutcomeSimulated, no} {
		if d, _ := o.Decide(alert(nil), 0, start, known()); d.Outcome != want {
			t.Errorf("observing: %q because %q, want %q", d.Outcome, d.Reason, want)
		}
	}
	if f(time.Hour, yes, "", nil); len(e.cooling) != 1 {
		t.Errorf("%d cool-downs are remembered, all but one are over", len(e.cooling))
	}
	none := engine(t, func(f *File) { f.CoolDown = 0 })
	for range 2 {
		if d, _ := none.Decide(alert(nil), 0, start, known()); d.Outcome != yes {
			t.Errorf("without a cool-down: %+v", d)
		}
	}
}

// TestBudget: no more addresses are acted upon within any minute than the file
// allows, by whichever responder, and what came to nothing is given back.
func TestBudget(t *testing.T) {
	e := engine(t, func(f *File) { f.Budget.AddressesPerMinute = 3 })
	n := 0
	f := func(at time.Duration, outcome, reason string) {
		t.Helper()
		n++
		address := netip.AddrFrom4([4]byte{198, 18, 7, byte(n)}).String()
		d, _ := e.Decide(alert(func(a *events.Alert) { a.ID, a.Key = "a"+address, address }), 0, start.Add(at), known())
		if d.Outcome != outcome || !strings.Contains(d.Reason, reason) {
			t.Errorf("at %s: %q because %q, want %q because %q", at, d.Outcome, d.Reason, outcome, reason)
		}
	}
	const yes, no, spent = events.OutcomeCommanded, events.OutcomeDeclined, "the budget of 3 addresses a minute is spent"
	f(0, yes, "")
	other := netip.MustParsePrefix("198.18.8.1/32")
	e.Acted(events.RealmDefault, other, Deed{"b", 1}, start.Add(10*time.Second)) // by another responder
	e.Acted(events.RealmDefault, other, Deed{"b", 1}, start.Add(10*time.Second)) // heard of twice
	f(20*time.Second, yes, "")
	for range 100 {
		f(30*time.Second, no, spent)
	}
	e.Retract(events.RealmDefault, other, Deed{"b", 1})
	f(31*time.Second, yes, "")
	f(31*time.Second, no, spent)
	f(time.Minute-1, no, spent)
	f(time.Minute, yes, "")
	f(time.Minute, no, spent)
	f(80*time.Second, yes, "")

	mixed := engine(t, func(f *File) {
		f.Budget.AddressesPerMinute = 1
		f.Policies = append(f.Policies, Policy{Rule: "trial", Mode: Observe})
	})
	for i, step := range []struct{ rule, outcome string }{
		{"trial", events.OutcomeSimulated}, {"trial", no}, {"flood", yes}, {"flood", no},
	} {
		d, _ := mixed.Decide(alert(func(a *events.Alert) { a.Rule, a.Key = step.rule, fmt.Sprint("198.18.9.", i) }), 0, start, known())
		if d.Outcome != step.outcome {
			t.Errorf("step %d, %s: %+v, want %q", i, step.rule, d, step.outcome)
		}
	}

	none := engine(t, func(f *File) { f.Budget.AddressesPerMinute = 0 })
	for i := range 200 {
		if d, _ := none.Decide(alert(func(a *events.Alert) { a.Key = netip.AddrFrom4([4]byte{198, 18, 7, byte(i)}).String() }), 0, start, known()); d.Outcome != yes {
			t.Fatalf("without a budget: %+v", d)
		}
	}
}

func TestCommandID(t *testing.T) {
	seen := map[string]string{}
	for _, args := range [][3]string{{"a1", "fw-a", "flush"}, {"a1", "fw-b", "flush"}, {"a2", "fw-a", "flush"}, {"a1", "fw-a", "block"}, {"a1f", "w-a", "flush"}, {"a1", "", "flush"}} {
		id := CommandID(args[0], args[1], args[2])
		if len(id) != 24 || id != CommandID(args[0], args[1], args[2]) {
			t.Errorf("%v: id %q", args, id)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%v has the id of %s", args, other)
		}
		seen[id] = strings.Join(args[:], " ")
	}
	// Two responders of different builds make the same command.
	if got := CommandID("a1", "fw-a", "flush"); got != "694cff9a277ea759434d1841" {
		t.Errorf("the id of a command changed: %s", got)
	}
}

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
	f(`mode: "" is neither "observe" nor "enforce"`, func(f *File) { f.Mode = "" })
	f(`mode: approve needs approvals`, func(f *File) { f.Mode = "approve" })
	f(`cool_down: must not be negative`, func(f *File) { f.CoolDown = -1 })
	f(`budget: addresses_per_minute: must not be negative, is -1`, func(f *File) { f.Budget.AddressesPerMinute = -1 })
	f(`max_age: must be positive`, func(f *File) { f.MaxAge = 0 })
	f(`allowlist: 10.0.0.1/8 has bits beyond its length, 10.0.0.0/8 is meant?`, func(f *File) { f.Allowlist[0] = netip.MustParsePrefix("10.0.0.1/8") })
	f(`allowlist: an entry is empty`, func(f *File) { f.Allowlist[0] = netip.Prefix{} })
	f(`policies[0]: rule: name is empty`, func(f *File) { f.Policies[0].Rule = "" })
	f(`policies[0]: rule: name "A"`, func(f *File) { f.Policies[0].Rule = "A" })
	f(`policies[1]: rule flood has a policy already`, func(f *File) { f.Policies = append(f.Policies, f.Policies[0]) })
	f(`policy for flood: mode: "enforced" is neither`, func(f *File) { f.Policies[0].Mode = "enforced" })
	f(`policy for flood: action: "block" is not known, this version has "flush"`, func(f *File) { f.Policies[0].Action = "block" })
	f(`policy for flood: where: "site" is neither "alert" nor "realm"`, func(f *File) { f.Policies[0].Where = "site" })
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
	if got.Mode != Enforce || len(got.Policies) != 2 || got.Policies[0].Where != WhereRealm || got.Policies[1] != (Policy{"other", Observe, ActionFlush, WhereAlert, UnansweredRefuse}) ||
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
	f("mode: approve\n", "policy.yaml", "approvals")
	f("mode: enfroce\n", "policy.yaml", `"enfroce" is neither`)
	f("cool_down: soon\n", "policy.yaml", `"soon"`)
	f("cool_down: -1s\n", "policy.yaml", "negative")
	f("policies:\n  - rule: a\n    unanswered: keep\n", "policy.yaml:3", `unanswered: "keep" is neither "refuse" nor "delete"`)
	f("policies:\n  - rule: a\n  - rule: a\n", "policy.yaml", "rule a has a policy already")
}

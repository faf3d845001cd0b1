package policy

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
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

// decide proposes and charges, as a responder does, and returns the first decision.
func decide(e *Engine, l *events.Ledger, a *events.Alert, age time.Duration, now time.Time, k Known) (Decision, bool) {
	ds := e.Propose(a, age, k)
	if len(ds) == 0 {
		return Decision{}, false
	}
	e.Charge(&ds[0], l, now)
	return ds[0], true
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
		d, _ := decide(engine(t, nil), &events.Ledger{}, alert(func(a *events.Alert) { a.Allowlisted = true }), 0, start, c.known)
		if (c.reason == "") != (d.Outcome == events.OutcomeCommanded) || !strings.Contains(d.Reason, c.reason) {
			t.Errorf("%s: %s because %q, want %q", what, d.Outcome, d.Reason, c.reason)
		}
	}
}

func TestDecide(t *testing.T) {
	f := func(outcome, reason string, firewalls string, change func(*events.Alert)) {
		t.Helper()
		a := alert(change)
		d, ok := decide(engine(t, nil), &events.Ledger{}, a, time.Second, start, known())
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
	f(events.OutcomeCommanded, "opened 200 flows", "fw-a fw-b", nil)
	f(events.OutcomeCommanded, "", "fw-a fw-b", key("2001:db8:18::/64"))
	f(events.OutcomeCommanded, "", "fw-a fw-b", key("198.18.6.0/30"))
	f(no, "the victim is not flushed", "", func(a *events.Alert) { a.Track, a.SampleSize = "by_dst", 9 })
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
		if d, ok := decide(e, &events.Ledger{}, a, 0, start, known()); ok {
			t.Errorf("%s: %+v", what, d)
		}
	}
	def := New(Default())
	if _, ok := decide(def, &events.Ledger{}, alert(nil), 0, start, known()); ok {
		t.Error("without a file something was decided")
	}
}

func TestAge(t *testing.T) {
	f := func(age time.Duration, want string) {
		t.Helper()
		if d, _ := decide(engine(t, nil), &events.Ledger{}, alert(nil), age, start, known()); d.Outcome != want {
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
		d, ok := decide(e, &events.Ledger{}, alert(nil), 0, start, known())
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
		if d, ok := decide(e, &events.Ledger{}, alert(nil), 0, start, known()); !ok || d.Unanswered != want {
			t.Errorf("unanswered: %q: %+v", says, d)
		}
	}
}

func TestWhere(t *testing.T) {
	e := engine(t, func(f *File) { f.Policies[0].Where = WhereRealm })
	d, _ := decide(e, &events.Ledger{}, alert(func(a *events.Alert) { a.Firewalls["fw-unheard"] = 1 }), 0, start, known())
	if !slices.Equal(d.Firewalls, []string{"fw-a", "fw-b", "fw-c"}) || !slices.Equal(d.Away, []string{"fw-d", "fw-unheard"}) {
		t.Errorf("the realm: commands %v, away %v", d.Firewalls, d.Away)
	}
	d, _ = decide(engine(t, nil), &events.Ledger{}, alert(func(a *events.Alert) { a.Firewalls["fw-d"] = 1 }), 0, start, known())
	if !slices.Equal(d.Firewalls, []string{"fw-a", "fw-b"}) || !slices.Equal(d.Away, []string{"fw-d"}) {
		t.Errorf("the alert's: commands %v, away %v", d.Firewalls, d.Away)
	}
}

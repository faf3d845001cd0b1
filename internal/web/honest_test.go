package web_test

import (
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/web/webtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestHonest: the page says what keeps a number from being the truth.
func TestHonest(t *testing.T) {
	t.Parallel()
	s := office()
	s.firewalls[0].State, s.firewalls[0].AgeMS = events.StateSilent, 125_000
	s.firewalls[1].Source, s.firewalls[1].Table = "replay", events.TableHealth{}
	s.firewalls[2].Approximate, s.firewalls[2].Rivals, s.firewalls[2].Lost = true, true, 5
	s.firewalls = append(s.firewalls, status("fw-new", 10, 100, 1), status("fw-old", 10, 100, 1), status("fw-off", 10, 100, 1))
	s.firewalls[3].ActiveKnown = false
	s.firewalls[4].State, s.firewalls[4].AgeMS = events.StateStale, 4_000
	s.firewalls[5].State = events.StateStopped
	s.top[events.BySrc].Partial, s.top[events.BySrc].Stale, s.top[events.BySrc].Unknown = true, []string{"fw-far"}, []string{"fw-new"}
	s.firewalls[3].MutedUntil = time.Now().Add(time.Hour).UnixMilli()
	s.firing[0].Lossy, s.firing[0].Stale, s.firing[0].Simulated, s.firing[0].Allowlisted = true, true, true, true
	s.firing[0].Approximate, s.firing[0].Muted = true, true
	s.entries[0].Decision.Simulated, s.entries[0].Decision.Outcome = true, events.OutcomeSimulated
	s.entries[1].Receipt.Refused = []events.Refusal{{Reason: "own-address", Count: 3}}
	r := newRig(t, s)
	r.Size(1400, 900)
	r.Open("")
	for _, want := range []string{"silent 2 min", "recording", "no table", "approximate", "two producers", "5 lost", "active unknown", "stale", "stopped", "muted until"} {
		r.Says("#tiles", want)
	}
	r.Says("#totals", "3 of 6 fresh")
	r.Says("#notices", "Nothing is heard from fw-far, fw-old")
	r.Says("#notices", "Simulated: what fw-lis sends is a recording")
	for _, want := range []string{"The window has not filled yet", "Silent, and so not in these rows: fw-far.", "Not known yet, and so not in these rows: fw-new."} {
		r.Says("#top-note", want)
	}
	for _, want := range []string{"lossy", "stale", "simulated", "allowlisted", "approximate", "muted"} {
		r.Says("#alert-rows", want)
	}
	r.Says("#deed-rows", "simulated")
	r.Says("#deed-rows", "refused: own-address (3)")
	r.Picture("honest")
	r.legible("doubts")
	// What is lost now is said where everybody looks.
	r.src.change(func(s *source) { s.firewalls[2].Lost = 9 })
	r.Says("#notices", "1 firewall lost events within the last minute (fw-opo)")
	r.src.change(func(s *source) { s.top[events.BySrc].Metric = "active" })
	r.Says("#top-note", "Approximate until the next dump: fw-opo.")
}

// TestHostile: whatever a name, a key or a reason tries to be, it is text.
func TestHostile(t *testing.T) {
	t.Parallel()
	const evil = `<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>`
	s := office()
	s.firewalls[0].Firewall = evil
	s.firewalls[0].Problems = []string{evil}
	s.firewalls[0].Labels = map[string]string{evil: evil}
	s.firewalls[0].State = events.StateSilent
	s.firewalls[0].Source, s.firewalls[0].Realm, s.firewalls[0].Version = evil, evil, evil
	s.top[events.BySrc].Rows[0].Key = evil
	s.top[events.BySrc].Rows[0].Firewalls = map[string]uint64{evil: 7}
	s.top[events.BySrc].Stale = []string{evil}
	s.firing[0].Key, s.firing[0].Rule, s.firing[0].Text, s.firing[0].Scope, s.firing[0].Severity = evil, evil, evil, evil, evil
	d := s.entries[0].Decision
	d.Key, d.Action, d.Reason, d.Outcome, d.Rule, d.Firewalls = evil, evil, evil, evil, evil, []string{evil}
	rc := s.entries[1].Receipt
	rc.Firewall, rc.Verb, rc.Error, rc.Who, rc.Addresses, rc.Refused = evil, evil, evil, evil, []string{evil}, []events.Refusal{{Reason: evil}}
	s.entries = append(s.entries, audit.Entry{Time: time.Now(), Verb: evil, Act: &events.Act{Verb: evil, What: evil, Who: evil, Reason: evil}, Unsigned: evil})
	// What no date can be must not keep the rest from being drawn.
	s.firing[0].Started, s.past[0].Updated, d.Time, rc.Time, rc.BlockedUntil = 1<<62, 1<<62, 1<<62, 1<<62, new(int64(1<<62))
	// A firewall whose name is one, and nothing else of it.
	s.firewalls[1].Problems, s.firewalls[1].Version, s.firewalls[1].Labels, s.firewalls[1].Realm = []string{evil}, evil, map[string]string{evil: evil}, evil
	s.address.Allowlisted = &events.AddressEntry{Prefix: evil, Why: evil}
	s.address.Src.Peers = []events.Share{{Value: evil, Count: 1}}
	s.address.Src.Counts[0].Firewalls = map[string]uint64{evil: 1}
	s.address.Alerts = s.firing
	s.address.Stale = []string{evil}
	r := newRig(t, s)
	r.ExpectFailures() // a name that is none is refused
	r.Size(1400, 900)
	markup := func() {
		t.Helper()
		if webtest.Eval[bool](r.Tab, `window.pwned !== undefined || document.querySelectorAll("img, body script").length > 0`) {
			t.Error("it became markup")
		}
		if over := webtest.Eval[[]string](r.Tab, beyond); len(over) > 0 {
			t.Errorf("beyond the right edge: %q", over)
		}
	}
	r.Open("")
	for _, place := range []string{"#tiles", "#by-src", "#alert-rows", "#deed-rows", "#top-note", "#notices"} {
		r.Says(place, evil)
	}
	markup()
	r.Open("#/address/198.51.100.7")
	r.Says("#story-body", evil)
	markup()
	r.Open("#/firewall/fw-lis")
	r.Says("#story-body .text", evil)
	r.Says("#story-body .facts", "label "+evil)
	markup()
	r.Open("#/firewall/" + strings.ReplaceAll(evil, " ", "%20"))
	r.Says("#story-title", evil)
	webtest.Eval[bool](r.Tab, `{location.hash = "#/address/%zz"; true}`)
	r.Until(`!document.getElementById("story").open`)
	markup()
}

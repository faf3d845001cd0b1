package web_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/web/webtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// full opens the page on the fleet of an office and waits until all of it is there.
func full(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, office())
	r.Size(1400, 900)
	r.Open("")
	r.Says("#link", "Live")
	r.Says("#tiles", "fw-opo")
	r.Says("#by-src", "2001:db8::7")
	r.Says("#by-dst", "203.0.113.53")
	r.Says("#alert-rows", "new-flows-by-source")
	r.Says("#deed-rows", "fw-lis")
	return r
}

// TestScreen: all of the fleet at a glance.
func TestScreen(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.Picture("light")
	r.Media("prefers-color-scheme", "dark")
	r.Picture("dark")

	if got, want := r.Text("#totals"), "firewalls\n3\nnew flows/s\n641\ntable entries\n82K\nevents lost\n0\nalerts firing\n1"; got != want {
		t.Errorf("totals %q, want %q", got, want)
	}
	if title := webtest.Eval[string](r.Tab, "document.title"); title != "(1) ctfleet" {
		t.Errorf("title %q", title)
	}
	// The fullest first, with what an operator wants to know of it.
	if got := r.Text("#tiles li:first-child"); !strings.HasPrefix(got, "fw-opo\n78 %\n51K of 65.5K\n291 new/s") {
		t.Errorf("first tile %q", got)
	}
	if got := r.Text("#by-src tbody tr:first-child"); got != "198.51.100.7\t4,100\t\nfw-lis 2.1K · fw-opo 2K" {
		t.Errorf("first row %q", got)
	}
	// Bars are as long as the shares: 2100 and 2000 of 4100, the largest row.
	if got := webtest.Eval[[]string](r.Tab, `[...document.querySelectorAll("#by-src tr:first-child .shares span")].map((e) => e.style.width + " " + e.title)`); !slices.Equal(got,
		[]string{"51.2195% fw-lis: 2,100, 51\u202f%", "48.7805% fw-opo: 2,000, 49\u202f%"}) {
		t.Errorf("shares %q", got)
	}
	if got := r.Text("#alert-rows tbody tr:first-child"); !strings.Contains(got, "firing") || !strings.Contains(got, "4100 flows within 10 s") || !strings.Contains(got, "critical") || !strings.Contains(got, ", 4 min") {
		t.Errorf("first alert %q", got)
	}
	if got := r.Text("#alert-rows tbody tr:last-child"); !strings.Contains(got, "resolved") || !strings.Contains(got, ", 15 min") {
		t.Errorf("last alert %q", got)
	}
	// From 40 to 25 minutes ago, on a line of an hour.
	if bar := webtest.Eval[[]float64](r.Tab, `["x", "width"].map((n) => Math.round(document.querySelector("#alert-rows tr:last-child rect").getAttribute(n)))`); !slices.Equal(bar, []float64{33, 25}) {
		t.Errorf("bar %v", bar)
	}
	if got := r.Text("#deed-rows"); !strings.Contains(got, "fw-lis: 2,100 of 2,100 entries of 198.51.100.7 deleted in 4.3 ms, table 24,100 → 22,000") ||
		!strings.Contains(got, "commanded flush 198.51.100.7 on fw-lis, fw-opo") {
		t.Errorf("deeds %q", got)
	}
}

// TestEmpty: who has nothing yet is told what to do next.
func TestEmpty(t *testing.T) {
	t.Parallel()
	r := newRig(t, &source{})
	r.Open("")
	r.Says("#fleet-empty", "producer --nats-url")
	r.Says("#alerts-empty", "Nothing fires")
	r.Says("#deeds-empty", "Nothing was decided")
	r.Says("#by-src + .empty", "No flow of this selection")
	r.Says("#by-dst + .empty", "No flow of this selection")
	r.Picture("empty")
	r.legible("empty")
}

// TestLive: what changes is shown without a flicker: elements stay, and so does the
// focus.
func TestLive(t *testing.T) {
	t.Parallel()
	r := full(t)
	webtest.Eval[bool](r.Tab, `{window.tile = document.querySelector("#tiles li:nth-child(2)"); window.row = document.querySelector("#by-src tr:nth-child(2)"); row.querySelector("button").focus(); window.changes = 0;
		new MutationObserver((all) => { changes += all.filter((m) => m.type === "childList" && (m.target.id === "tiles" || m.target.tagName === "TBODY")).length; }).observe(document.querySelector("main"), {subtree: true, childList: true}); true}`)
	r.src.change(func(s *source) {
		s.firewalls[1].NewPerS = 777
		s.top[events.BySrc].Rows[1].Value = 901
	})
	r.Says("#tiles", "777 new/s")
	r.Says("#by-src", "901")
	if !webtest.Eval[bool](r.Tab, `tile.isConnected && row.isConnected && document.activeElement === row.querySelector("button")`) {
		t.Error("an element was made anew, or lost the focus")
	}
	if n := webtest.Eval[int](r.Tab, "changes"); n != 0 {
		t.Errorf("tiles or rows were taken out or put in %d times", n)
	}
	// A row that overtakes another moves, and keeps the focus.
	r.src.change(func(s *source) {
		rows := s.top[events.BySrc].Rows
		rows[1].Value = 5000
		rows[0], rows[1] = rows[1], rows[0]
	})
	r.Says("#by-src tbody tr:first-child", "2001:db8::7")
	if !webtest.Eval[bool](r.Tab, `row.isConnected && document.activeElement === row.querySelector("button")`) {
		t.Error("the row that moved lost the focus")
	}
	// An alert and a receipt come over the stream, and an alert goes.
	over := r.src.firing[0]
	over.State, over.Updated = events.Resolved, time.Now().UnixMilli()
	r.src.send(&over, nil)
	r.Says("#totals", "alerts firing\n0")
	r.Until(`document.title === "ctfleet"`)
	r.src.send(nil, &audit.Entry{Time: time.Now(), Actor: events.ActorOperator, Verb: events.VerbCircuit, Act: &events.Act{Verb: events.VerbCircuit, What: "closed the circuit", Who: "alice", Reason: "it was a test"}})
	r.Says("#deed-rows li:first-child", "closed the circuit by alice: it was a test")
	// A firewall that fills is drawn, and its time is told.
	count := r.src.firewalls[0].Table.Count
	for range 6 {
		count += 1000
		r.src.change(func(s *source) { s.firewalls[0].Table.Count = count })
		r.Says("#tiles", fmt.Sprintf("%dK of 65.5K", count/1000))
	}
	r.Says("#tiles li:nth-child(3)", "full in ")
}

// TestControls: each control asks the question that it says.
func TestControls(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.asks("the beginning", func(q *events.TopQuery) bool {
		return *q == events.TopQuery{By: "dst", Metric: "new", WindowS: 10, Limit: 10}
	})
	r.Set("select[name=window]", "60")
	r.asks("60 s", func(q *events.TopQuery) bool { return q.WindowS == 60 })
	r.Set("select[name=metric]", "unreplied")
	r.asks("unreplied", func(q *events.TopQuery) bool { return q.Metric == "unreplied" && q.WindowS == 60 })
	r.Set("select[name=metric]", "active")
	r.asks("active", func(q *events.TopQuery) bool { return q.Metric == "active" && q.WindowS == 0 })
	r.Until(`document.querySelector("select[name=window]").disabled`)
	r.Set("select[name=metric]", "new")
	r.Set("select[name=limit]", "100")
	r.asks("100 rows", func(q *events.TopQuery) bool { return q.Limit == 100 })
	r.Set("select[name=firewall]", "fw-opo")
	r.asks("a firewall", func(q *events.TopQuery) bool { return q.Firewall == "fw-opo" })
	r.Set("input[name=prefix]", "10.0.0.0/8")
	r.asks("a prefix", func(q *events.TopQuery) bool { return q.Prefix == "10.0.0.0/8" })
	r.Click("input[name=hide]")
	r.asks("no allowlisted", func(q *events.TopQuery) bool { return q.Allowlisted == "hide" })
	at := int64(webtest.Eval[float64](r.Tab, `new Date("2026-11-25T14:05").getTime()`))
	r.src.change(func(s *source) { s.top[events.BySrc].At = at })
	r.Set("input[name=at]", "2026-11-25T14:05")
	r.asks("the past", func(q *events.TopQuery) bool { return q.At == at && q.WindowS == 0 })
	r.Says("#top-note", "As it was in the minute of")
	r.Click("#now")
	r.asks("now again", func(q *events.TopQuery) bool { return q.At == 0 })
	r.Until(`document.getElementById("now").hidden`)

	r.Set("#fleet-filter", "opo")
	r.Until(`document.querySelectorAll("#tiles li").length === 1`)
	r.Set("#fleet-filter", "nowhere")
	r.Says("#fleet-empty", "No firewall has that in its name")
	r.Set("#fleet-filter", "")
	r.Set("#fleet-order", "name")
	r.Says("#tiles li:first-child", "fw-far")
	r.Set("#fleet-order", "new")
	r.Says("#tiles li:first-child", "fw-lis")
}

// TestRefused: what the server says against a question is shown beside it.
func TestRefused(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.ExpectFailures()
	r.Set("input[name=prefix]", "10.0.0.0/99")
	r.Says("#top-note.bad", `parameter prefix: "10.0.0.0/99" is neither`)
	r.Until(`document.querySelector("input[name=prefix]").getAttribute("aria-invalid") === "true"`)
	r.Set("input[name=prefix]", "")
	r.Until(`document.getElementById("top-note").innerText === "" && !document.querySelector("input[name=prefix]").hasAttribute("aria-invalid")`)
	r.src.change(func(s *source) {
		s.topErr = errors.New("at: this aggregator keeps no history (aggregator --history FILE)")
	})
	r.Says("#top-note.bad", "keeps no history")
}

// TestAddress: a click on an address opens its story, which has an address itself.
func TestAddress(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.Click("#by-src button")
	r.Says("#story-title", attacker)
	for _, want := range []string{"new flows, 10 s", "4,100", "fw-lis 2,100 · fw-opo 2,000", "not known", "95 % of those that ended", "of a sample of 64: 203.0.113.53 (60)", "udp/53 (64)",
		"198.51.100.7 opened 4100 flows", "commanded flush 198.51.100.7", "2,100 of 2,100 entries", "ctfleet flush 198.51.100.7 --dry-run"} {
		r.Says("#story-body", want)
	}
	r.Picture("address")
	if hash := webtest.Eval[string](r.Tab, "location.hash"); hash != "#/address/198.51.100.7" {
		t.Errorf("hash %q", hash)
	}
	// What becomes known while it is open is shown.
	r.src.change(func(s *source) {
		a := *s.address
		a.Lossy, a.Stale, a.Allowlisted = true, []string{"fw-far"}, &events.AddressEntry{Prefix: "198.51.100.0/24", Why: "our scanner"}
		s.address = &a
	})
	r.Says("#story-note", "Events were lost within the longest window")
	r.Says("#story-note", "Silent, and so not counted: fw-far.")
	r.Says("#story-body", "198.51.100.0/24: our scanner")
	r.Do(chromedp.KeyEvent(kb.Escape))
	r.Until(`!document.getElementById("story").open && location.hash === ""`)
	// Back opens it again, and a link does.
	r.Do(chromedp.NavigateBack())
	r.Until(`document.getElementById("story").open`)
	r.Click("#story-close")
	r.Until(`!document.getElementById("story").open`)
	r.Open("#/address/198.51.100.7")
	r.Says("#story-body", "4,100")
	// Of what nothing can be told, it is said why.
	r.ExpectFailures()
	webtest.Eval[string](r.Tab, `location.hash = "#/address/192.0.2.1"`)
	r.Says("#story-note.bad", "nothing is known of 192.0.2.1")
}

// TestFirewall: a click on a firewall opens its table.
func TestFirewall(t *testing.T) {
	t.Parallel()
	s := office()
	f := &s.firewalls[2]
	f.Problems = []string{"nf_conntrack_acct is off"}
	f.Kernel.Drop, f.Stream.LostSocket, f.Lost = 4, 17, 17
	f.Labels = map[string]string{"site": "opo1"}
	r := newRig(t, s)
	r.Open("")
	r.Says("#tiles", "fw-opo")
	r.asks("its sources", func(q *events.TopQuery) bool { return q.By == events.BySrc })
	r.Click("#tiles li:first-child button")
	r.Says("#story-title", "fw-opo")
	for _, want := range []string{"78 %: 51,000 of 65,536 entries", "291 new flows/s", "nf_conntrack_acct is off", "label site", "opo1", "17, 0, 0", "198.51.100.7"} {
		r.Says("#story-body", want)
	}
	r.asks("its own sources", func(q *events.TopQuery) bool { return q.Firewall == "fw-opo" && q.By == events.BySrc })
	r.Picture("firewall")
	r.Click("#story-body table button")
	r.Says("#story-title", attacker)
	webtest.Eval[string](r.Tab, `location.hash = "#/firewall/fw-nowhere"`)
	r.Says("#story-note.bad", "knows no firewall of this name")
}

// TestPause: the picture stays as it is, and goes on where the fleet is by then.
func TestPause(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.Click("#pause")
	r.Says("#link", "Paused")
	r.src.change(func(s *source) { s.firewalls[1].NewPerS = 777; s.top[events.BySrc].Rows[1].Value = 901 })
	time.Sleep(2500 * time.Millisecond) // two ticks
	if text := r.Text("main"); strings.Contains(text, "777") || strings.Contains(text, "901") {
		t.Errorf("it went on: %s", text)
	}
	r.Click("#pause")
	r.Says("#link", "Live")
	r.Says("#tiles", "777 new/s")
	r.Says("#by-src", "901")
}

// TestReconnect: an aggregator that goes away is said to be away, with the last
// picture, and what happened meanwhile is there when it comes back.
func TestReconnect(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.ExpectFailures()
	webtest.Eval[bool](r.Tab, `window.same = true`)
	r.stop()
	r.Says("#link", "Disconnected")
	r.Says("#notices .bad", "Disconnected since")
	r.Says("#tiles", "fw-opo")
	r.Picture("disconnected")
	r.legible("disconnected")
	r.src.change(func(s *source) {
		s.firewalls[1].NewPerS = 777
		a := s.firing[0]
		a.ID, a.Key, a.Text = "a3", "192.0.2.77", "192.0.2.77 opened 5000 flows"
		s.firing = append(s.firing, a)
	})
	r.serve()
	r.Says("#link", "Live")
	r.Says("#tiles", "777 new/s")
	r.Says("#alert-rows", "192.0.2.77 opened 5000 flows")
	r.Says("#totals", "alerts firing\n2")
	r.Until(`document.querySelectorAll("#notices li").length === 0`)
	if !webtest.Eval[bool](r.Tab, `window.same === true`) {
		t.Error("the page was loaded anew")
	}
}

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

// TestToken: where a token is needed, the page asks for it.
func TestToken(t *testing.T) {
	t.Parallel()
	const token = "0123456789abcdef"
	r := newRig(t, office())
	r.stop()
	r.access.HTTPTokenFile = filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(r.access.HTTPTokenFile, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.access.CheckAccess(r.listen); err != nil {
		t.Fatal(err)
	}
	r.serve()
	r.ExpectFailures()
	r.Open("")
	r.Until(`document.getElementById("sign-in").open`)
	r.Picture("token")
	r.legible("sign-in")
	enter := func(s string) {
		r.Do(chromedp.SendKeys(chromedp.CSS("#token"), s+kb.Enter))
	}
	enter("0123456789abcdeX")
	r.Says("#token-note", "This is not the token.")
	enter(token)
	r.Says("#link", "Live")
	r.Says("#tiles", "fw-opo")
	r.Says("#by-src", attacker)
	r.Says("#alert-rows", "new-flows-by-source")
	if open := webtest.Eval[bool](r.Tab, `document.getElementById("sign-in").open`); open {
		t.Error("it still asks")
	}
	// The tab keeps it, and nothing else does.
	r.Do(chromedp.Reload())
	r.Says("#tiles", "fw-opo")
	r.Open("#/address/198.51.100.7")
	r.Says("#story-body", "4,100")
	if kept := webtest.Eval[int](r.Tab, `localStorage.length + document.cookie.length`); kept != 0 {
		t.Error("the token may be in what outlives the tab")
	}
}

// TestKeyboard: everything can be reached and used without a mouse.
func TestKeyboard(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.ExpectFailures() // what is typed here is no prefix
	r.Do(chromedp.KeyEvent("/"))
	r.Until(`document.activeElement.name === "prefix"`)
	r.Do(chromedp.KeyEvent("p")) // types, and does not pause
	r.Says("#link", "Live")
	r.Set("input[name=prefix]", "")
	webtest.Eval[bool](r.Tab, `{document.activeElement.blur(); true}`)
	r.Do(chromedp.KeyEvent("p"))
	r.Says("#link", "Paused")
	r.Do(chromedp.KeyEvent("p"))
	r.Says("#link", "Live")

	// From the top, Tab comes to each control, in the order of the page.
	r.Do(chromedp.Reload())
	r.Says("#by-dst", "203.0.113.53")
	r.Says("#alert-rows", "resolved")
	reached := []string{}
	for range 40 {
		r.Do(chromedp.KeyEvent(kb.Tab))
		reached = append(reached, webtest.Eval[string](r.Tab, `document.activeElement.id || document.activeElement.name || document.activeElement.innerText.split("\n")[0]`))
	}
	next := 0
	for _, want := range []string{"Skip to who has the most", "pause", "fleet-order", "fleet-filter", "fw-opo", "fw-lis", "fw-far", "metric", "window", "firewall", "prefix", "limit", "hide", "at",
		attacker, "2001:db8::7", "10.0.0.9", "203.0.113.53", attacker, "fw-opo", "API"} {
		i := slices.Index(reached[next:], want)
		if i < 0 {
			t.Fatalf("Tab never came to %s after %q", want, reached[:next])
		}
		next += i + 1
	}
	// Enter opens a story, which has the focus, keeps it, and gives it back.
	webtest.Eval[bool](r.Tab, `{document.querySelector("#by-src button").focus(); true}`)
	r.Do(chromedp.KeyEvent(kb.Enter))
	r.Says("#story-body", "4,100")
	r.Until(`document.getElementById("story").contains(document.activeElement)`)
	for range 6 {
		r.Do(chromedp.KeyEvent(kb.Tab))
		if !webtest.Eval[bool](r.Tab, `document.getElementById("story").contains(document.activeElement) || document.activeElement === document.body`) {
			t.Error("the focus left the story")
		}
	}
	r.Do(chromedp.KeyEvent(kb.Escape))
	r.Until(`document.activeElement === document.querySelector("#by-src button")`)
	// Each control has a name for who cannot see it.
	if unnamed := webtest.Eval[[]string](r.Tab, `[...document.querySelectorAll("button, select, input")].filter((e) => !(e.innerText.trim() || e.labels?.[0]?.innerText.trim() || e.getAttribute("aria-label") || e.closest("[hidden], dialog:not([open])"))).map((e) => e.outerHTML)`); len(unnamed) > 0 {
		t.Errorf("controls without a name: %q", unnamed)
	}
}

// contrast finds texts whose contrast with what is behind them is under 4.5 (WCAG AA).
const contrast = `(() => {
	const parse = (c) => { const m = c.match(/[\d.]+/g).map(Number); return {rgb: m.slice(0, 3), a: m[3] ?? 1}; };
	const light = ([r, g, b]) => { const f = (v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
	const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.a === 1) return c.rgb; } return [255, 255, 255]; };
	const bad = [];
	let seen = 0;
	for (const e of document.querySelectorAll("body *")) {
		if (![...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim()) || !e.checkVisibility() || e.disabled || e.closest(":disabled, noscript, option") || e.classList.contains("skip")) continue;
		const a = light(parse(getComputedStyle(e).color).rgb), b = light(ground(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		seen++;
		if (ratio < 4.5) bad.push(ratio.toFixed(2) + " " + e.tagName + "." + e.className + " " + e.innerText.slice(0, 30));
	}
	return seen < 20 ? ["only " + seen + " texts were seen"] : bad;
})()`

// legible checks that what is to be seen can be read, in the light and in the dark.
func (r *rig) legible(what string) {
	r.t.Helper()
	for _, scheme := range []string{"light", "dark"} {
		r.Media("prefers-color-scheme", scheme)
		if bad := webtest.Eval[[]string](r.Tab, contrast); len(bad) > 0 {
			r.t.Errorf("%s, %s: %s", what, scheme, strings.Join(bad, "\n"))
		}
	}
}

// TestContrast: everything can be read, in the light and in the dark.
func TestContrast(t *testing.T) {
	t.Parallel()
	r := full(t)
	r.legible("the screen")
	r.Open("#/address/198.51.100.7")
	r.Says("#story-body", "4,100")
	r.legible("an address")
	r.Open("#/firewall/fw-opo")
	r.Says("#story-body", "may flush")
	r.legible("a firewall")
}

// beyond finds what lies beyond the right edge.
const beyond = `[...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest("pre, .skip, .shares") && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.tagName + "#" + e.id + "." + e.className)`

// TestPhone: on a narrow screen nothing lies beside it.
func TestPhone(t *testing.T) {
	t.Parallel()
	s := office()
	s.top[events.BySrc].Rows[1].Key = "2001:db8:1234:5678:9abc:def0:1234:5678"
	r := newRig(t, s)
	r.Size(360, 740)
	r.Open("")
	r.Says("#by-src", "2001:db8:1234")
	r.Says("#alert-rows", "resolved")
	if over := webtest.Eval[[]string](r.Tab, beyond); len(over) > 0 {
		t.Errorf("beyond the right edge: %q", over)
	}
	r.Picture("phone")
	r.Open("#/address/198.51.100.7")
	r.Says("#story-body", "4,100")
	if over := webtest.Eval[[]string](r.Tab, beyond); len(over) > 0 {
		t.Errorf("story, beyond the right edge: %q", over)
	}
	r.Picture("phone-address")
}

// TestReducedMotion: who does not want things to move sees none move.
func TestReducedMotion(t *testing.T) {
	t.Parallel()
	r := full(t)
	moves := `[...document.querySelectorAll("body *")].some((e) => { const s = getComputedStyle(e); return parseFloat(s.transitionDuration) > 0 || parseFloat(s.animationDuration) > 0; })`
	if !webtest.Eval[bool](r.Tab, moves) {
		t.Error("nothing ever moves: this test shows nothing")
	}
	r.Media("prefers-reduced-motion", "reduce")
	if webtest.Eval[bool](r.Tab, moves) {
		t.Error("something moves")
	}
}

// TestManyFirewalls: 200 of them fit on the screen, the urgent one first; the others
// are a click away.
func TestManyFirewalls(t *testing.T) {
	t.Parallel()
	r := newRig(t, many(200))
	r.Size(1400, 900)
	r.Open("")
	r.Says("#tiles li:first-child", "fw-199")
	r.Says("#tiles li:first-child", "95 %")
	if n := webtest.Eval[int](r.Tab, `document.querySelectorAll("#tiles li").length`); n != 24 {
		t.Errorf("%d tiles", n)
	}
	r.Picture("many")
	r.Says("#tiles-more", "Show all 200")
	r.Click("#tiles-more")
	r.Until(`document.querySelectorAll("#tiles li").length === 200`)
	r.Picture("all")
	// A tick changes what it says, and makes no tile anew.
	webtest.Eval[bool](r.Tab, `{window.all = [...document.querySelectorAll("#tiles li")]; true}`)
	r.src.change(func(s *source) { s.firewalls[7].NewPerS = 4321 })
	r.Says("#tiles", "4.32K new/s")
	if made := webtest.Eval[int](r.Tab, `all.filter((e) => !e.isConnected).length`); made != 0 {
		t.Errorf("%d tiles were made anew", made)
	}
}

// TestManyShares: a row that 200 firewalls have a part of is as long as it is large.
func TestManyShares(t *testing.T) {
	t.Parallel()
	s := many(200)
	small := events.TopRow{Key: "192.0.2.200", Value: 400, Firewalls: map[string]uint64{}}
	for _, f := range s.firewalls {
		small.Firewalls[f.Firewall] = 2
	}
	s.top[events.BySrc].Rows[1] = small
	r := newRig(t, s)
	r.Size(360, 740)
	r.Open("")
	r.Says("#by-src", "192.0.2.200")
	r.Says("#by-src", "195 more")
	r.Until(`(([large, row]) => Math.abs(row.getBoundingClientRect().width / large.getBoundingClientRect().width - 400 / 4100) < 0.02)(document.querySelectorAll("#by-src .shares"))`)
	if n := webtest.Eval[int](r.Tab, `document.querySelectorAll("#by-src tr:nth-child(2) .shares span").length`); n != 9 {
		t.Errorf("%d parts", n)
	}
	if over := webtest.Eval[[]string](r.Tab, beyond); len(over) > 0 {
		t.Errorf("beyond the right edge: %q", over)
	}
}

// TestMeanwhile: what the stream says while the views are being read is newer than
// they are.
func TestMeanwhile(t *testing.T) {
	t.Parallel()
	s := office()
	s.hold = make(chan struct{})
	r := newRig(t, s)
	r.Open("")
	r.Says("#tiles", "fw-opo")
	over, other := s.firing[0], s.firing[0]
	over.State, over.Updated = events.Resolved, time.Now().UnixMilli()
	other.ID, other.Key, other.Text = "a9", "192.0.2.99", "192.0.2.99 opened 9999 flows"
	if got := r.Text("#totals"); !strings.HasSuffix(got, "alerts firing\n–") {
		t.Errorf("what is not known yet is told: %q", got)
	}
	r.src.send(&over, &s.entries[0])
	r.src.send(&other, nil)
	r.Says("#alert-rows", "192.0.2.99 opened 9999 flows")
	close(s.hold)
	r.Says("#alert-rows", "table-75")
	r.Says("#totals", "alerts firing\n1")
	r.Until(`document.querySelectorAll("#alert-rows tr[data-state=firing]").length === 1`)
	r.Says("#deed-rows", "fw-lis: 2,100")
	if n := webtest.Eval[int](r.Tab, `document.querySelectorAll("#deed-rows li").length`); n != 2 {
		t.Errorf("%d deeds, want 2: what came twice is shown twice", n)
	}
}

// TestRealms: an address means one host in each realm, and the page shows one realm.
func TestRealms(t *testing.T) {
	t.Parallel()
	s := office()
	for i, realm := range []string{"branch-a", "branch-a", "branch-b"} {
		s.firewalls[i].Realm = realm
	}
	r := newRig(t, s)
	r.Open("")
	r.asks("the first realm, since no firewall is in the default one", func(q *events.TopQuery) bool { return q.Realm == "branch-a" })
	r.Set("#realm", "branch-b")
	r.asks("the other", func(q *events.TopQuery) bool { return q.Realm == "branch-b" })
	r.Set("select[name=firewall]", "fw-far")
	r.asks("a firewall, of whatever realm", func(q *events.TopQuery) bool { return q.Firewall == "fw-far" && q.Realm == "" })
	r.Until(`document.querySelector("#by-src button")`)
	r.ExpectFailures() // it is known in another
	r.Click("#by-src button")
	r.Until(`location.hash === "#/address/198.51.100.7?realm=branch-a"`)
	// So it does from the story of a firewall.
	r.Open("#/firewall/fw-opo")
	r.Until(`document.querySelector("#story-body table button")`)
	r.Click("#story-body table button")
	r.Until(`location.hash === "#/address/198.51.100.7?realm=branch-b"`)
}

// TestFiles: each file is what it says, may be kept, and is asked for again.
func TestFiles(t *testing.T) {
	t.Parallel()
	r := newRig(t, &source{})
	get := func(path, tag string) *http.Response {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.listen+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("If-None-Match", tag)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		if err = errors.Join(err, resp.Body.Close()); err != nil {
			t.Fatal(err)
		}
		if resp.StatusCode == http.StatusOK && len(body) == 0 {
			t.Errorf("%s is empty", path)
		}
		return resp
	}
	for path, kind := range map[string]string{"/": "text/html; charset=utf-8", "/assets/style.css": "text/css; charset=utf-8", "/assets/main.js": "text/javascript; charset=utf-8", "/assets/icon.svg": "image/svg+xml"} {
		first := get(path, "")
		if first.StatusCode != http.StatusOK || first.Header.Get("Content-Type") != kind || first.Header.Get("Cache-Control") != "no-cache" {
			t.Errorf("%s: %d %v", path, first.StatusCode, first.Header)
		}
		if csp := first.Header.Get("Content-Security-Policy"); !strings.HasPrefix(csp, "default-src 'none'; script-src 'self'") || strings.Contains(csp, "unsafe") {
			t.Errorf("%s: policy %q", path, csp)
		}
		if again := get(path, first.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
			t.Errorf("%s again: %d", path, again.StatusCode)
		}
	}
	for _, path := range []string{"/assets/", "/assets/none.js", "/assets/../web.go", "/index.html"} {
		if resp := get(path, ""); resp.StatusCode != http.StatusNotFound || resp.Header.Get("Content-Type") != "application/problem+json" {
			t.Errorf("%s: %d %v", path, resp.StatusCode, resp.Header)
		}
	}
}

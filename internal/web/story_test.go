package web_test

import (
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/ctfleet/ctfleet/internal/web/webtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

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

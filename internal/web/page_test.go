package web_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

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

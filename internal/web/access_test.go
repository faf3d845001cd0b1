package web_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/ctfleet/ctfleet/internal/web/webtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

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

package web_test

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/ctfleet/ctfleet/internal/web/webtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

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

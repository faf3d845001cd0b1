// Package webtest shows pages to tests in a real browser: Chromium, without a window.
package webtest

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

// Patience is how long a page may take to show something. It is for a machine that
// does something else, too.
const Patience = 20 * time.Second

// browser is the one that all tests of a process open their tabs in.
var browser = sync.OnceValues(func() (context.Context, error) {
	alloc, stopAlloc := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.NoSandbox)...)
	ctx, stop := chromedp.NewContext(alloc)
	closeBrowser = func() { stop(); stopAlloc() }
	return ctx, chromedp.Do(ctx)
})

var closeBrowser = func() {}

// Close ends the browser, if one was started: TestMain calls it after the tests.
func Close() { closeBrowser() }

// Tab is one window of the browser, with a storage of its own. When the test ends, the
// console must have had no errors, and no other host may have been asked.
type Tab struct {
	t    testing.TB
	host string
	ctx  context.Context

	mu         sync.Mutex
	complaints []string
	failures   bool // that requests fail is meant
}

// Open opens a tab for the pages of a host. Where there is no Chromium, the test is
// skipped, or fails when CTFLEET_REQUIRE_KERNEL=1.
func Open(t testing.TB, host string) *Tab {
	t.Helper()
	b, err := browser()
	if err != nil {
		labtest.Lacks(t, "Chromium (Debian: chromium): %v", err)
	}
	tab := &Tab{t: t, host: host}
	ctx, closeTab := chromedp.NewContext(b, chromedp.WithNewBrowserContext(), chromedp.WithListener(tab.hear))
	tab.ctx = ctx
	t.Cleanup(func() {
		closeTab()
		tab.mu.Lock()
		defer tab.mu.Unlock()
		for _, c := range tab.complaints {
			t.Error(c)
		}
	})
	if err := chromedp.Do(ctx); err != nil { // the tab lives as long as the context of the first call
		t.Fatal(err)
	}
	tab.Do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := cdp.Call(ctx, t, network.Enable, network.EnableParams{}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, t, log.Enable, cdp.Empty{})
		return err
	}))
	return tab
}

func (tab *Tab) hear(ev any) {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	complain := func(format string, args ...any) {
		tab.complaints = append(tab.complaints, fmt.Sprintf(format, args...))
	}
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		complain("the page threw %s %s:%d %v", ev.ExceptionDetails.Text, ev.ExceptionDetails.URL, ev.ExceptionDetails.LineNumber+1, ev.ExceptionDetails.Exception)
	case *runtime.EventConsoleAPICalled:
		complain("the page wrote to the console: %s %v", ev.Type, ev.Args)
	case *log.EventEntryAdded:
		if ev.Entry.Source == log.EntrySourceNetwork && tab.failures {
			return
		}
		complain("the browser complains: %s %s", ev.Entry.Text, ev.Entry.URL)
	case *network.EventRequestWillBeSent:
		// data: is what the browser draws its own controls with.
		if u, err := url.Parse(ev.Request.URL); err != nil || u.Host != tab.host && u.Scheme != "data" {
			complain("the page asked %s", ev.Request.URL)
		}
	}
}

// ExpectFailures says that requests may fail from now on.
func (tab *Tab) ExpectFailures() {
	tab.mu.Lock()
	defer tab.mu.Unlock()
	tab.failures = true
}

// run runs an action of the browser.
func run[T any](tab *Tab, action chromedp.Action[T]) T {
	tab.t.Helper()
	ctx, cancel := context.WithTimeout(tab.ctx, Patience)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		tab.t.Fatal(err)
	}
	return v
}

// Do does what a person does.
func (tab *Tab) Do(actions ...chromedp.Action[chromedp.Void]) {
	tab.t.Helper()
	run(tab, chromedp.Steps(actions...))
}

// Open shows a place of the host, below /.
func (tab *Tab) Open(place string) {
	tab.t.Helper()
	tab.Do(chromedp.Navigate("http://" + tab.host + "/" + place))
}

// Size makes the window so large.
func (tab *Tab) Size(width, height int64) {
	tab.t.Helper()
	tab.Do(chromedp.EmulateViewport(width, height))
}

// Media sets what a style sheet asks about.
func (tab *Tab) Media(name, value string) {
	tab.t.Helper()
	tab.Do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: name, Value: value}}})
		return err
	}))
}

// Eval returns the value of an expression in the page.
func Eval[T any](tab *Tab, expr string) T {
	tab.t.Helper()
	return run(tab, chromedp.Evaluate[T](expr))
}

// Until waits for an expression to be true.
func (tab *Tab) Until(expr string) {
	tab.t.Helper()
	deadline := time.Now().Add(Patience)
	for !Eval[bool](tab, "Boolean("+expr+")") {
		if time.Now().After(deadline) {
			tab.t.Fatalf("never true: %s\n%s", expr, Eval[string](tab, "document.body.innerText"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// text is what the first element that fits a selector shows, with plain spaces.
const text = `document.querySelector(%q)?.innerText.replaceAll("\u202f", " ")`

// Says waits for an element to contain a text.
func (tab *Tab) Says(selector, want string) {
	tab.t.Helper()
	tab.Until(fmt.Sprintf(text+"?.includes(%q)", selector, want))
}

// Text is what an element shows.
func (tab *Tab) Text(selector string) string {
	tab.t.Helper()
	return Eval[string](tab, fmt.Sprintf(text+` ?? "(no such element)"`, selector))
}

// Click clicks as a mouse does.
func (tab *Tab) Click(selector string) {
	tab.t.Helper()
	tab.Do(chromedp.Click(chromedp.CSS(selector)))
}

// Set gives a control a value, as a person who types or chooses it.
func (tab *Tab) Set(selector, value string) {
	tab.t.Helper()
	Eval[bool](tab, fmt.Sprintf(`{const e = document.querySelector(%q); e.value = %q; e.dispatchEvent(new Event("input", {bubbles: true}))}`, selector, value))
}

// Picture writes what the tab shows, for people to look at: go test -artifacts.
func (tab *Tab) Picture(name string) {
	tab.t.Helper()
	png := run(tab, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(tab.t.ArtifactDir(), name+".png"), png, 0o644); err != nil {
		tab.t.Fatal(err)
	}
}

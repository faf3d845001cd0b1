package web_test

import (
	"context"
	"fmt"
	"log/slog"
	"net"
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
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// source is what the API asks: views that a test sets, and what it was asked. The
// page is tested against answers that no aggregator gives, too; that it shows a real
// fleet is tested in cmd/ctfleet.
type source struct {
	mu        sync.Mutex
	firewalls []events.FirewallStatus
	top       map[string]*events.TopReply // by src and dst
	topErr    error
	firing    []events.Alert
	past      []events.Alert
	entries   []audit.Entry
	address   *events.AddressReply
	asked     []events.TopQuery

	watchers []func(*events.Alert, *audit.Entry)
}

func (s *source) change(f func(*source)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

func (s *source) Top(q *events.TopQuery) (*events.TopReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, *q)
	if s.topErr != nil {
		return nil, s.topErr
	}
	by := q.By
	if by == "" {
		by = events.BySrc
	}
	if r := s.top[by]; r != nil {
		return r, nil
	}
	return &events.TopReply{By: by, Metric: events.MetricNew, WindowS: 10, Rows: []events.TopRow{}}, nil
}

func (s *source) Firewalls() *events.FirewallsReply {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &events.FirewallsReply{Firewalls: append([]events.FirewallStatus{}, s.firewalls...)}
}

func (s *source) Alerts(_ context.Context, q *events.AlertsQuery) (*events.AlertsReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.State == events.AlertsPast {
		return &events.AlertsReply{Alerts: append([]events.Alert{}, s.past...)}, nil
	}
	return &events.AlertsReply{Alerts: append([]events.Alert{}, s.firing...)}, nil
}

func (s *source) Address(_ context.Context, q *events.AddressQuery) (*events.AddressReply, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.address == nil || s.address.Address != q.Address {
		return nil, fmt.Errorf("nothing is known of %s", q.Address)
	}
	return s.address, nil
}

func (s *source) Audit(context.Context, int64, string, string, int) (*audit.List, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &audit.List{Entries: append([]audit.Entry{}, s.entries...)}, nil
}

func (s *source) Watch(ctx context.Context, alert func(*events.Alert), entry func(*audit.Entry)) error {
	s.change(func(s *source) {
		s.watchers = append(s.watchers, func(a *events.Alert, e *audit.Entry) {
			if ctx.Err() != nil {
				return
			}
			if a != nil {
				alert(a)
			}
			if e != nil {
				entry(e)
			}
		})
	})
	<-ctx.Done()
	return nil
}

// send passes an alert or an entry on to who watches.
func (s *source) send(a *events.Alert, e *audit.Entry) {
	s.mu.Lock()
	watchers := slices.Clone(s.watchers)
	s.mu.Unlock()
	for _, w := range watchers {
		w(a, e)
	}
}

// browser is the one that all tests open their tabs in.
var browser = sync.OnceValues(func() (context.Context, error) {
	alloc, stopAlloc := chromedp.NewExecAllocator(context.Background(), append(slices.Clone(chromedp.DefaultExecAllocatorOptions[:]), chromedp.NoSandbox)...)
	ctx, stop := chromedp.NewContext(alloc)
	closeBrowser = func() { stop(); stopAlloc() }
	return ctx, chromedp.Do(ctx)
})

var closeBrowser = func() {}

func TestMain(m *testing.M) {
	code := m.Run()
	closeBrowser()
	os.Exit(code)
}

// rig is a served page and a tab that shows it.
type rig struct {
	t      *testing.T
	src    *source
	access daemon.Access
	listen string
	stop   func()
	tab    context.Context

	mu         sync.Mutex
	complaints []string // of the console, and requests to others
	away       bool     // that requests fail is meant
}

// patience is for a machine that does something else, too.
const patience = 20 * time.Second

// newRig serves src and opens a tab, without the page yet. When the test ends, the
// console must have had no errors, and no other host may have been asked.
func newRig(t *testing.T, src *source) *rig {
	t.Helper()
	b, err := browser()
	if err != nil {
		labtest.Lacks(t, "Chromium (Debian: chromium): %v", err)
	}
	r := &rig{t: t, src: src, listen: "127.0.0.1:0"}
	r.serve()
	t.Cleanup(func() { r.stop() })
	var closeTab func()
	// A browser context of its own: another window's storage.
	r.tab, closeTab = chromedp.NewContext(b, chromedp.WithNewBrowserContext(), chromedp.WithListener(r.hear))
	t.Cleanup(closeTab)
	t.Cleanup(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range r.complaints {
			t.Error(c)
		}
	})
	if err := chromedp.Do(r.tab); err != nil { // the tab lives as long as the context of the first call
		t.Fatal(err)
	}
	r.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		if _, err := cdp.Call(ctx, t, network.Enable, network.EnableParams{}); err != nil {
			return err
		}
		_, err := cdp.Call(ctx, t, log.Enable, cdp.Empty{})
		return err
	}))
	return r
}

// serve serves until stop; at the same address when it is called again.
func (r *rig) serve() {
	r.t.Helper()
	l, err := net.Listen("tcp", r.listen)
	if err != nil {
		r.t.Fatal(err)
	}
	r.listen = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- api.Serve(ctx, l, &r.access, r.src, prometheus.NewRegistry(), func() error { return nil }, slog.New(slog.DiscardHandler))
	}()
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Error(err)
			}
		})
	}
}

func (r *rig) hear(ev any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	complain := func(format string, args ...any) { r.complaints = append(r.complaints, fmt.Sprintf(format, args...)) }
	switch ev := ev.(type) {
	case *runtime.EventExceptionThrown:
		complain("the page threw %s %s:%d %v", ev.ExceptionDetails.Text, ev.ExceptionDetails.URL, ev.ExceptionDetails.LineNumber+1, ev.ExceptionDetails.Exception)
	case *runtime.EventConsoleAPICalled:
		complain("the page wrote to the console: %s %v", ev.Type, ev.Args)
	case *log.EventEntryAdded:
		if ev.Entry.Source == log.EntrySourceNetwork && r.away {
			return
		}
		complain("the browser complains: %s %s", ev.Entry.Text, ev.Entry.URL)
	case *network.EventRequestWillBeSent:
		// data: is what the browser draws its own controls with.
		if u, err := url.Parse(ev.Request.URL); err != nil || u.Host != r.listen && u.Scheme != "data" {
			complain("the page asked %s", ev.Request.URL)
		}
	}
}

// expectFailures says that requests fail from now on, and that it is meant.
func (r *rig) expectFailures() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.away = true
}

// run runs an action of the browser.
func run[T any](r *rig, action chromedp.Action[T]) T {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.tab, patience)
	defer cancel()
	v, err := chromedp.Run(ctx, action)
	if err != nil {
		r.t.Fatal(err)
	}
	return v
}

func (r *rig) do(actions ...chromedp.Action[chromedp.Void]) {
	r.t.Helper()
	run(r, chromedp.Steps(actions...))
}

// open shows a place of the page.
func (r *rig) open(place string) {
	r.t.Helper()
	r.do(chromedp.Navigate("http://" + r.listen + "/" + place))
}

func (r *rig) size(width, height int64) {
	r.t.Helper()
	r.do(chromedp.EmulateViewport(width, height))
}

// media sets what a style sheet asks about.
func (r *rig) media(name, value string) {
	r.t.Helper()
	r.do(chromedp.Func(func(ctx context.Context, t *chromedp.Target) error {
		_, err := cdp.Call(ctx, t, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: name, Value: value}}})
		return err
	}))
}

// eval returns the value of an expression.
func eval[T any](r *rig, expr string) T {
	r.t.Helper()
	return run(r, chromedp.Evaluate[T](expr))
}

// until waits for an expression to be true.
func (r *rig) until(expr string) {
	r.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		if eval[bool](r, "Boolean("+expr+")") {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("never true: %s\n%s", expr, eval[string](r, "document.body.innerText"))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// says waits for an element to contain a text.
func (r *rig) says(selector, want string) {
	r.t.Helper()
	r.until(fmt.Sprintf(`document.querySelector(%q)?.innerText.replaceAll("\u202f", " ").includes(%q)`, selector, want))
}

func (r *rig) text(selector string) string {
	r.t.Helper()
	return eval[string](r, fmt.Sprintf(`document.querySelector(%q)?.innerText.replaceAll("\u202f", " ") ?? "(no such element)"`, selector))
}

// click clicks as a mouse does.
func (r *rig) click(selector string) {
	r.t.Helper()
	r.do(chromedp.Click(chromedp.CSS(selector)))
}

// set gives a control a value, as a person who types or chooses it.
func (r *rig) set(selector, value string) {
	r.t.Helper()
	eval[bool](r, fmt.Sprintf(`{const e = document.querySelector(%q); e.value = %q; e.dispatchEvent(new Event("input", {bubbles: true}))}`, selector, value))
}

// asks waits for a question for the top that fits.
func (r *rig) asks(what string, fits func(*events.TopQuery) bool) {
	r.t.Helper()
	r.src.change(func(s *source) { s.asked = nil })
	deadline := time.Now().Add(patience)
	for {
		found := false
		r.src.change(func(s *source) { found = slices.ContainsFunc(s.asked, func(q events.TopQuery) bool { return fits(&q) }) })
		if found {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the page never asked for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// picture writes what the tab shows, for people to look at: go test -artifacts.
func (r *rig) picture(name string) {
	r.t.Helper()
	png := run(r, chromedp.FullScreenshot(100))
	if err := os.WriteFile(filepath.Join(r.t.ArtifactDir(), name+".png"), png, 0o644); err != nil {
		r.t.Fatal(err)
	}
}

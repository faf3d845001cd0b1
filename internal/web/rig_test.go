package web_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/internal/web/webtest"
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
	hold      chan struct{} // where there is one, alerts are answered with what they were, when it is closed

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
		clone := *r // a test may change it while it is written
		clone.Rows = slices.Clone(r.Rows)
		return &clone, nil
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
	list := s.firing
	if q.State == events.AlertsPast {
		list = s.past
	}
	r := &events.AlertsReply{Alerts: append([]events.Alert{}, list...)}
	s.mu.Unlock()
	if s.hold != nil {
		<-s.hold
	}
	return r, nil
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

// Events are not on the page.
func (*source) Events(context.Context, *observe.Question) (*observe.List, error) {
	return nil, errors.New("nobody asks for them")
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

func TestMain(m *testing.M) {
	code := m.Run()
	webtest.Close()
	os.Exit(code)
}

// rig is a served page and a tab that shows it.
type rig struct {
	*webtest.Tab
	t      *testing.T
	src    *source
	access daemon.Access
	listen string
	stop   func()
}

// newRig serves src and opens a tab, without the page yet.
func newRig(t *testing.T, src *source) *rig {
	t.Helper()
	r := &rig{t: t, src: src, listen: "127.0.0.1:0"}
	r.serve()
	t.Cleanup(func() { r.stop() })
	r.Tab = webtest.Open(t, r.listen)
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
		done <- api.Serve(ctx, l, &r.access, r.src, prometheus.NewRegistry(), daemon.Health{}, slog.New(slog.DiscardHandler))
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

// asks waits for a question for the top that fits.
func (r *rig) asks(what string, fits func(*events.TopQuery) bool) {
	r.t.Helper()
	r.src.change(func(s *source) { s.asked = nil })
	deadline := time.Now().Add(webtest.Patience)
	for {
		found := false
		r.src.change(func(s *source) {
			found = slices.ContainsFunc(s.asked, func(q events.TopQuery) bool { return fits(&q) })
		})
		if found {
			return
		}
		if time.Now().After(deadline) {
			r.t.Fatalf("the page never asked for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Package api serves the views over HTTP, read-only, as JSON whose keys are
// those of the messages on the bus:
//
//	api.go        the questions
//	events.go     the one about events of flows
//	params.go     their parameters
//	openapi.yaml  what there is, for machines
//	stream.go     what happens, as it happens
package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/internal/web"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Source answers the questions; the aggregator is one. An error is the asker's,
// unless [daemon.IsUnavailable].
type Source interface {
	Top(*events.TopQuery) (*events.TopReply, error)
	Firewalls() *events.FirewallsReply
	Alerts(context.Context, *events.AlertsQuery) (*events.AlertsReply, error)
	Address(context.Context, *events.AddressQuery) (*events.AddressReply, error)
	// Audit returns the latest entries since a time (Unix ms; 0: the last hour) that
	// concern a key and a firewall, where they are not empty.
	Audit(ctx context.Context, since int64, key, firewall string, limit int) (*audit.List, error)
	// Events returns the latest events of flows that were asked for.
	Events(context.Context, *observe.Question) (*observe.List, error)
	// Watch calls the functions for each alert and each entry of the audit from now on,
	// until ctx ends.
	Watch(ctx context.Context, alert func(*events.Alert), entry func(*audit.Entry)) error
}

// How many entries of the audit are answered with.
const (
	defaultEntries = 1000
	maxEntries     = 10_000
)

// Register adds the API to mux, and its metrics to reg, which may be nil. The stream it
// returns must run for events to come.
func Register(mux *http.ServeMux, src Source, reg *prometheus.Registry) *Stream {
	stream := newStream(src, reg)
	mux.Handle("GET /api/v1/stream", stream)
	mux.HandleFunc("GET /api/v1/openapi.yaml", openapi)
	get := func(path string, view func(*http.Request) (any, error)) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
			v, err := view(r)
			if err != nil {
				fail(w, err)
				return
			}
			answer(w, v)
		})
	}
	get("/api/v1/top", func(r *http.Request) (any, error) {
		q := &events.TopQuery{}
		err := parse(r, text("by", &q.By), text("metric", &q.Metric), number("window", &q.WindowS), firewall(&q.Firewall), text("realm", &q.Realm),
			number("limit", &q.Limit), prefix("prefix", &q.Prefix), text("allowlisted", &q.Allowlisted), moment("at", &q.At))
		if err == nil {
			err = q.Validate()
		}
		if err != nil {
			return nil, err
		}
		return src.Top(q)
	})
	get("/api/v1/firewalls", func(r *http.Request) (any, error) {
		if err := parse(r); err != nil {
			return nil, err
		}
		return src.Firewalls(), nil
	})
	get("/api/v1/alerts", func(r *http.Request) (any, error) {
		q := &events.AlertsQuery{}
		err := parse(r, text("state", &q.State), since(&q.Since))
		if err == nil {
			err = q.Validate()
		}
		if err != nil {
			return nil, err
		}
		return src.Alerts(r.Context(), q)
	})
	get("/api/v1/addresses/{ip}", func(r *http.Request) (any, error) {
		q := &events.AddressQuery{Address: r.PathValue("ip")}
		err := parse(r, text("realm", &q.Realm))
		if err == nil {
			err = q.Validate()
		}
		if err != nil {
			return nil, err
		}
		return src.Address(r.Context(), q)
	})
	get("/api/v1/audit", func(r *http.Request) (any, error) {
		var from int64
		var key, of string
		limit := defaultEntries
		if err := parse(r, since(&from), prefix("address", &key), firewall(&of), number("limit", &limit)); err != nil {
			return nil, err
		}
		if limit < 1 || limit > maxEntries {
			return nil, fmt.Errorf("parameter limit: %d is not within 1 to %d", limit, maxEntries)
		}
		return src.Audit(r.Context(), from, key, of, limit)
	})
	get("/api/v1/events", flows(src))
	mux.HandleFunc("GET /api/v1/{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, `ctfleet aggregator: read-only, as JSON

/api/v1/top?by=src&metric=new&window=10&limit=20   also firewall=, realm=, prefix=, allowlisted=hide and at=
/api/v1/firewalls
/api/v1/alerts?state=firing                        also state=past and since=
/api/v1/addresses/198.51.100.7                     also realm=
/api/v1/events?ip=198.51.100.0/24                  also the other filters of ctfleet observe, since= and limit=
/api/v1/audit?since=1h                             also address=, firewall= and limit=
/api/v1/stream                                     server-sent events
/api/v1/openapi.yaml                               all of this, for machines
/metrics  /healthz  /readyz
`)
	})
	return stream
}

// Serve serves the page to everybody, and the API, the metrics of reg and the health of
// who answers to those whom access lets in, on l until ctx ends. A nil listener serves
// nothing.
func Serve(ctx context.Context, l net.Listener, access *daemon.Access, src Source, reg *prometheus.Registry, health daemon.Health, log *slog.Logger) error {
	mux := daemon.Mux(reg, health)
	stream := Register(mux, src, reg)
	page, all := web.Handler(), http.NewServeMux()
	all.Handle("/{$}", page)
	all.Handle("/assets/", page)
	all.Handle("/", access.RequireToken(daemon.Problems(mux)))
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return daemon.Serve(ctx, l, all, log) })
	g.Go(func() error { return stream.Run(ctx) })
	return g.Wait()
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	if daemon.IsUnavailable(err) {
		code = http.StatusServiceUnavailable
	}
	daemon.Problem(w, code, err.Error())
}

func answer(w http.ResponseWriter, v any) {
	var body bytes.Buffer
	if err := json.NewEncoder(&body).Encode(v); err != nil {
		daemon.Problem(w, http.StatusInternalServerError, err.Error())
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_, _ = body.WriteTo(w) // the client may have gone
}

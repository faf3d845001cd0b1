// Package api serves the views over HTTP, read-only, as JSON whose keys are
// those of the messages on the bus.
package api

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Source answers the questions; the aggregator is one.
type Source interface {
	Top(*events.TopQuery) (*events.TopReply, error)
	Firewalls() *events.FirewallsReply
	Alerts() *events.AlertsReply
}

// Register adds the API to mux.
func Register(mux *http.ServeMux, src Source) {
	mux.HandleFunc("GET /api/v1/top", func(w http.ResponseWriter, r *http.Request) {
		q, err := topQuery(r)
		if err != nil {
			fail(w, err)
			return
		}
		reply, err := src.Top(q)
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, reply)
	})
	mux.HandleFunc("GET /api/v1/firewalls", plain(func() any { return src.Firewalls() }))
	mux.HandleFunc("GET /api/v1/alerts", plain(func() any { return src.Alerts() }))
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprint(w, `ctfleet aggregator

/api/v1/top?by=src&metric=new&window=10&limit=20   also firewall=, realm= and at=
/api/v1/firewalls
/api/v1/alerts
/metrics  /healthz  /readyz
`)
	})
}

// plain serves a view that has no parameters.
func plain(view func() any) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		params, err := url.ParseQuery(r.URL.RawQuery)
		for key := range params {
			err = fmt.Errorf("unknown parameter %q: %s has none", key, r.URL.Path)
		}
		if err != nil {
			fail(w, err)
			return
		}
		answer(w, view())
	}
}

// topQuery reads the parameters of /api/v1/top. One that is unknown, repeated or
// badly escaped is refused, so that a misspelt "windw" does not answer another
// question.
func topQuery(r *http.Request) (*events.TopQuery, error) {
	q := &events.TopQuery{}
	params, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return nil, fmt.Errorf("parameters: %w", err)
	}
	for key, values := range params {
		if len(values) > 1 {
			return nil, fmt.Errorf("parameter %s: is given %d times", key, len(values))
		}
		v := values[0]
		switch key {
		case "by":
			q.By = v
		case "metric":
			q.Metric = v
		case "window":
			q.WindowS, err = strconv.Atoi(v)
		case "firewall":
			q.Firewall = v
		case "realm":
			q.Realm = v
		case "limit":
			q.Limit, err = strconv.Atoi(v)
		case "at":
			if q.At, err = pastTime(v); err != nil {
				return nil, err
			}
		default:
			return nil, fmt.Errorf("unknown parameter %q: by, metric, window, firewall, realm, limit and at are known", key)
		}
		if err != nil {
			return nil, fmt.Errorf("parameter %s: %q is no number", key, v)
		}
	}
	return q, q.Validate()
}

// pastTime reads the parameter at: RFC 3339, or Unix ms as in the answer.
func pastTime(v string) (int64, error) {
	if n, err := strconv.ParseInt(v, 10, 64); err == nil && n > 0 {
		return n, nil
	}
	t, err := time.Parse(time.RFC3339, v)
	if err != nil {
		return 0, fmt.Errorf("parameter at: %q is no time: 2026-11-25T14:05:00Z, or Unix ms", v)
	}
	return t.UnixMilli(), nil
}

// unavailable are the errors that are not the asker's.
type unavailable interface {
	error
	Unavailable() bool
}

func fail(w http.ResponseWriter, err error) {
	code := http.StatusBadRequest
	if e, ok := errors.AsType[unavailable](err); ok && e.Unavailable() {
		code = http.StatusServiceUnavailable
	}
	daemon.Problem(w, code, err.Error())
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	_ = json.NewEncoder(w).Encode(v) // the client may have gone
}

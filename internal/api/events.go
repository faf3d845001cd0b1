package api

import (
	"fmt"
	"net/http"

	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// How many events are answered with, and how many values a filter may have: each event
// that is read is compared with them.
const (
	defaultEvents = 100
	maxEvents     = 1000
	maxValues     = 100
)

// flows answers what events of flows there were.
func flows(src Source) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		q := &observe.Question{Limit: defaultEvents}
		err := parse(r, values("firewall", &q.Firewalls), values("ip", &q.IP), values("from-ip", &q.FromIP), values("to-ip", &q.ToIP), values("protocol", &q.Protocol),
			ports(&q.Port), values("type", &q.Type), yes("not", &q.Not), since(&q.Since), number("limit", &q.Limit))
		if err != nil {
			return nil, err
		}
		for _, name := range q.Firewalls {
			if err := events.CheckFirewall(name); err != nil {
				return nil, fmt.Errorf("parameter firewall: %w", err)
			}
		}
		if err := q.Compile(); err != nil {
			return nil, fmt.Errorf("parameter %w", err)
		}
		if q.Limit < 1 || q.Limit > maxEvents {
			return nil, fmt.Errorf("parameter limit: %d is not within 1 to %d", q.Limit, maxEvents)
		}
		return src.Events(r.Context(), q)
	}
}

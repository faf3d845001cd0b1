//go:build linux

package aggregator

import (
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestHearWhatIsOver: that an alert fires, published by another aggregator before the end that this one
// has published, may be heard after it. It must not fire here again, to be ended twice.
func TestHearWhatIsOver(t *testing.T) {
	r := newRig(t)
	a, _ := r.aggregator(newFlows("new-flows", 100, 60))
	fires := events.Alert{
		ID: "0123456789abcdef01234567", Rule: "new-flows", State: events.Firing, Severity: "warning", Scope: events.ScopeFleet, Realm: events.RealmDefault,
		Key: "198.18.0.7", Track: rule.BySrc, Metric: events.MetricNew, Value: 150, Peak: 150, Count: 100, Seconds: 60, Started: time.Now().UnixMilli(), Updated: time.Now().UnixMilli(),
	}
	firing := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.engine.Firing())
	}
	a.hear(&fires)
	if firing() != 1 {
		t.Fatal("what another aggregator says fires does not fire here")
	}
	r.until("it to be over, as nobody opens flows", func() bool { return firing() == 0 })
	late := fires
	late.Updated++
	a.hear(&late)
	if firing() != 0 {
		t.Error("it fires again, by a message from before its end")
	}
	next := fires
	next.ID = "f" + fires.ID[1:]
	a.hear(&next)
	if firing() != 1 {
		t.Error("another alert about the same does not fire")
	}
}

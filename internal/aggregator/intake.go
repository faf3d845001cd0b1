package aggregator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// message is a batch on its way to the counter.
type message struct {
	bus.Msg
	snapshot bool
}

// enqueue hands stream messages to the goroutine that counts.
func (a *Aggregator) enqueue(ctx context.Context, snapshot bool) func(bus.Msg) {
	return func(m bus.Msg) {
		select {
		case a.intake <- message{m, snapshot}:
		case <-ctx.Done():
		}
	}
}

// groupBatches is how many batches are counted together when so many wait.
const groupBatches = 32

// take counts a batch, together with those that wait behind it, and judges what crossed a level.
func (a *Aggregator) take(m message) {
	a.mu.Lock()
	defer a.mu.Unlock()
	last := m
	for n, more := 1, true; more && n <= groupBatches; n++ {
		if err := a.admit(m.Subject, m.Data, m.Time, m.snapshot); err != nil {
			a.refuse("batch", m.Subject, err)
		}
		if !m.snapshot {
			a.lag, last = m.Pending, m
		}
		if !a.live && !m.snapshot && (m.Seq >= a.replay.until || m.Pending == 0) {
			a.count()
			a.goLive()
		}
		if n < groupBatches {
			m, more = a.waiting()
		}
	}
	a.heard = time.Now()
	a.behind = a.clock.Age(last.Time, a.heard)
	if crossed := a.count(); a.live {
		a.judge(crossed)
	}
}

// waiting returns the next batch, if one waits.
func (a *Aggregator) waiting() (m message, ok bool) {
	select {
	case m = <-a.intake:
		return m, true
	default:
		return m, false
	}
}

// kindVersion is the kind under which messages of an unknown version are counted,
// whatever else they are: their sender was upgraded before this aggregator, or not for
// too long.
const kindVersion = "version"

// refuse counts and logs a message that could not be used.
func (a *Aggregator) refuse(kind, subject string, err error) {
	if errors.Is(err, events.ErrVersion) {
		kind = kindVersion
	}
	a.refused.WithLabelValues(kind).Inc()
	a.throttle.Warn(a.log, "refused a message", "kind", kind, "subject", subject, "error", err)
}

// takeHealth notes a firewall's own report.
func (a *Aggregator) takeHealth(subject string, data []byte) {
	h, err := readHealth(subject, data)
	a.mu.Lock()
	defer a.mu.Unlock()
	if err != nil {
		a.refuse("health", subject, err)
		return
	}
	if a.fleet[h.Firewall] == nil && len(a.fleet) >= count.DefaultMaxFirewalls {
		a.refuse("health", subject, fmt.Errorf("%d firewalls are known, which is the limit", len(a.fleet)))
		return
	}
	a.sight(h, time.Now())
}

func readHealth(subject string, data []byte) (*events.Health, error) {
	name, err := events.SubjectFirewall(subject, events.SubjectHealth)
	if err != nil {
		return nil, err
	}
	var h events.Health
	if err := events.Unmarshal(data, &h); err != nil {
		return nil, err
	}
	if h.Firewall != name {
		return nil, fmt.Errorf("it says it is from %s", h.Firewall)
	}
	return &h, nil
}

// recallFleet reads each firewall's last report, so that one that is silent
// now is known and not merely absent.
func (a *Aggregator) recallFleet(ctx context.Context) error {
	last, err := a.conn.Last(ctx, bus.StreamLast, events.SubjectHealth+".*")
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, m := range last {
		h, err := readHealth(m.Subject, m.Data)
		if err != nil {
			a.refuse("health", m.Subject, err)
			continue
		}
		at := time.Now()
		if m.Time.Before(at) { // the server's clock may be ahead of ours
			at = m.Time
		}
		a.sight(h, at)
	}
	return nil
}

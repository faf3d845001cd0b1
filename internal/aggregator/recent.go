package aggregator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// recentFor is how far back is looked where nobody says.
	recentFor = time.Hour
	// maxPast is how many alerts that are over are answered with.
	maxPast = 1000
	// readsAtOnce is how many may read the streams at a time: each is a consumer that
	// the server has to make. More wait.
	readsAtOnce = 4
)

// everybody is trusted: what is shown is marked as not verified, and who acts upon
// it verifies.
var everybody, _ = seal.OpenTrust(seal.TrustNone)

// since is the time to look back to: of the server, which stamps the streams. at is
// Unix ms, 0: so long ago.
func (a *Aggregator) since(at int64, ago time.Duration) time.Time {
	if at != 0 {
		return time.UnixMilli(at)
	}
	return a.now().Add(-ago)
}

// now is the server's time.
func (a *Aggregator) now() time.Time {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.clock.At(time.Now())
}

// read calls fn for what a stream keeps since a time, within [readFor].
func (a *Aggregator) read(ctx context.Context, stream string, from bus.FollowFrom, fn func(*bus.Msg)) error {
	ctx, cancel := context.WithTimeout(ctx, readFor)
	defer cancel()
	select {
	case a.reads <- struct{}{}:
		defer func() { <-a.reads }()
	case <-ctx.Done():
		return daemon.Unavailable(fmt.Errorf("read stream %s: others are reading: %w", stream, ctx.Err()))
	}
	if err := a.conn.Read(ctx, stream, from, func(m bus.Msg) { fn(&m) }); err != nil {
		return daemon.Unavailable(err)
	}
	return nil
}

// A latest keeps the last ones of a list. It holds up to twice as many, so that they
// are moved once in limit.
type latest[T any] struct {
	limit int
	kept  []T
	more  bool // there were others before
}

func (l *latest[T]) add(v T) {
	if l.kept = append(l.kept, v); len(l.kept) >= 2*l.limit {
		l.list()
	}
}

// list returns them, the last one last; never nil.
func (l *latest[T]) list() []T {
	if n := len(l.kept) - l.limit; n > 0 {
		l.kept, l.more = slices.Delete(l.kept, 0, n), true
	}
	if l.kept == nil {
		l.kept = []T{}
	}
	return l.kept
}

// resolved are the alerts that were resolved since a time, newest first.
func (a *Aggregator) resolved(ctx context.Context, since time.Time, limit int, want func(*events.Alert) bool) ([]events.Alert, bool, error) {
	found := latest[events.Alert]{limit: limit}
	from := bus.FollowFrom{Time: since, Filter: events.SubjectAlerts + "." + events.Resolved + ".>"}
	err := a.read(ctx, bus.StreamAlerts, from, func(m *bus.Msg) {
		var al events.Alert
		if err := events.Unmarshal(m.Data, &al); err != nil || al.State != events.Resolved {
			return // said when it was read first, or by who wrote it
		}
		if want(&al) {
			found.add(al)
		}
	})
	list := found.list()
	slices.Reverse(list)
	return list, found.more, err
}

// firing are the alerts that fire, newest first, with their present values.
func (a *Aggregator) firing(want func(*rule.Transition) bool) []events.Alert {
	list := []events.Alert{}
	firing := a.engine.Firing()
	for i := range firing {
		if want(&firing[i]) {
			list = append(list, *a.alert(&firing[i]))
		}
	}
	slices.SortFunc(list, func(x, y events.Alert) int {
		return cmp.Or(cmp.Compare(y.Started, x.Started), cmp.Compare(x.ID, y.ID))
	})
	return list
}

// Alerts are those that fire, or were resolved.
func (a *Aggregator) Alerts(ctx context.Context, q *events.AlertsQuery) (*events.AlertsReply, error) {
	r := &events.AlertsReply{Head: events.Head{V: events.MessageVersion}}
	var err error
	if q.State == events.AlertsPast {
		r.Alerts, r.More, err = a.resolved(ctx, a.since(q.Since, recentFor), maxPast, func(*events.Alert) bool { return true })
		return r, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	r.Alerts = a.firing(func(t *rule.Transition) bool { return t.Started/1e6 >= q.Since })
	return r, nil
}

// Audit are the entries since a time, Unix ms, that concern a key and a firewall:
// the latest ones, oldest first. Nothing tells whose keys operators used: nobody's
// are trusted here.
func (a *Aggregator) Audit(ctx context.Context, since int64, key, firewall string, limit int) (*audit.List, error) {
	found := latest[audit.Entry]{limit: limit}
	err := a.read(ctx, bus.StreamAudit, bus.FollowFrom{Time: a.since(since, recentFor)}, func(m *bus.Msg) {
		if e, err := audit.Read(m, everybody); err == nil && e.Concerns(key, firewall) {
			found.add(e)
		}
	})
	if err != nil {
		return nil, err
	}
	return &audit.List{Entries: found.list(), More: found.more}, nil
}

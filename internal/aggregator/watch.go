package aggregator

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Watch calls the functions for each alert and each entry of the audit that is
// published from now on, this aggregator's or not, until ctx ends: each in order, one
// at a time. After a break of the connection the same may come again.
func (a *Aggregator) Watch(ctx context.Context, alert func(*events.Alert), entry func(*audit.Entry)) error {
	select {
	case <-a.begun:
	case <-ctx.Done():
		return nil
	}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return a.conn.Follow(ctx, bus.StreamAlerts, bus.FollowFrom{}, func(m bus.Msg) {
			var al events.Alert
			if err := events.Unmarshal(m.Data, &al); err != nil {
				a.refuse("alert", m.Subject, err)
				return
			}
			alert(&al)
		})
	})
	g.Go(func() error {
		return a.conn.Follow(ctx, bus.StreamAudit, bus.FollowFrom{}, func(m bus.Msg) {
			e, err := audit.Read(&m, everybody)
			if err != nil {
				a.refuse("audit", m.Subject, err)
				return
			}
			entry(&e)
		})
	})
	return g.Wait()
}

package responder

import (
	"context"

	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// relieve deletes unanswered entries of the largest sources of a table, one source
// after the other, until the table is no fuller than the policy says. Each is a
// decision of its own, through the same guard and budget, with a receipt.
func (r *Responder) relieve(ctx context.Context, a *events.Alert, ds []policy.Decision) {
	r.mu.Lock()
	busy := r.relieving[a.Scope]
	r.relieving[a.Scope] = true
	limit := r.fleet[a.Scope].health.Table.Limit
	r.mu.Unlock()
	if busy {
		return // this is an update of the alert that somebody works on
	}
	defer func() {
		r.mu.Lock()
		delete(r.relieving, a.Scope)
		r.mu.Unlock()
	}()
	for i := range ds {
		receipt, err := r.relieveOf(ctx, a, &ds[i])
		switch {
		case err != nil:
			r.throttle.Warn(r.log, "cannot relieve a table", "firewall", a.Scope, "error", err)
			return
		case ds[i].Outcome == events.OutcomeSimulated:
			return // how far it would get is known to nobody
		case receipt == nil || limit == 0:
		case 100*float64(receipt.TableAfter)/float64(limit) <= ds[i].UntilPercent:
			r.log.Info("the table is relieved", "firewall", a.Scope, "entries", receipt.TableAfter, "limit", limit)
			return
		}
	}
}

// relieveOf deletes what one source has. There is no receipt where nothing was asked
// for.
func (r *Responder) relieveOf(ctx context.Context, a *events.Alert, d *policy.Decision) (*events.Receipt, error) {
	one := []policy.Decision{*d}
	if err := r.settle(ctx, one); err != nil {
		return nil, err
	}
	*d = one[0]
	rec, commands, err := r.note(ctx, a, d)
	if err != nil || len(commands) == 0 {
		return nil, err
	}
	return r.carryOut(ctx, rec, commands)[0], nil // a table is one firewall's
}

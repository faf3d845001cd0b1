package responder

import (
	"context"
	"errors"

	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// relieve deletes unanswered entries of the largest sources of a table, one source
// after the other, until the table is no fuller than the policy says. Each is a
// decision of its own, through the same guard and budget, with a receipt.
func (r *Responder) relieve(ctx context.Context, engine *policy.Engine, a *events.Alert, ds []policy.Decision) {
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
		receipt, err := r.relieveOf(ctx, engine, a, &ds[i])
		switch {
		case errors.Is(err, errOtherPolicy):
			r.log.Info("another policy is in force, the rest is left to it", "firewall", a.Scope)
			return
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

// errOtherPolicy ends what goes step by step when the policy has changed meanwhile.
var errOtherPolicy = errors.New("another policy is in force")

// relieveOf deletes what one source has, if the policy is still the one that proposed
// it. There is no receipt where nothing was asked for.
func (r *Responder) relieveOf(ctx context.Context, engine *policy.Engine, a *events.Alert, d *policy.Decision) (*events.Receipt, error) {
	rec, commands, err := r.relieveStep(ctx, engine, a, d)
	if err != nil || len(commands) == 0 {
		return nil, err
	}
	return r.carryOut(ctx, rec, commands)[0], nil // a table is one firewall's
}

func (r *Responder) relieveStep(ctx context.Context, engine *policy.Engine, a *events.Alert, d *policy.Decision) (*events.Decision, []*events.Command, error) {
	r.changing.RLock()
	defer r.changing.RUnlock()
	if r.engine.Load() != engine {
		return nil, nil, errOtherPolicy
	}
	one := []policy.Decision{*d}
	if err := r.settle(ctx, one); err != nil {
		return nil, nil, err
	}
	*d = one[0]
	return r.note(ctx, a, d)
}

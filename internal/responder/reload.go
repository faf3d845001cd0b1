package responder

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Reload reads the policy and the trust file again, and returns what puts them in
// force, between two decisions; an error says what is wrong, and changes nothing.
//
// What was proposed to a person before is judged by the policy of the moment at which
// it is approved. What relieves a table ends, and is begun anew by the next update of
// its alert, if the policy says so.
func (r *Responder) Reload() (apply func(context.Context), err error) {
	next := *r.file.Load()
	if r.reread != nil {
		if next, err = r.reread(); err == nil {
			err = next.Validate()
		}
		if err != nil {
			return nil, fmt.Errorf("--policy: %w", err)
		}
	}
	trusted, digest, err := r.trust.Read()
	if err != nil {
		return nil, fmt.Errorf("--trust: %w", err)
	}
	return func(context.Context) {
		r.changing.Lock()
		was, trust := r.file.Load(), r.trust.Digest()
		if next.Digest != was.Digest {
			r.file.Store(&next)
			r.engine.Store(policy.New(next))
		}
		trusted()
		r.changing.Unlock()
		if digest != trust { // other entries, answers and orders are believed now
			r.allow.Again()
			r.proposals.Again()
			r.orders.Again()
		}
		if next.Digest != was.Digest {
			r.reloaded(fmt.Sprintf("policy %s, mode %s, policies: %d, instead of %s, mode %s, policies: %d",
				named(next.Digest), next.Mode, len(next.Policies), named(was.Digest), was.Mode, len(was.Policies)), was.Digest, next.Digest)
		}
		if digest != trust {
			r.reloaded(fmt.Sprintf("trust file %s instead of %s: trusts %s", named(digest), named(trust), r.trust), trust, digest)
		}
	}, nil
}

func named(digest string) string { return cmp.Or(digest, "none") }

func hostName() string {
	host, _ := os.Hostname() // an empty name is fine
	return cmp.Or(host, "an unnamed host")
}

// maxActs bounds the acts that wait for the bus.
const maxActs = 64

// reloaded has recorded what was changed.
func (r *Responder) reloaded(what, before, after string) {
	act := &events.Act{
		Verb: events.VerbReload, What: fmt.Sprintf("the responder on %s: %s", hostName(), what),
		Before: before, After: after, Reason: "SIGHUP", Time: r.now().UnixMilli(),
	}
	r.log.Info("reloaded", "what", what, "before", before, "after", after)
	select {
	case r.acts <- act:
	default:
		r.log.Error("cannot record what was done: too much else waits for the bus", "what", what)
	}
}

// recordActs records acts, each until it is kept or ctx ends.
func (r *Responder) recordActs(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case act := <-r.acts:
			for !r.tryAct(ctx, act) && daemon.Sleep(ctx, time.Second) {
			}
		}
	}
}

// tryAct records an act, and reports whether there is no use in trying again.
func (r *Responder) tryAct(ctx context.Context, a *events.Act) bool {
	err := r.putAct(ctx, a)
	if err != nil {
		r.throttle.Warn(r.log, "cannot record what was done", "verb", a.Verb, "what", a.What, "error", err)
	}
	return err == nil || errors.Is(err, bus.ErrPermanent)
}

package responder

import (
	"context"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
)

// allowed is the live allowlist of a realm, or why it is not known.
func (r *Responder) allowed(realm string) (*allowlist.List, error) {
	if err := r.mirror.Current(); err != nil {
		return nil, err
	}
	return r.allow.List(realm, r.mirror.Now()), nil
}

// allowWait is how long an alert waits for the live allowlist, which is read anew
// after each break of the connection.
const allowWait = 2 * time.Second

// awaitAllowlist waits for a moment until the live allowlist is known: an alert is
// not to be declined because it came first.
func (r *Responder) awaitAllowlist(ctx context.Context) {
	for begin := time.Now(); r.mirror.Current() != nil && time.Since(begin) < allowWait; {
		if !daemon.Sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}

// allowEntry takes an entry of the live allowlist.
func (r *Responder) allowEntry(m bus.Msg) {
	if err := r.allow.Put(bus.BucketKey(bus.BucketAllowlist, m.Subject), m.Subject, m.Data, m.Seal); err != nil {
		r.refuse("allowlist entry", m.Subject, err)
	}
}

// Reload reads the trust file again.
func (r *Responder) Reload() error {
	if err := r.trust.Reload(); err != nil {
		return fmt.Errorf("--trust: %w", err)
	}
	// Whose entries, answers and orders are believed may have changed.
	r.mirror.Again()
	r.proposals.Again()
	r.orders.Again()
	return nil
}

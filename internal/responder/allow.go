package responder

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// allowWait is how long an alert waits for the live allowlist, which is read anew
// after each break of the connection.
const allowWait = 2 * time.Second

// awaitAllowlist waits for a moment until the live allowlist is known: an alert is
// not to be declined because it came first.
func (r *Responder) awaitAllowlist(ctx context.Context) {
	for begin := time.Now(); r.allow.Current() != nil && time.Since(begin) < allowWait; {
		if !daemon.Sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}

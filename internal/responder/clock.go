package responder

import (
	"context"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
)

// serverClock relates the server's clock, which stamps what the streams keep,
// to ours. The two may be minutes apart, so how old a message is must be
// measured by the server's clock alone.
type serverClock struct {
	server time.Time // the server's clock …
	ours   time.Time // … when ours said this; with its monotonic reading, so that a step of our wall clock does no harm
}

// clockFor is how long a reading of the server's clock is used: it may be
// stepped too.
const clockFor = 10 * time.Second

// at returns what the server's clock says at our now.
func (c serverClock) at(now time.Time) time.Time { return c.server.Add(now.Sub(c.ours)) }

// age returns how long before our now the server stamped a message. It is never
// negative: the reading is off by up to half a round trip.
func (c serverClock) age(stamp, now time.Time) time.Duration {
	return max(0, c.at(now).Sub(stamp))
}

// readClock asks the server what its clock says.
func (r *Responder) readClock(ctx context.Context) error {
	asked := time.Now()
	state, err := r.conn.State(ctx, bus.StreamAlerts)
	if err != nil {
		return fmt.Errorf("read the server's clock: %w", err)
	}
	r.clock = serverClock{server: state.Now.Round(0), ours: asked.Add(time.Since(asked) / 2)}
	return nil
}

// refreshClock reads the server's clock again when the last reading is old.
// Without an answer the last reading is the best that there is.
func (r *Responder) refreshClock(ctx context.Context) {
	if time.Since(r.clock.ours) < clockFor {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := r.readClock(ctx); err != nil {
		r.throttle.Warn(r.log, "goes on with an old reading", "error", err)
	}
}

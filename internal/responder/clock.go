package responder

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
)

// readClock asks the server what its clock says.
func (r *Responder) readClock(ctx context.Context) error {
	clock, err := r.conn.Clock(ctx, bus.StreamAlerts)
	if err == nil {
		r.mu.Lock()
		r.clock = clock
		r.mu.Unlock()
	}
	return err
}

// now is what the server's clock says.
func (r *Responder) now() time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.clock.At(time.Now())
}

// refreshClock reads the server's clock again when the last reading is old.
// Without an answer the last reading is the best that there is.
func (r *Responder) refreshClock(ctx context.Context) {
	r.mu.Lock()
	fresh := time.Since(r.clock.Ours) < bus.ClockFor
	r.mu.Unlock()
	if fresh {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := r.readClock(ctx); err != nil {
		r.throttle.Warn(r.log, "goes on with an old reading", "error", err)
	}
}

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
		r.clock = clock
	}
	return err
}

// refreshClock reads the server's clock again when the last reading is old.
// Without an answer the last reading is the best that there is.
func (r *Responder) refreshClock(ctx context.Context) {
	if time.Since(r.clock.Ours) < bus.ClockFor {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := r.readClock(ctx); err != nil {
		r.throttle.Warn(r.log, "goes on with an old reading", "error", err)
	}
}

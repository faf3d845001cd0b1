package bus

import (
	"context"
	"fmt"
	"time"
)

// Clock relates the server's clock, which stamps what the streams keep, to ours.
// The two may be minutes apart, so how old a message is must be measured by the
// server's clock alone.
type Clock struct {
	Server time.Time // what the server's clock said …
	Ours   time.Time // … when ours said this; with its monotonic reading, so that a step of our wall clock does no harm
}

// ClockFor is how long a reading is used: the server's clock may be stepped too.
const ClockFor = 10 * time.Second

// Clock asks the server what its clock says; a stream of that name must be there.
func (c *Conn) Clock(ctx context.Context, stream string) (Clock, error) {
	asked := time.Now()
	state, err := c.State(ctx, stream)
	if err != nil {
		return Clock{}, fmt.Errorf("read the server's clock: %w", err)
	}
	return ClockOf(state, asked), nil
}

// ClockOf makes a reading of a state that was asked for at the given time.
func ClockOf(s State, asked time.Time) Clock {
	return Clock{Server: s.Now.Round(0), Ours: asked.Add(time.Since(asked) / 2)}
}

// At returns what the server's clock says at our now.
func (c Clock) At(now time.Time) time.Time { return c.Server.Add(now.Sub(c.Ours)) }

// Age returns how long before our now the server stamped a message. It is never
// negative: the reading is off by up to half a round trip.
func (c Clock) Age(stamp, now time.Time) time.Duration { return max(0, c.At(now).Sub(stamp)) }

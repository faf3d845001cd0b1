package daemon

import (
	"log/slog"
	"sync"
	"time"
)

// Throttle lets one log line through per interval and says how many it held
// back. The zero value lets one line through per 5 s.
type Throttle struct {
	Interval time.Duration

	mu         sync.Mutex
	last       time.Time
	suppressed int
}

// Warn logs at warning level, at most once per interval.
func (t *Throttle) Warn(log *slog.Logger, msg string, args ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	interval := t.Interval
	if interval == 0 {
		interval = 5 * time.Second
	}
	now := time.Now()
	if now.Sub(t.last) < interval {
		t.suppressed++
		return
	}
	t.last = now
	if t.suppressed > 0 {
		args = append(args, "suppressed", t.suppressed)
		t.suppressed = 0
	}
	log.Warn(msg, args...)
}

package daemon

import (
	"fmt"
	"sync/atomic"
	"time"
)

// A Pulse tells whether a loop goes round: it beats in each round, which must not take
// longer than a limit. It costs a reading of the clock, and allocates nothing.
type Pulse struct {
	what  string
	limit time.Duration
	began time.Time
	last  atomic.Int64 // ns since began; 0: it has not begun
}

// NewPulse returns the pulse of a loop that goes round at least that often.
func NewPulse(what string, limit time.Duration) *Pulse {
	return &Pulse{what: what, limit: limit, began: time.Now()}
}

// Beat says that a round has begun. It may be called on nil.
func (p *Pulse) Beat() {
	if p != nil {
		p.last.Store(max(int64(time.Since(p.began)), 1))
	}
}

// Alive returns nil while the loop goes round, and before it has begun.
func (p *Pulse) Alive() error {
	last := p.last.Load()
	if last == 0 {
		return nil
	}
	if late := time.Since(p.began) - time.Duration(last); late > p.limit {
		return fmt.Errorf("%s stands still since %s", p.what, late.Round(time.Second))
	}
	return nil
}

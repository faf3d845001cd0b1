package conntrack

import (
	"time"

	"golang.org/x/sys/unix"
)

// The kernel's monotonic clock is the one that the Go runtime reads, without a
// system call, for every time.Time: one pair of readings ties them together.
var (
	started     = time.Now()
	startedMono = func() int64 {
		var ts unix.Timespec
		// It cannot fail: the clock exists everywhere and ts is ours.
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
		return ts.Nano()
	}()
)

// Monotonic is the clock of [events.Event.Time]: CLOCK_MONOTONIC in ns.
func Monotonic() int64 { return startedMono + int64(time.Since(started)) }

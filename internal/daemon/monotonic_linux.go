package daemon

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// monotonicField is the clock by which systemd tells which reload a message is about.
func monotonicField() string {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) != nil {
		return ""
	}
	return fmt.Sprintf("\nMONOTONIC_USEC=%d", ts.Nano()/1000)
}

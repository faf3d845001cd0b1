package producer

import (
	"os"
	"runtime"
)

// Alone sets the Go runtime up for a process that is a producer and nothing
// else: it runs Go code on one processor at a time. One core carries far more
// events than one core can forward flows, and the others have packets to
// forward. With a second processor each hand-over from one goroutine to another
// (capture, pump, the NATS client's reader) wakes a thread to look for more
// work, in vain: a third of the producer's cost at 30,000 events per second.
//
// An operator's GOMAXPROCS goes before.
func Alone() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(1)
	}
}

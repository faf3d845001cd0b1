package count

import "math"

// cleanBatches is over how many batches the shortest way from a firewall to
// the stream is looked for. Few enough that a drift of the firewall's clock, or
// a jump after its guest was paused, is followed within a second or so; enough
// that one that was held up does not set the clock.
const cleanBatches = 8

// A clock translates one boot's monotonic time to the stream's. What it adds
// contains the shortest delay from producer to stream, so times come out at
// most a little late, and the same for all firewalls.
//
// Only batches that were sent while nothing else was un-acknowledged tell about
// that delay: the others may have waited, in the producer's socket or in a
// server that had stopped, and would move events to when the waiting ended.
type clock struct {
	clean [cleanBatches]int64 // ring of (stream time - send time), ns
	n     int                 // how many clean batches there were
	any   int64               // the smallest of all batches, until there is a clean one
}

func newClock() clock { return clock{any: math.MaxInt64} }

// observe learns from a batch sent at sent (the firewall's clock) that the
// stream took at stream.
func (k *clock) observe(sent, stream int64, clean bool) {
	delta := stream - sent
	if clean {
		k.clean[k.n%cleanBatches] = delta
		k.n++
		return
	}
	k.any = min(k.any, delta)
}

// offset is what to add to the firewall's time. There must have been a batch.
func (k *clock) offset() int64 {
	if k.n == 0 {
		return k.any
	}
	smallest := k.clean[0]
	for _, d := range k.clean[1:min(k.n, cleanBatches)] {
		smallest = min(smallest, d)
	}
	return smallest
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/live"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	liveFlows  = 1 << 20
	liveChunk  = 64 // as the reader hands events over
	liveRounds = 9
)

// benchLive measures the index of live flows, a million of them: flows end and
// others begin in no order, so that nearly every event misses the caches.
func benchLive(context.Context) ([]figure, error) {
	table := live.New()
	var evs [liveChunk]events.Event
	fill := func(at int, typ events.Type) {
		for i := range evs {
			n := uint32(at + i)
			evs[i] = events.Event{Type: typ, Proto: 17, ID: n * 2654435761, Orig: events.Tuple{
				Src: events.Addr{Lo: uint64(n % 10_007)}, Dst: events.Addr{Lo: uint64(n % 251)}, SrcPort: uint16(n), DstPort: uint16(n >> 16),
			}}
		}
	}
	worst := 0.0
	for at := 0; at < liveFlows; at += liveChunk {
		fill(at, events.New)
		table.ApplyAll(evs[:])
		if n := table.Len(); n >= 4096 {
			worst = max(worst, float64(table.Bytes())/float64(n))
		}
	}
	var cost []float64
	for at := 0; len(cost) < liveRounds; {
		var spent time.Duration
		const chunks = 4096
		for range chunks {
			for _, typ := range []events.Type{events.Destroy, events.New} {
				first := at
				if typ == events.New {
					first += liveFlows
				}
				fill(first, typ)
				start := time.Now()
				table.ApplyAll(evs[:])
				spent += time.Since(start)
			}
			at += liveChunk
		}
		cost = append(cost, float64(spent.Nanoseconds())/(2*chunks*liveChunk))
	}
	const bytes, ns = 16, 60
	return []figure{
		{what: "index of live flows, bytes per flow, the most while it grew to a million", ours: fmt.Sprintf("%.1f", worst), target: fmt.Sprintf("≤ %d", bytes), met: worst <= bytes},
		{what: "index of live flows, per event, a million flows", ours: spread(cost, "ns"), target: fmt.Sprintf("≤ %d ns", ns), met: median(cost) <= ns,
			why: "The index is bound by the memory's latency, and that of this machine varies with its neighbours."},
	}, nil
}

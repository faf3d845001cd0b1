//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// wireEvents is the batch whose size is measured; in larger ones the header
// weighs even less.
const wireEvents = 512

// benchWire measures the size of an event on the bus.
func benchWire(context.Context) ([]figure, error) {
	size := func(ipv6 bool) (float64, error) {
		var w events.BatchWriter
		e := events.Event{Type: events.New, Proto: 17, Status: 8, IPv6: ipv6}
		for range wireEvents {
			e.Orig = events.Tuple{Src: events.Addr{Lo: uint64(rand.Uint32())}, Dst: events.Addr{Lo: uint64(rand.Uint32())}, SrcPort: uint16(rand.Uint32()), DstPort: 53}
			e.ID = rand.Uint32()
			e.Time += 20_000
			if err := w.Append(&e); err != nil {
				return 0, err
			}
		}
		data, err := w.Encode(&events.Header{Firewall: "firewall-lisbon-1", Realm: events.RealmDefault, Seq: 1 << 30, Total: 1 << 40})
		return float64(len(data)) / wireEvents, err
	}
	v4, err := size(false)
	if err != nil {
		return nil, err
	}
	v6, err := size(true)
	if err != nil {
		return nil, err
	}
	const target = 26
	return []figure{
		{what: "bytes per IPv4 event on the bus, no NAT, no counters, batch of 512", ours: fmt.Sprintf("%.2f", v4), target: fmt.Sprintf("≤ %d", target), met: v4 <= target},
		{what: "the same, IPv6", ours: fmt.Sprintf("%.2f", v6)},
	}, nil
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	idleTime    = 15 * time.Second
	idleTrickle = 15 // events, one a second
)

// benchIdle measures what a producer costs where nothing happens, and how soon
// the first event after a pause is published.
func benchIdle(ctx context.Context) (rows []figure, err error) {
	server, conn, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	err = watched(ctx, server.URL(), func(fw *lab.Firewall, r rival) error {
		time.Sleep(time.Second)
		before, err := r.mark()
		if err != nil {
			return err
		}
		time.Sleep(idleTime)
		after, err := r.mark()
		if err != nil {
			return err
		}
		percent := 100 * float64(after.CPU-before.CPU) / float64(idleTime)
		const target = 0.5
		rows = append(rows, figure{what: fmt.Sprintf("idle producer, of one core, %.0f s, health every second included", idleTime.Seconds()), ours: fmt.Sprintf("%.2f %%", percent),
			target: fmt.Sprintf("< %.1f %%", target), met: percent < target, why: "Each wake-up of an idle core costs 40 µs and more on this virtual machine."})
		took, err := trickle(ctx, fw, conn)
		if err != nil {
			return err
		}
		const soon = 15
		worst := percentile(took, 100)
		rows = append(rows, figure{what: fmt.Sprintf("one event per second: from its packet to a subscriber, the slowest of %d", len(took)), ours: fmt.Sprintf("%.1f ms (median %.1f)", worst, median(took)),
			target: fmt.Sprintf("≤ %d ms", soon), met: worst <= soon, why: "The machine was busy with something else meanwhile."})
		return nil
	})
	return rows, err
}

// trickle makes single flows and returns the milliseconds until each is in the
// stream and with a subscriber, which is later than its acknowledgement.
func trickle(ctx context.Context, fw *lab.Firewall, conn *bus.Conn) (took []float64, err error) {
	arrived := make(chan time.Time, idleTrickle)
	ctx, cancel := context.WithCancel(ctx)
	following := make(chan error, 1)
	go func() {
		following <- conn.Follow(ctx, bus.StreamEvents, bus.FollowFrom{Filter: events.EventsSubject(firewall)}, func(bus.Msg) { arrived <- time.Now() })
	}()
	defer func() {
		cancel()
		if followErr := <-following; err == nil {
			err = followErr
		}
	}()
	time.Sleep(500 * time.Millisecond)
	for i := range idleTrickle {
		time.Sleep(time.Second)
		f := udp(newcomers, 1, 0)
		f.First = i
		start := time.Now()
		if _, err := send(ctx, fw, f); err != nil {
			return took, err
		}
		select {
		case at := <-arrived:
			took = append(took, milliseconds(at.Sub(start)))
		case <-time.After(5 * time.Second):
			return took, fmt.Errorf("event %d did not arrive", i)
		}
	}
	return took, nil
}

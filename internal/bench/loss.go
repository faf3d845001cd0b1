//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	lossDuration = 60 * time.Second
	lossTable    = 16_000_000 // more than any generator makes in that time
	lossStopped  = 3 * time.Second
)

// benchLoss floods the firewall as fast as the generator can, and then stops
// the producer for a while in the middle of a flood.
func benchLoss(ctx context.Context) (rows []figure, err error) {
	server, _, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	restore, err := largeTable(lossTable)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	flood, err := lossUnderFlood(ctx, server.URL())
	if err != nil {
		return nil, err
	}
	stopped, err := lossWhenStopped(ctx, server.URL())
	return append(flood, stopped...), err
}

func lossUnderFlood(ctx context.Context, url string) (rows []figure, err error) {
	err = watched(ctx, url, func(fw *lab.Firewall, r rival) error {
		before, err := r.mark()
		if err != nil {
			return err
		}
		// Every address and port that there is; the flood ends with its time.
		rep, err := send(ctx, fw, traffic.Flood{Protocol: 17, Sources: lab.ClientPrefix4, Destinations: lab.ServerPrefix4, Port: 53, Duration: lossDuration})
		if err != nil {
			return err
		}
		after, err := settled(r, before, uint64(rep.Sent))
		if err != nil {
			return err
		}
		lost, got := after.Lost-before.Lost, after.Events-before.Events
		rows = []figure{{
			what: fmt.Sprintf("events lost in %.0f s at the generator's highest rate, %.0f new flows/s", rep.Elapsed.Seconds(), float64(rep.Sent)/rep.Elapsed.Seconds()),
			ours: fmt.Sprintf("%d of %d", lost, rep.Sent), target: "0", met: lost == 0 && got == uint64(rep.Sent),
			why: fmt.Sprintf("%d events were published, %d lost; forwarding, producer and NATS server share the cores here.", got, lost),
		}}
		return nil
	})
	return rows, err
}

func lossWhenStopped(ctx context.Context, url string) (rows []figure, err error) {
	err = watched(ctx, url, func(fw *lab.Firewall, r rival) error {
		before, err := r.mark()
		if err != nil {
			return err
		}
		if err := syscall.Kill(r.pid(), syscall.SIGSTOP); err != nil {
			return err
		}
		rep, err := send(ctx, fw, traffic.Flood{Protocol: 17, Sources: lab.ClientPrefix4, Destinations: lab.ServerPrefix4, Port: 53, Duration: lossStopped})
		err = errors.Join(err, syscall.Kill(r.pid(), syscall.SIGCONT))
		if err != nil {
			return err
		}
		after := before
		for deadline := time.Now().Add(30 * time.Second); after.Resyncs == before.Resyncs && time.Now().Before(deadline); {
			time.Sleep(100 * time.Millisecond)
			if after, err = r.mark(); err != nil {
				return err
			}
		}
		if after, err = settled(r, after, 0); err != nil {
			return err
		}
		entries, err := unexpired(ctx, fw)
		if err != nil {
			return err
		}
		lost, got := after.Lost-before.Lost, after.Events-before.Events
		exact := got+lost == uint64(rep.Sent) && lost > 0
		rows = []figure{
			{what: fmt.Sprintf("producer stopped for %.0f s: events received + reported lost = sent", lossStopped.Seconds()), ours: fmt.Sprintf("%d + %d", got, lost), others: fmt.Sprint(rep.Sent), target: "equal", met: exact,
				why: "The account is not exact."},
			{what: "after it: flows held after the resync = unexpired entries of a dump", ours: fmt.Sprint(after.Live), others: fmt.Sprint(entries), target: "equal", met: after.Resyncs > before.Resyncs && after.Live == uint64(entries),
				why: fmt.Sprintf("There were %d resyncs.", after.Resyncs-before.Resyncs)},
		}
		return nil
	})
	return rows, err
}

// watched runs f with a producer on a fresh firewall.
func watched(ctx context.Context, url string, f func(*lab.Firewall, rival) error) (err error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: firewall, IPv6: true, Sysctls: longTimeouts}}})
	if err != nil {
		return err
	}
	defer l.Close()
	fw := l.Firewall(firewall)
	r, err := start(ctx, roleProducer, fw.NS, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	return f(fw, r)
}

// unexpired counts the entries of a dump.
func unexpired(ctx context.Context, fw *lab.Firewall) (n int, err error) {
	conn, err := conntrack.Dial(fw.NS)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	err = conn.Dump(ctx, func(rows []events.Event) error { n += len(rows); return nil })
	return n, err
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"time"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	flushTable  = 1_000_000
	flushSome   = 10_000
	flushRounds = 5
	flushMany   = 300_000
)

// benchFlush deletes some flows out of a million, and many under traffic.
func benchFlush(ctx context.Context) (rows []figure, err error) {
	restore, err := largeTable(2_000_000)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, restore()) }()
	if rows, err = flushSelected(ctx); err != nil {
		return rows, err
	}
	many, err := flushUnderTraffic(ctx)
	return append(rows, many...), err
}

// attackers are the addresses whose flows are flushed; the settlers stay.
var (
	attackers  = netip.MustParsePrefix("198.19.0.0/22")
	attackers6 = netip.MustParsePrefix("2001:db8:18:6::/64")
)

func flushSelected(ctx context.Context) ([]figure, error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: firewall, IPv6: true, Sysctls: longTimeouts}}})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	fw := l.Firewall(firewall)
	if err := fill(ctx, fw, flushTable); err != nil {
		return nil, err
	}
	conn, err := conntrack.Dial(fw.NS)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	single := func(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }
	one := single(attackers.Addr())
	addresses := func(n int) (list []netip.Prefix) {
		for a := attackers.Addr(); len(list) < n; a = a.Next() {
			list = append(list, single(a))
		}
		return list
	}
	flows := func(from netip.Prefix, count int) traffic.Flood {
		return traffic.Flood{Protocol: 17, Sources: from, SourceCount: count, Destinations: lab.ServerPrefix4, Port: 80, Count: flushSome}
	}
	flows6 := traffic.Flood{Protocol: 17, Sources: single(attackers6.Addr()), Destinations: lab.ServerPrefix6, DestinationCount: 100, Port: 80, Count: flushSome}
	var dump, tool []float64
	cases := []struct {
		name  string
		flows traffic.Flood
		match []netip.Prefix
		took  []float64
	}{
		{name: "one IPv4 address", flows: flows(one, 1), match: []netip.Prefix{one}},
		{name: "20 IPv4 addresses", flows: flows(attackers, 20), match: addresses(20)},
		{name: "1,000 IPv4 addresses", flows: flows(attackers, 1000), match: addresses(1000)},
		{name: "an IPv4 prefix (/22)", flows: flows(attackers, 1000), match: []netip.Prefix{attackers}},
		{name: "one IPv6 address", flows: flows6, match: []netip.Prefix{flows6.Sources}},
		{name: "both families", flows: flows6, match: append(addresses(19), flows6.Sources)},
	}
	for range flushRounds {
		start := time.Now()
		if err := conn.Dump(ctx, func([]events.Event) error { return nil }); err != nil {
			return nil, err
		}
		dump = append(dump, time.Since(start).Seconds())
		for i := range cases {
			c := &cases[i]
			if _, err := send(ctx, fw, c.flows); err != nil {
				return nil, err
			}
			res, err := conn.Flush(ctx, conntrack.Match{Prefixes: c.match, By: events.BySrc}, conntrack.FlushOptions{})
			if err != nil || res.Deleted != flushSome {
				return nil, errors.Join(fmt.Errorf("%s: %d deleted of %d", c.name, res.Deleted, flushSome), err)
			}
			c.took = append(c.took, res.Duration.Seconds())
		}
		if _, err := send(ctx, fw, flows(one, 1)); err != nil {
			return nil, err
		}
		start = time.Now()
		cmd := exec.CommandContext(ctx, "conntrack", "-D", "-s", one.Addr().String())
		if err := errors.Join(fw.NS.Do(cmd.Start), cmd.Wait()); err != nil {
			return nil, fmt.Errorf("conntrack -D: %w", err)
		}
		tool = append(tool, time.Since(start).Seconds())
	}
	whole := median(dump)
	rows := []figure{{what: fmt.Sprintf("one full dump of %d entries, decoded", flushTable), ours: spread(dump, "s")}}
	for i, c := range cases {
		took := median(c.took)
		what := fmt.Sprintf("flush of %d entries of %s, of %d", flushSome, c.name, flushTable)
		if i == 0 {
			const most, times = 0.4, 5
			they := median(tool)
			rows = append(rows,
				figure{what: what, ours: spread(c.took, "s"), target: fmt.Sprintf("≤ %.1f s", most), met: took <= most, why: "The kernel's walk through the table is all of it."},
				figure{what: what + ", against `conntrack -D -s`", ours: spread(c.took, "s"), others: spread(tool, "s"), ratio: fmt.Sprintf("%.1f × faster", they/took), target: fmt.Sprintf("≥ %d × faster", times), met: they/took >= times,
					why: "Both are bound by the kernel's walk through the table."})
			continue
		}
		const target = 1.3
		rows = append(rows, figure{what: what + ", against one full dump", ours: spread(c.took, "s"), others: spread(dump, "s"), ratio: fmt.Sprintf("%.2f ×", took/whole), target: fmt.Sprintf("≤ %.1f ×", target), met: took/whole <= target,
			why: "Deleting comes on top of the dump."})
	}
	return rows, nil
}

// flushUnderTraffic flushes most of a table on command, while new flows come.
func flushUnderTraffic(ctx context.Context) (rows []figure, err error) {
	server, conn, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	const rate = 20_000
	err = watched(ctx, server.URL(), func(fw *lab.Firewall, r rival) error {
		before, err := r.mark()
		if err != nil {
			return err
		}
		victim := netip.PrefixFrom(attackers.Addr(), 32)
		if _, err := send(ctx, fw, traffic.Flood{Protocol: 17, Sources: victim, Destinations: lab.ServerPrefix4, Port: 80, Count: flushMany, Rate: 100_000}); err != nil {
			return err
		}
		if before, err = settled(r, before, flushMany); err != nil {
			return err
		}
		const flows = 5 * rate
		crowd := make(chan error, 1)
		go func() {
			_, err := send(ctx, fw, udp(settlers, flows, rate))
			crowd <- err
		}()
		time.Sleep(time.Second)
		receipt, err := order(ctx, conn, victim.Addr())
		if err = errors.Join(err, <-crowd); err != nil {
			return err
		}
		after, err := settled(r, before, flows+flushMany)
		if err != nil {
			return err
		}
		lost, got := after.Lost-before.Lost, after.Events-before.Events
		rows = append(rows, figure{what: fmt.Sprintf("events lost in a flush of %d entries at %d new flows/s (%.2f s)", flushMany, rate, receipt.DurationMS/1000), ours: fmt.Sprintf("%d of %d", lost, flows+flushMany),
			target: "0", met: lost == 0 && got == flows+flushMany && receipt.Deleted == flushMany, why: fmt.Sprintf("%d entries were deleted, %d events published.", receipt.Deleted, got)})
		return nil
	})
	return rows, err
}

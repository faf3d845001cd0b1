//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

const generatorRounds = 5

// benchGenerator measures how much of a new flow's cost is the generator's own:
// the same packets once through the firewall, with nobody listening, and once to
// an address of the link that nobody has, where they end as soon as they arrive.
func benchGenerator(ctx context.Context) ([]figure, error) {
	var rows []figure
	for _, kind := range []struct {
		name     string
		protocol uint8
		from, to netip.Prefix
	}{
		{"UDP over IPv4", 17, settlers, lab.ServerPrefix4},
		{"TCP SYN over IPv6", 6, lab.ClientPrefix6, lab.ServerPrefix6},
	} {
		var through, nowhere []float64
		for range generatorRounds {
			for _, lost := range []bool{false, true} {
				ns, err := generatorOnce(ctx, traffic.Flood{Protocol: kind.protocol, Sources: kind.from, SourceCount: 10_000, Destinations: kind.to, DestinationCount: 100, Port: 53, Count: 200_000}, lost)
				if err != nil {
					return nil, err
				}
				if lost {
					nowhere = append(nowhere, ns)
				} else {
					through = append(through, ns)
				}
			}
		}
		share := median(nowhere) / median(through)
		const target = 0.5 // less than half: it is not the bottleneck
		rows = append(rows, figure{what: "generator: a packet that ends at the link against a new flow through the firewall, nobody listening, " + kind.name,
			ours: spread(nowhere, "ns"), others: spread(through, "ns"), ratio: fmt.Sprintf("%.2f", share), target: fmt.Sprintf("≤ %.2f", target), met: share <= target,
			why: "The link itself is part of both."})
	}
	return rows, nil
}

// generatorOnce returns the nanoseconds per packet.
func generatorOnce(ctx context.Context, f traffic.Flood, lost bool) (float64, error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: firewall, IPv6: true}}})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	fw := *l.Firewall(firewall)
	if lost {
		fw.ClientLink.Peer = net.HardwareAddr{2, 0, 0, 0xff, 0xff, 0xff}
	}
	rep, err := send(ctx, &fw, f)
	return float64(rep.Elapsed.Nanoseconds()) / float64(rep.Sent), err
}

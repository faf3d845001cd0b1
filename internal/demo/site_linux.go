package demo

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

// The attack of the compose demo, through each site that takes part: above the 3,500 in 10 s
// of deploy/rules.yaml only where two are added up.
const (
	siteAttackRate  = 300.0
	siteAttackFlows = 2400
)

// Site makes a firewall of the namespace that it runs in, a container's, and sends traffic
// through it until ctx ends.
type Site struct {
	Name   string
	Number int           // tells the clients of one site from those of another
	Every  time.Duration // between attacks; 0: nobody attacks through this site
	Log    *slog.Logger
}

// Run is the site's life. Several that attack do so at the same moments and from the
// same address, by the clock, without knowing of each other.
func (s *Site) Run(ctx context.Context) error {
	fw, undo, err := lab.Here(ctx, s.Name)
	if err != nil {
		return err
	}
	defer undo()
	s.Log.Info("forwarding", "site", s.Name, "clients", lab.ClientPrefix4, "servers", lab.ServerPrefix4)
	g, ctx := errgroup.WithContext(ctx)
	clients := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(s.Number), 0}), 24)
	g.Go(func() error { return s.ordinary(ctx, fw, unix.IPPROTO_UDP, clients, 53) })
	g.Go(func() error { return s.ordinary(ctx, fw, unix.IPPROTO_TCP, clients, 443) })
	if s.Every > 0 {
		g.Go(func() error { return s.attacks(ctx, fw) })
	}
	return g.Wait()
}

// ordinary opens a few answered flows each second.
func (s *Site) ordinary(ctx context.Context, fw *lab.Firewall, protocol uint8, clients netip.Prefix, port uint16) error {
	f := traffic.Flood{
		Protocol: protocol, Sources: clients, SourceCount: 20, Destinations: lab.ServerPrefix4, DestinationCount: 30, Port: port,
		Count: 600, Rate: 10, Answer: true,
	}
	for ctx.Err() == nil {
		if f.First+f.Count > f.Capacity() {
			f.First = 0
		}
		if _, err := f.Run(ctx, fw); err != nil {
			return fmt.Errorf("traffic through %s: %w", s.Name, err)
		}
		f.First += f.Count
	}
	return nil
}

// attacks sends answered flows of one source: what is answered was not forged, and may be flushed.
func (s *Site) attacks(ctx context.Context, fw *lab.Firewall) error {
	for {
		n := time.Now().UnixNano()/int64(s.Every) + 1
		if !daemon.Sleep(ctx, time.Until(time.Unix(0, n*int64(s.Every)))) {
			return nil
		}
		attacker := traffic.Addresses(attackers, 255)[1+n%250]
		s.Log.Info("attack", "site", s.Name, "source", attacker, "flows", siteAttackFlows)
		_, err := traffic.Flood{
			Protocol: unix.IPPROTO_UDP, Sources: netip.PrefixFrom(attacker, 32), Destinations: lab.ServerPrefix4, DestinationCount: 64, Port: 53,
			Count: siteAttackFlows, Rate: siteAttackRate, Answer: true,
		}.Run(ctx, fw)
		if err != nil {
			return fmt.Errorf("attack through %s: %w", s.Name, err)
		}
	}
}

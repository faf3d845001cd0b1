//go:build linux

package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// live is the stage in a lab: real tables, real traffic, real deletes.
type live struct {
	lab       *lab.Lab
	producers []*producer.Producer
	talkers   []*traffic.Talkers
	attacks   int
	crossed   time.Time // when the first attack crossed the threshold
}

func newLive(ctx context.Context) (stage, error) {
	fleet, err := lab.New(ctx, labSpec())
	if err != nil {
		return nil, err
	}
	return &live{lab: fleet}, nil
}

func labSpec() lab.Spec {
	var spec lab.Spec
	for i, name := range names {
		spec.Firewalls = append(spec.Firewalls, lab.FirewallSpec{
			Name: name, IPv6: i == len(names)-1,
			Sysctls: map[string]string{
				"net.netfilter.nf_conntrack_events": "1",
				"net.netfilter.nf_conntrack_acct":   "1",
				// A deleted TCP flow must break, so that the show would notice.
				"net.netfilter.nf_conntrack_tcp_loose": "0",
			},
		})
	}
	return spec
}

func (*live) enforces() bool { return true }

func (l *live) watch(ctx context.Context, g *errgroup.Group, deps producer.Dependencies) error {
	for _, name := range names {
		deps.Namespace = l.lab.Firewall(name).NS
		p, err := producer.New(producer.Options{
			Name: name, Realm: events.RealmDefault, BufferBytes: 64 << 20, Linger: 10 * time.Millisecond, RingBytes: 16 << 20, AllowFlush: true, Trust: "none",
		}, deps)
		if err != nil {
			return err
		}
		l.producers = append(l.producers, p)
		g.Go(func() error { return p.Run(ctx) })
	}
	return nil
}

func (l *live) ready() error {
	var missing error
	for _, p := range l.producers {
		missing = errors.Join(missing, p.Ready())
	}
	return missing
}

func (l *live) play(ctx context.Context, s *show, begin time.Time) error {
	if err := l.startTalkers(ctx); err != nil {
		return err
	}
	s.say("ordinary traffic through three firewalls")
	next := begin.Add(firstAttack)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Until(next)):
		}
		next = time.Now().Add(attackEvery)
		if err := l.attack(ctx, s); err != nil && ctx.Err() == nil {
			return err
		}
	}
}

// startTalkers starts ordinary traffic: some clients that keep TCP and UDP
// conversations up, and short ones besides.
func (l *live) startTalkers(ctx context.Context) error {
	for i, fw := range l.lab.Firewalls() {
		clients := traffic.Addresses(netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i + 1), 0}), 24), 6)[1:]
		servers := traffic.Addresses(lab.ServerPrefix4, 4)[1:]
		if fw.IPv6 {
			clients = append(clients, traffic.Addresses(lab.ClientPrefix6, 4)[1:]...)
			servers = append(servers, traffic.Addresses(lab.ServerPrefix6, 3)[1:]...)
		}
		t, err := traffic.Start(context.WithoutCancel(ctx), fw, traffic.Talk{Clients: clients, Servers: servers, Kept: 2, NewPerSecond: 15, Timeout: patience})
		if err != nil {
			return err
		}
		l.talkers = append(l.talkers, t)
	}
	return nil
}

// attack sends half of the threshold through each of two firewalls.
func (l *live) attack(ctx context.Context, s *show) error {
	l.attacks++
	attacker := traffic.Addresses(attackers, 255)[1+l.attacks%250]
	s.say(fmt.Sprintf("%s attacks through %s: %d new flows through each, %d in the fleet is the threshold", attacker, strings.Join(attacked, " and "), attackPerFW, threshold))
	var g errgroup.Group
	ends := make([]time.Time, len(attacked))
	for i, name := range attacked {
		g.Go(func() error {
			start := time.Now()
			rep, err := traffic.Flood{
				Protocol: 17, Sources: netip.PrefixFrom(attacker, 32), Destinations: lab.ServerPrefix4, DestinationCount: 64, Port: 53,
				Count: attackPerFW, Rate: attackRate,
			}.Run(ctx, l.lab.Firewall(name))
			if err != nil {
				return fmt.Errorf("attack through %s: %w", name, err)
			}
			// Setting up is not counted, so this is early rather than late and
			// makes detection look slower rather than faster.
			ends[i] = start.Add(rep.Elapsed)
			return nil
		})
	}
	err := g.Wait()
	if l.attacks == 1 {
		l.crossed = ends[0]
		if ends[1].After(ends[0]) {
			l.crossed = ends[1]
		}
	}
	return err
}

func (l *live) judge(s *show) {
	res := &s.res
	for _, t := range l.talkers {
		st := t.Stats()
		res.Ordinary.Opened += st.Opened
		res.Ordinary.Echoed += st.Echoed
		res.Ordinary.Broken += st.Broken
	}
	for _, name := range attacked {
		if _, ok := s.receipts[name]; !ok {
			s.fail("%s sent no receipt", name)
		}
	}
	for i := range res.Receipts {
		r := &res.Receipts[i]
		if r.Deleted == 0 || r.Error != "" || len(r.Refused) > 0 {
			s.fail("%s deleted %d entries of %d, refused %v, error %q", r.Firewall, r.Deleted, r.Matched, r.Refused, r.Error)
		}
		s.flushed(r.Firewall, r.Addresses...)
		if r.Deleted > attackPerFW {
			s.fail("%s deleted %d entries, the attacker had %d", r.Firewall, r.Deleted, attackPerFW)
		}
	}
	last := s.alerted
	for _, at := range s.receipts {
		if at.After(last) {
			last = at
		}
	}
	if !l.crossed.IsZero() && !s.alerted.IsZero() {
		res.DetectMS = ms(s.alerted.Sub(l.crossed))
		res.FlushMS = ms(last.Sub(l.crossed))
	}
	if res.Ordinary.Echoed == 0 || res.Ordinary.Broken > 0 {
		s.fail("ordinary traffic: %d messages echoed, %d conversations broke", res.Ordinary.Echoed, res.Ordinary.Broken)
	}
	if l.attacks == 0 {
		s.fail("the time was over before the attack")
	}
}

func ms(d time.Duration) float64 { return float64(d.Round(10*time.Microsecond).Microseconds()) / 1000 }

func (l *live) close() {
	for _, t := range l.talkers {
		t.Close()
	}
	l.lab.Close()
}

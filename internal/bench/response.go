package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/responder"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	responseTrials  = 100
	responseTable   = 50_000  // entries that are there before each trial
	responseRate    = 20_000. // new flows/s meanwhile, the attacker's included
	responseCount   = 500     // the rule's threshold
	attackerRate    = 2500.
	backgroundFlows = 8_000
)

// benchResponse measures the time from the packet that crosses a threshold to
// the receipt of the completed flush, with everything on this machine: traffic,
// kernel, producer, NATS, aggregator, responder.
func benchResponse(ctx context.Context) ([]figure, error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", Sysctls: map[string]string{"net.netfilter.nf_conntrack_udp_timeout": "600"}}}})
	if err != nil {
		return nil, err
	}
	defer l.Close()
	fw := l.Firewall("fw-a")
	server, conn, closeBus, err := startBus(ctx)
	if err != nil {
		return nil, err
	}
	defer closeBus()
	r, err := newResponse(ctx, fw, server, conn)
	if err != nil {
		return nil, err
	}
	var took []float64
	trialErr := r.fill(ctx)
	for i := 0; i < responseTrials && trialErr == nil; i++ {
		var ms float64
		if ms, trialErr = r.trial(ctx, i); trialErr == nil {
			took = append(took, ms)
		}
	}
	stream := r.producer.Stream()
	lost := stream.Lost()
	if err := errors.Join(trialErr, r.stop()); err != nil {
		return nil, err
	}
	p50, p99 := percentile(took, 50), percentile(took, 99)
	const target = 100
	what := fmt.Sprintf("threshold crossed to flush completed, one IPv4 address, %d entries, %.0f new flows/s", responseTable, responseRate)
	return []figure{
		{what + ", p50", fmt.Sprintf("< %d ms", target), fmt.Sprintf("%.1f ms", p50), p50 < target},
		{what + fmt.Sprintf(", p99 of %d", len(took)), fmt.Sprintf("< %d ms", target), fmt.Sprintf("%.1f ms", p99), p99 < target},
		{"events lost meanwhile", "0", fmt.Sprint(lost), lost == 0},
	}, nil
}

// response is a fleet of one firewall with all roles.
type response struct {
	fw       *lab.Firewall
	producer *producer.Producer
	receipts chan receipt
	stop     func() error
}

type receipt struct {
	events.Receipt
	at time.Time
}

func newResponse(ctx context.Context, fw *lab.Firewall, server *bus.Server, conn *bus.Conn) (*response, error) {
	r := &response{fw: fw, receipts: make(chan receipt, 16)}
	log := slog.New(slog.DiscardHandler)
	cfg := bus.Config{Flags: bus.Flags{NATSURL: server.URL()}}
	over := rule.Default()
	over.Name, over.Track, over.Metric, over.Count, over.Seconds = "bench", rule.BySrc, rule.New, responseCount, 10
	agg, err := aggregator.New(aggregator.Options{MaxKeys: 1 << 20}, rule.File{Rules: []rule.Rule{over}, MaxFiring: 1000}, aggregator.Dependencies{Bus: cfg, Log: log})
	if err != nil {
		return nil, err
	}
	file := policy.Default()
	file.Mode, file.Policies = policy.Enforce, []policy.Policy{{Rule: "bench"}}
	resp, err := responder.New(file, responder.Dependencies{Bus: cfg, Log: log})
	if err != nil {
		return nil, err
	}
	opt := producer.Options{Name: "fw-a", Realm: events.RealmDefault, Trust: "none", AllowFlush: true, BufferBytes: 64 << 20, Linger: 10 * time.Millisecond, RingBytes: 64 << 20}
	if r.producer, err = producer.New(opt, producer.Dependencies{Bus: cfg, Namespace: fw.NS, Log: log}); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return agg.Run(ctx) })
	g.Go(func() error { return resp.Run(ctx) })
	g.Go(func() error { return r.producer.Run(ctx) })
	g.Go(func() error {
		return conn.Follow(ctx, bus.StreamAudit, bus.FollowFrom{Filter: events.AuditSubject("fw-a", events.VerbFlush), All: true}, func(m bus.Msg) {
			rec := receipt{at: time.Now()}
			if events.Unmarshal(m.Data, &rec.Receipt) == nil {
				r.receipts <- rec
			}
		})
	})
	r.stop = func() error { cancel(); return g.Wait() }
	for agg.Ready() != nil || r.producer.Ready() != nil {
		time.Sleep(20 * time.Millisecond)
	}
	time.Sleep(2 * time.Second) // the responder has heard of the firewall
	return r, nil
}

// base are the entries that stay; crowd those that come and go around an attack.
var (
	base  = netip.MustParsePrefix("198.18.0.0/18")
	crowd = netip.MustParsePrefix("198.18.128.0/24")
)

func (r *response) fill(ctx context.Context) error {
	_, err := traffic.Flood{Protocol: 17, Sources: base, Destinations: lab.ServerPrefix4, Port: 53, Count: responseTable, Rate: responseRate}.Run(ctx, r.fw)
	return err
}

// trial lets one attacker cross the threshold among other new flows and returns
// the milliseconds from his last packet to the receipt.
func (r *response) trial(ctx context.Context, i int) (float64, error) {
	attacker := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, byte(i / 200), byte(1 + i%200)}), 32)
	var wg sync.WaitGroup
	var crowdErr error
	wg.Go(func() {
		// The crowd goes on while the flush works.
		_, crowdErr = traffic.Flood{Protocol: 17, Sources: crowd, Destinations: lab.ServerPrefix4, Port: 80, Count: backgroundFlows, Rate: responseRate - attackerRate}.Run(ctx, r.fw)
	})
	start := time.Now()
	rep, err := traffic.Flood{Protocol: 17, Sources: attacker, Destinations: lab.ServerPrefix4, Port: 53, Count: responseCount, Rate: attackerRate}.Run(ctx, r.fw)
	crossed := start.Add(rep.Elapsed) // setting up is not in Elapsed: rather early than late
	wg.Wait()
	if err = errors.Join(err, crowdErr); err != nil {
		return 0, err
	}
	select {
	case rec := <-r.receipts:
		if rec.Deleted == 0 || rec.Error != "" || rec.Addresses[0] != attacker.Addr().String() {
			return 0, fmt.Errorf("trial %d: receipt %+v", i, rec.Receipt)
		}
		return float64(rec.at.Sub(crossed).Microseconds()) / 1000, r.clear(ctx)
	case <-time.After(10 * time.Second):
		return 0, fmt.Errorf("trial %d: no receipt", i)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// clear takes the crowd out of the table, so that the next trial begins with
// the same one.
func (r *response) clear(ctx context.Context) error {
	conn, err := conntrack.Dial(r.fw.NS)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Flush(ctx, conntrack.Match{Prefixes: []netip.Prefix{crowd}, By: events.BySrc, AnyZone: true}, conntrack.FlushOptions{})
	time.Sleep(100 * time.Millisecond)
	return err
}

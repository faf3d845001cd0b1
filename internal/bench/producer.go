//go:build linux

package main

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// firewall is the name of every producer here; each lab has one.
const firewall = "fw-a"

// options are the defaults of cmd/producer, with flushes permitted, whatever their
// number and whoever asks for them.
func options() producer.Options {
	return producer.Options{
		Name: firewall, Realm: events.RealmDefault, Trust: "none", AllowFlush: true, SSHPort: []uint16{22},
		BufferBytes: 64 << 20, Linger: 10 * time.Millisecond, RingBytes: 64 << 20,
	}
}

// produce is the whole producer, set up as cmd/producer does it.
func produce(ctx context.Context, ns *host.Namespace, url string) (progress func() mark, end func() error, err error) {
	producer.Alone()
	p, err := producer.New(options(), producer.Dependencies{Bus: bus.Config{Flags: bus.Flags{NATSURL: url}}, Namespace: ns, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.Run(ctx) })
	end = func() error { cancel(); return g.Wait() }
	for p.Ready() != nil {
		if ctx.Err() != nil {
			return nil, nil, end()
		}
		time.Sleep(10 * time.Millisecond)
	}
	return func() mark {
		s := p.Stream()
		return mark{Events: s.Published, Lost: s.Lost(), Live: s.Live, Resyncs: s.Resyncs}
	}, end, nil
}

//go:build linux

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
)

// streams are kept in memory, so that a disk is no part of what is measured.
var streams = bus.Limits{EventsAge: time.Hour, EventsBytes: 256 << 20, Memory: true}

// startBus starts a NATS server with all streams in memory and connects to it.
func startBus(ctx context.Context) (server *embedded.Server, conn *bus.Conn, stop func(), err error) {
	return startBusWith(ctx, streams)
}

func startBusWith(ctx context.Context, limits bus.Limits) (server *embedded.Server, conn *bus.Conn, stop func(), err error) {
	if server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Open: true}); err != nil {
		return nil, nil, nil, err
	}
	if conn, err = bus.Connect(bus.Config{Server: server, Role: "bench"}); err != nil {
		server.Close()
		return nil, nil, nil, err
	}
	stop = func() { conn.Close(); server.Close() }
	if _, err = conn.Bootstrap(ctx, limits, false); err != nil {
		stop()
		return nil, nil, nil, err
	}
	return server, conn, stop, nil
}

// serve is a child process that is a NATS server with all streams.
func serve(ctx context.Context, limits bus.Limits) error {
	server, _, stop, err := startBusWith(ctx, limits)
	if err != nil {
		return err
	}
	defer stop()
	fmt.Println("ready", server.URL())
	return marks(func() mark { return mark{} })
}

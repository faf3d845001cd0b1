package main

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
)

// startBus starts a NATS server with all streams in memory and connects to it.
func startBus(ctx context.Context) (server *bus.Server, conn *bus.Conn, stop func(), err error) {
	if server, err = bus.StartServer(bus.ServerConfig{Listen: "127.0.0.1:0", Open: true}); err != nil {
		return nil, nil, nil, err
	}
	if conn, err = bus.Connect(bus.Config{Server: server, Role: "bench"}); err != nil {
		server.Close()
		return nil, nil, nil, err
	}
	stop = func() { conn.Close(); server.Close() }
	if _, err = conn.Bootstrap(ctx, bus.Limits{EventsAge: time.Hour, EventsBytes: 256 << 20, Memory: true}, false); err != nil {
		stop()
		return nil, nil, nil, err
	}
	return server, conn, stop, nil
}

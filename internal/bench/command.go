//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// order has the producer flush an address.
func order(ctx context.Context, conn *bus.Conn, addr netip.Addr) (*events.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := command(ctx, conn, events.VerbFlush)
	if err != nil {
		return nil, err
	}
	c.Addresses, c.By = []string{addr.String()}, events.BySrc
	var r events.Receipt
	if err := conn.Request(ctx, events.CommandSubject(firewall, events.VerbFlush), c, &r); err != nil {
		return nil, err
	}
	if r.Error != "" {
		return nil, fmt.Errorf("flush: %s", r.Error)
	}
	return &r, nil
}

// resync has the producer dump its table.
func resync(ctx context.Context, conn *bus.Conn) error {
	c, err := command(ctx, conn, events.VerbResync)
	if err != nil {
		return err
	}
	var r events.ResyncReply
	return conn.Request(ctx, events.CommandSubject(firewall, events.VerbResync), c, &r)
}

// command is addressed to the producer that runs now.
func command(ctx context.Context, conn *bus.Conn, verb string) (*events.Command, error) {
	var h events.Health
	if err := conn.Request(ctx, events.CommandSubject(firewall, events.VerbStatus), &events.Command{Verb: events.VerbStatus, Firewall: firewall}, &h); err != nil {
		return nil, err
	}
	return &events.Command{
		ID: fmt.Sprintf("bench-%d", time.Now().UnixNano()), Verb: verb, Firewall: firewall, Boot: h.Boot, Actor: events.ActorOperator,
		Expires: h.Sent + int64(20*time.Second), Issued: time.Now().UnixMilli(),
	}, nil
}

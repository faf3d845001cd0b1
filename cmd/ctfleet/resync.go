package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type resyncCmd struct {
	client
	Firewall []string `arg:"" optional:"" help:"Which firewalls (default: all of the realm)."`
	Realm    string   `default:"default" help:"The realm whose firewalls are meant (${default})."`
}

func (c *resyncCmd) Run(ctx context.Context) error {
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	names := c.Firewall
	if len(names) == 0 {
		if names, err = realmFirewalls(ctx, conn, c.Realm); err != nil {
			return err
		}
	}
	var failed error
	var replies []events.ResyncReply
	for _, name := range names {
		if err := events.CheckFirewall(name); err != nil {
			return &exitError{2, err}
		}
		var r events.ResyncReply
		cmd := &events.Command{Verb: events.VerbResync, Firewall: name, Actor: events.ActorOperator}
		if err := conn.Request(ctx, events.CommandSubject(name, events.VerbResync), cmd, &r); err != nil {
			if errors.Is(err, bus.ErrNobody) {
				err = errors.New("its producer is not connected")
			}
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
			continue
		}
		replies = append(replies, r)
	}
	if c.Output == "json" {
		err = printJSON(os.Stdout, map[string]any{"resyncs": replies})
	} else {
		t := newTable(os.Stdout, c.Output, "FIREWALL", "ACCEPTED", "EPOCH", "NOTE")
		for i := range replies {
			t.add(replies[i].Firewall, replies[i].Accepted, replies[i].Epoch, replies[i].Reason)
		}
		err = t.flush()
	}
	return errors.Join(err, failed)
}

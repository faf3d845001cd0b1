package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	replies := []events.ResyncReply{}
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
	return errors.Join(printResyncs(os.Stdout, c.Output, replies), failed)
}

func printResyncs(w io.Writer, format string, replies []events.ResyncReply) error {
	if format == "json" {
		return printJSON(w, map[string]any{"resyncs": replies})
	}
	t := newTable(w, format, "FIREWALL", "ACCEPTED", "EPOCH", "NOTE")
	for i := range replies {
		t.add(replies[i].Firewall, replies[i].Accepted, replies[i].Epoch, replies[i].Reason)
	}
	return t.flush()
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/ctfleet/ctfleet/pkg/events"
)

type flushCmd struct {
	deed
	Address    string `arg:"" help:"An address or a prefix."`
	By         string `enum:"src,dst,either" default:"src" help:"Match the original source, destination, or either (${default})."`
	Unanswered bool   `help:"Only entries that have had no answer."`
	Towards    string `placeholder:"PREFIX" help:"Only entries whose other side is this address, or lies within this prefix."`
	Most       uint64 `placeholder:"N" help:"Delete no more than this many entries on each firewall (default: no limit)."`
	Wait       bool   `help:"Wait for what came back within 2 s, and print it with the receipts (residual)."`
}

func (c *flushCmd) Run(ctx context.Context) error {
	address, err := prefix(c.Address)
	if err != nil {
		return err
	}
	if c.Towards != "" {
		if c.Towards, err = prefix(c.Towards); err != nil {
			return &exitError{2, fmt.Errorf("--towards: %w", errors.Unwrap(err))}
		}
	}
	return c.carryOut(ctx, order{
		cmd:      events.Command{Verb: events.VerbFlush, Addresses: []string{address}, By: c.By, Unanswered: c.Unanswered, Towards: c.Towards, Most: c.Most},
		question: "Delete these entries of " + address + " on %d firewalls?",
		nothing:  "nothing was deleted",
		wait:     c.Wait,
	})
}

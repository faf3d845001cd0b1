package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

type blockCmd struct {
	List   blockListCmd   `cmd:"" default:"withargs" help:"What is blocked, and until when."`
	Add    blockAddCmd    `cmd:"" help:"Drop all packets from and to an address or a prefix, for a time."`
	Delete blockDeleteCmd `cmd:"" help:"End a block before its time."`
}

type blockAddCmd struct {
	deed
	Prefix string        `arg:"" help:"An address or a prefix."`
	For    time.Duration `required:"" placeholder:"DURATION" help:"For how long, from 1s to 24h. What is blocked already stays so until the later of both ends."`
	Flush  bool          `help:"Delete what it has in the tables, too, on either side: without it, entries stay until they expire."`
}

func (c *blockAddCmd) Run(ctx context.Context) error {
	address, err := prefix(c.Prefix)
	if err != nil {
		return err
	}
	if c.For < time.Second || c.For > events.MaxBlockS*time.Second {
		return &exitError{2, fmt.Errorf("--for: %s is not within 1s to %dh: what is to last longer is a rule", c.For, events.MaxBlockS/3600)}
	}
	return c.carryOut(ctx, order{
		cmd:      events.Command{Verb: events.VerbBlock, Addresses: []string{address}, BlockS: int64(math.Ceil(c.For.Seconds())), Flush: c.Flush},
		question: "Block " + address + " for " + c.For.String() + " on %d firewalls?",
		nothing:  "nothing was blocked",
	})
}

type blockDeleteCmd struct {
	deed
	Prefix string `arg:"" help:"As it was added."`
}

func (c *blockDeleteCmd) Run(ctx context.Context) error {
	address, err := prefix(c.Prefix)
	if err != nil {
		return err
	}
	return c.carryOut(ctx, order{
		cmd:      events.Command{Verb: events.VerbUnblock, Addresses: []string{address}},
		question: "End the block of " + address + " on %d firewalls?",
		nothing:  "no block was ended",
	})
}

type blockListCmd struct {
	client
	where
}

// blockRow is what one firewall says it blocks.
type blockRow struct {
	Firewall   string           `json:"firewall"`
	AllowBlock bool             `json:"allow_block"`
	Blocked    []events.Blocked `json:"blocked"`
	More       uint64           `json:"blocked_more"`
	Error      string           `json:"error,omitempty"`
}

func (c *blockListCmd) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	firewalls, err := c.firewalls(ctx, conn)
	if err != nil {
		return err
	}
	rows := each(firewalls, func(name string) blockRow {
		h, err := status(ctx, conn, name)
		r := blockRow{Firewall: name, AllowBlock: h.AllowBlock, Blocked: []events.Blocked{}, More: h.BlockedMore}
		r.Blocked = append(r.Blocked, h.Blocked...)
		if err != nil {
			r.Error = err.Error()
		}
		return r
	})
	if err := printBlocks(os.Stdout, c.Output, rows); err != nil {
		return err
	}
	for i := range rows {
		if rows[i].Error != "" {
			return &exitError{code: 1}
		}
	}
	return nil
}

func printBlocks(w io.Writer, format string, rows []blockRow) error {
	if format == "json" {
		return printJSON(w, map[string]any{"firewalls": rows})
	}
	t := newTable(w, format, "FIREWALL", "PREFIX", "ENDS")
	for i := range rows {
		r := &rows[i]
		for _, b := range r.Blocked {
			ends := "never"
			if b.LeftS >= 0 {
				ends = "in " + seconds(b.LeftS).String()
			}
			t.add(r.Firewall, b.Prefix, ends)
		}
		if r.More > 0 {
			t.add(r.Firewall, fmt.Sprintf("and %d more", r.More), "sooner")
		}
		if r.Error != "" {
			complain("%s: %s", r.Firewall, r.Error)
		}
	}
	return t.flush()
}

// seconds is a number of seconds from the bus, which may be any.
func seconds(s float64) time.Duration {
	return time.Duration(min(s, events.MaxBlockS*1000)) * time.Second
}

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type auditCmd struct {
	List auditListCmd `cmd:"" default:"withargs" help:"Decisions, receipts, and what operators did, oldest first."`
}

type auditListCmd struct {
	client
	trusting
	Since    time.Duration `default:"1h" placeholder:"DURATION" help:"How far back (${default})."`
	Address  string        `placeholder:"ADDRESS" help:"Only what concerns this address."`
	Firewall string        `placeholder:"NAME" help:"Only what concerns this firewall."`
}

func (c *auditListCmd) Run(ctx context.Context) error {
	if c.Since <= 0 {
		return &exitError{2, fmt.Errorf("--since: must be positive, is %s", c.Since)}
	}
	if c.Address != "" {
		p, err := events.ParsePrefix(c.Address)
		if err != nil {
			return &exitError{2, fmt.Errorf("--address: %w", err)}
		}
		c.Address = events.FormatPrefix(p)
	}
	trust, err := c.open()
	if err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	entries := []audit.Entry{}
	now, err := conn.State(ctx, bus.StreamAudit)
	if err != nil {
		return err
	}
	err = conn.Read(ctx, bus.StreamAudit, bus.FollowFrom{Time: now.Now.Add(-c.Since)}, func(m bus.Msg) {
		if e, ok := readAudit(m, trust); ok && e.Concerns(c.Address, c.Firewall) {
			entries = append(entries, e)
		}
	})
	if err != nil {
		return err
	}
	return printAudit(os.Stdout, c.Output, entries)
}

func printAudit(w io.Writer, format string, entries []audit.Entry) error {
	if format == "json" {
		return printJSON(w, audit.List{Entries: entries})
	}
	t := newTable(w, format, "TIME", "ACTOR", "VERB", "ID", "WHAT", "WHY")
	for i := range entries {
		e := &entries[i]
		id, what, why := e.Words()
		t.add(e.Time.Local().Format(time.DateTime), e.Actor, e.Verb, id, what, why)
	}
	return t.flush()
}

// readAudit decodes an entry, and complains about one that is none.
func readAudit(m bus.Msg, trust *seal.Trust) (audit.Entry, bool) {
	e, err := audit.Read(&m, trust)
	if err != nil {
		complain("refused a message on %q: %v", m.Subject, err)
	}
	return e, err == nil
}

// record writes what an operator does to the audit.
func record(ctx context.Context, conn *bus.Conn, key *seal.Signer, a *events.Act) error {
	a.Time = time.Now().UnixMilli()
	return conn.PublishSealed(ctx, key, events.AuditSubject(events.ActorOperator, a.Verb), "", a)
}

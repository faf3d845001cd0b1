package main

import (
	"context"
	"fmt"
	"os"
	"strings"
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
	if c.Output == "json" {
		return printJSON(os.Stdout, audit.List{Entries: entries})
	}
	t := newTable(os.Stdout, c.Output, "TIME", "ACTOR", "VERB", "ID", "WHAT", "WHY")
	for i := range entries {
		e := &entries[i]
		id, what, why := auditSummary(e)
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

func auditSummary(e *audit.Entry) (id, what, why string) {
	if d := e.Decision; d != nil {
		if why = d.Reason; d.Who != "" {
			why = d.Who + ": " + why
		}
		what = d.Outcome + ": " + asked(d)
		if len(d.Firewalls) > 0 {
			what += " on " + strings.Join(d.Firewalls, " ")
		}
		return d.ID, fmt.Sprintf("%s (%s)", what, d.Mode), why
	}
	if a := e.Act; a != nil {
		why = a.Reason
		if a.Who != "" {
			why = a.Who + ": " + why
		}
		if e.Unsigned != "" {
			why = "NOT VERIFIED (" + e.Unsigned + "): " + why
		}
		return a.ID, a.What, why
	}
	r := e.Receipt
	what = strings.Join(r.Addresses, " ") + ": " + done(r)
	if r.DryRun {
		what = "dry run, " + what
	}
	for _, f := range r.Refused {
		what += fmt.Sprintf(", refused %s", f.Reason)
		if f.Count > 0 {
			what += fmt.Sprintf(" %d", f.Count)
		}
	}
	if r.Residual != nil {
		what = fmt.Sprintf("%s: %d match again", strings.Join(r.Addresses, " "), *r.Residual)
	}
	who := r.Actor
	if r.Who != "" {
		who = fmt.Sprintf("%s (%s)", r.Who, r.Actor)
	}
	return r.ID, what, who + ": " + r.Reason
}

// done says what became of a command, in words.
func done(r *events.Receipt) string {
	until := func() string {
		if *r.BlockedUntil == 0 {
			return "for ever"
		}
		return "until " + time.UnixMilli(*r.BlockedUntil).Format(time.DateTime)
	}
	entries := fmt.Sprintf("matched %d, deleted %d, gone %d", r.Matched, r.Deleted, r.Gone)
	switch {
	case r.Verb == events.VerbBlock && r.BlockedUntil != nil:
		return "blocked " + until() + ", " + entries
	case r.Verb == events.VerbBlock:
		return "not blocked, " + entries
	case r.Verb == events.VerbUnblock && r.BlockedUntil != nil:
		return "unblocked, a wider prefix keeps it blocked " + until()
	case r.Verb == events.VerbUnblock && r.Unblocked > 0:
		return "unblocked"
	case r.Verb == events.VerbUnblock && len(r.Refused) == 0 && r.Error == "":
		return "it was not blocked"
	case r.Verb == events.VerbUnblock:
		return "not unblocked"
	}
	return entries
}

// record writes what an operator does to the audit.
func record(ctx context.Context, conn *bus.Conn, key *seal.Signer, a *events.Act) error {
	a.Time = time.Now().UnixMilli()
	return conn.PublishSealed(ctx, key, events.AuditSubject(events.ActorOperator, a.Verb), "", a)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type approvalsCmd struct {
	List    approvalsListCmd `cmd:"" default:"withargs" help:"What waits for an answer."`
	Approve approveCmd       `cmd:"" help:"Have it done."`
	Deny    denyCmd          `cmd:"" help:"Have it not done."`
}

// waiting is a proposal that nobody has dealt with.
type waiting struct {
	events.Proposal
	digest string
}

// waitingProposals reads what waits for an answer, the oldest first, and what the
// server's clock says.
func waitingProposals(ctx context.Context, conn *bus.Conn) (out []waiting, now time.Time, err error) {
	clock, err := conn.BucketClock(ctx, bus.BucketApprovals)
	if err != nil {
		return nil, now, err
	}
	values, err := conn.Entries(ctx, bus.BucketApprovals)
	if err != nil {
		return nil, now, err
	}
	now = clock.At(time.Now())
	done := map[string]bool{}
	for _, m := range values {
		id, kind, _ := strings.Cut(bus.BucketKey(bus.BucketApprovals, m.Subject), ".")
		switch kind {
		case events.KeyOutcome:
			done[id] = true
		case events.KeyRequest:
			w := waiting{digest: events.ProposalDigest(m.Data)}
			if err := events.Unmarshal(m.Data, &w.Proposal); err != nil {
				complain("refused a message on %q: %v", m.Subject, err)
			} else if w.Decision.ID == id && now.UnixMilli() < w.Expires {
				out = append(out, w)
			}
		}
	}
	return slices.DeleteFunc(out, func(w waiting) bool { return done[w.Decision.ID] }), now, nil
}

type approvalsListCmd struct{ client }

func (c *approvalsListCmd) Run(ctx context.Context) error {
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	list, now, err := waitingProposals(ctx, conn)
	if err != nil {
		return err
	}
	return printApprovals(os.Stdout, c.Output, list, now)
}

func printApprovals(w io.Writer, format string, list []waiting, now time.Time) error {
	if format == "json" {
		out := make([]events.Proposal, len(list))
		for i := range list {
			out[i] = list[i].Proposal
		}
		return printJSON(w, map[string]any{"approvals": out})
	}
	t := newTable(w, format, "ID", "ENDS", "WHAT", "REALM", "FIREWALLS", "WHY")
	for i := range list {
		d := &list[i].Decision
		t.add(d.ID, "in "+time.UnixMilli(list[i].Expires).Sub(now).Round(time.Second).String(), audit.Asked(d), d.Realm, strings.Join(d.Firewalls, " "), d.Reason)
	}
	return t.flush()
}

type answerCmd struct {
	client
	signing
	ID     string `arg:"" help:"As listed; its beginning is enough where it is unique."`
	Reason string `placeholder:"TEXT" help:"Why: kept in the audit."`
}

type (
	approveCmd struct{ answerCmd }
	denyCmd    struct{ answerCmd }
)

func (c *approveCmd) Run(ctx context.Context) error { return c.answer(ctx, true) }

func (c *denyCmd) Run(ctx context.Context) error { return c.answer(ctx, false) }

// outcomeWait is how long it is waited for what a responder makes of an answer.
const outcomeWait = 5 * time.Second

func (c *answerCmd) answer(ctx context.Context, approve bool) error {
	key, err := c.signer()
	if err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	list, _, err := waitingProposals(ctx, conn)
	if err != nil {
		return err
	}
	found := slices.DeleteFunc(list, func(w waiting) bool { return !strings.HasPrefix(w.Decision.ID, c.ID) })
	switch len(found) {
	case 0:
		return fmt.Errorf("no proposal %q waits for an answer", c.ID)
	case 1:
	default:
		return &exitError{2, fmt.Errorf("%d proposals begin with %q: write more of it", len(found), c.ID)}
	}
	w := &found[0]
	did := "denied "
	if approve {
		did = "approved "
	}
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	err = record(ctx, conn, key, &events.Act{
		Verb: events.VerbApproval, What: did + audit.Asked(&w.Decision) + " on " + strings.Join(w.Decision.Firewalls, " "), ID: w.Decision.ID,
		Key: w.Decision.Address, Realm: w.Decision.Realm, Reason: c.Reason,
	})
	if err != nil {
		return err
	}
	a := &events.Answer{ID: w.Decision.ID, Approve: approve, Digest: w.digest, Reason: c.Reason, Time: time.Now().UnixMilli()}
	if err := conn.Put(ctx, key, bus.BucketApprovals, events.ProposalKey(a.ID, events.KeyAnswer), a); err != nil {
		return err
	}
	var o events.Outcome
	for begin := time.Now(); time.Since(begin) < outcomeWait && o.Outcome == ""; daemon.Sleep(ctx, 50*time.Millisecond) {
		if _, err := conn.Get(ctx, bus.BucketApprovals, events.ProposalKey(a.ID, events.KeyOutcome), &o); err != nil {
			return err
		}
	}
	switch o.Outcome {
	case "":
		return errors.New("no responder has taken the answer: is one running, can it reach the firewalls, and does it trust this key to approve?")
	case events.OutcomeDeclined:
		return &exitError{3, errors.New("it is not done: ctfleet audit list says why")}
	case events.OutcomeExpired:
		return errors.New("it came too late: the time for it was over")
	}
	fmt.Fprintf(os.Stderr, "%s: %s\n", o.Outcome, audit.Asked(&w.Decision))
	return nil
}

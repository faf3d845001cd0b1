package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// residualTime is how long what came back is waited for: a firewall looks 2 s after
// its flush, and a full dump takes it 2 s for a million entries.
const residualTime = 6 * time.Second

// awaitResiduals fills in what came back after each flush that deleted something.
// since is the server's clock before the first of them.
func awaitResiduals(ctx context.Context, conn *bus.Conn, since time.Time, receipts []events.Receipt) error {
	waiting := map[string]*events.Receipt{}
	for i := range receipts {
		if r := &receipts[i]; r.Deleted > 0 && r.Error == "" {
			waiting[r.Firewall] = r
		}
	}
	if len(waiting) == 0 {
		return nil
	}
	ctx, stop := context.WithTimeout(ctx, residualTime)
	defer stop()
	from := bus.FollowFrom{Time: since.Add(-time.Second), Filter: events.AuditSubject("*", events.VerbResidual)}
	err := conn.Follow(ctx, bus.StreamAudit, from, func(m bus.Msg) {
		e, ok := readAudit(m, nil)
		if !ok {
			return
		}
		r := waiting[e.Actor]
		if r == nil || e.Receipt.ID != r.ID {
			return
		}
		r.Residual = e.Receipt.Residual
		if delete(waiting, e.Actor); len(waiting) == 0 {
			stop()
		}
	})
	for name := range waiting {
		complain("%s: what came back is not in the audit after %s", name, residualTime)
	}
	return err
}

// printReceipts prints the answers to an order.
func printReceipts(w io.Writer, format string, o *order, receipts []events.Receipt) error {
	if format == "json" {
		return printJSON(w, map[string]any{"id": o.cmd.ID, "receipts": receipts})
	}
	header := []string{"FIREWALL"}
	switch o.cmd.Verb {
	case events.VerbBlock:
		header = append(header, "BLOCKED FOR")
	case events.VerbUnblock:
		header = append(header, "UNBLOCKED", "REFUSED", "NOTE")
	}
	if o.cmd.Verb != events.VerbUnblock {
		header = append(header, "MATCHED", "DELETED", "GONE")
		if o.wait {
			header = append(header, "RESIDUAL")
		}
		header = append(header, "REFUSED", "TABLE", "MS", "NOTE")
	}
	t := newTable(w, format, header...)
	for i := range receipts {
		t.add(o.cells(&receipts[i])...)
	}
	return t.flush()
}

// cells are a receipt as a line of the table.
func (o *order) cells(r *events.Receipt) []any {
	cells := []any{r.Firewall}
	switch o.cmd.Verb {
	case events.VerbBlock:
		cells = append(cells, blockedFor(r))
	case events.VerbUnblock:
		return append(cells, r.Unblocked, refusals(r), o.note(r))
	}
	cells = append(cells, r.Matched, r.Deleted, r.Gone)
	if o.wait {
		residual := ""
		if r.Residual != nil {
			residual = fmt.Sprint(*r.Residual)
		}
		cells = append(cells, residual)
	}
	size := fmt.Sprintf("%d → %d", r.TableBefore, r.TableAfter)
	if r.TableBefore == 0 && r.Error != "" {
		size = "" // it was not looked at
	}
	return append(cells, refusals(r), size, r.DurationMS, o.note(r))
}

// blockedFor is for how long a receipt says that its addresses are blocked. Both
// times are of the firewall's clock, which need not be ours.
func blockedFor(r *events.Receipt) string {
	switch {
	case r.BlockedUntil == nil:
		return ""
	case *r.BlockedUntil == 0:
		return "ever"
	}
	return time.UnixMilli(*r.BlockedUntil).Sub(time.UnixMilli(r.Time)).Round(time.Second).String()
}

func refusals(r *events.Receipt) string {
	var words []string
	for _, f := range r.Refused {
		word := f.Reason
		if f.Count > 0 {
			word += fmt.Sprintf(" × %d", f.Count)
		}
		words = append(words, word)
	}
	return strings.Join(words, ", ")
}

// note says what the numbers do not.
func (o *order) note(r *events.Receipt) string {
	verb := o.cmd.Verb
	switch {
	case r.Error != "":
		return r.Error
	case r.DryRun:
		return "dry run: " + o.nothing
	case verb == events.VerbFlush && r.TCPLoose && r.Deleted > 0:
		return "tcp_loose=1: routed TCP comes back with its next packet"
	case verb == events.VerbBlock && r.BlockedUntil == nil:
		return o.nothing
	case verb == events.VerbUnblock && r.BlockedUntil != nil:
		return "a wider prefix keeps it blocked for " + blockedFor(r)
	case verb == events.VerbUnblock && r.Unblocked == 0:
		return "it was not blocked"
	}
	return ""
}

// outcome is exit code 1 if any firewall failed, else 3 if any refused.
func outcome(receipts []events.Receipt) error {
	failed, refused := false, false
	for i := range receipts {
		r := &receipts[i]
		// A command that was refused as a whole has a refusal without a count,
		// and its error says why.
		whole := slices.ContainsFunc(r.Refused, func(f events.Refusal) bool { return f.Count == 0 })
		failed = failed || r.Error != "" && !whole
		// What is over --most was left as it was asked for.
		refused = refused || slices.ContainsFunc(r.Refused, func(f events.Refusal) bool { return f.Reason != conntrack.RefusedBudget })
	}
	switch {
	case failed:
		return &exitError{code: 1}
	case refused:
		return &exitError{code: 3}
	}
	return nil
}

package responder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// carryOut sends the commands of a recorded decision and records it once more, for
// the firewalls concerned, when some of them came to nothing. When all did, the deed
// is taken out of the ledger: the alert's next update is to try again. A receipt is
// nil where none came.
func (r *Responder) carryOut(ctx context.Context, decided *events.Decision, commands []*events.Command) []*events.Receipt {
	failures, receipts := make([]error, len(commands)), make([]*events.Receipt, len(commands))
	var wg sync.WaitGroup
	for i, c := range commands {
		wg.Go(func() { receipts[i], failures[i] = r.send(ctx, c) })
	}
	wg.Wait()
	rec := *decided
	rec.Outcome, rec.Firewalls = events.OutcomeFailed, nil
	unknown := false
	for i, c := range commands {
		if failures[i] != nil {
			rec.Firewalls = append(rec.Firewalls, c.Firewall)
			unknown = unknown || errors.Is(failures[i], bus.ErrNoAnswer)
		}
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	if len(rec.Firewalls) == 0 {
		if !slices.ContainsFunc(receipts, func(r *events.Receipt) bool { return !refused(r) }) {
			if err := r.undo(ctx, &rec, policy.Refund); err != nil {
				r.log.Error("cannot give back what a deed took of the budget", "alert", rec.Alert, "error", err)
			}
		}
		return receipts
	}
	scope := fmt.Sprintf("%d of %d commands failed: ", len(rec.Firewalls), len(commands))
	// A command without an answer may have been carried out.
	if len(rec.Firewalls) == len(commands) && !unknown {
		scope = "nothing was done, an update of the alert tries again: "
		if err := r.undo(ctx, &rec, policy.Retract); err != nil {
			r.log.Error("cannot take a deed out of the ledger", "alert", rec.Alert, "error", err)
		}
	}
	rec.Reason = short(scope + strings.ReplaceAll(errors.Join(failures...).Error(), "\n", "; "))
	r.log.Warn("commands failed", "alert", rec.Alert, "reason", rec.Reason)
	if err := r.record(ctx, &rec); err != nil {
		r.log.Error("cannot record that commands failed", "alert", rec.Alert, "error", err)
	}
	return receipts
}

// commands makes one command for each firewall of a record, to be carried out by its
// present producer within commandLife by its own clock.
func (r *Responder) commands(d *events.Decision) []*events.Command {
	if d.Outcome != events.OutcomeCommanded {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	concerned, whole := r.tables(d)
	var out []*events.Command
	for i, name := range d.Firewalls {
		s := r.fleet[name]
		c := &events.Command{
			ID: d.Commands[i], Verb: events.VerbFlush, Firewall: name, Realm: d.Realm, Boot: s.health.Boot,
			Expires: s.health.Sent + int64(time.Since(s.at)+commandLife),
			Issued:  r.clock.At(time.Now()).UnixMilli(),
			Actor:   events.ActorResponder, Reason: d.Reason, Alert: d.Alert, Rule: d.Rule,
			Addresses: []string{d.Address}, By: d.By, Towards: d.Towards, Unanswered: d.Unanswered,
			Most: r.engine.Load().Most(s.health.Table.Count, concerned, whole),
		}
		if d.BlockS > 0 {
			c.Verb, c.BlockS, c.Flush = events.VerbBlock, d.BlockS, d.Action == policy.ActionFlushBlock
		}
		out = append(out, c)
	}
	slices.SortFunc(out, func(a, b *events.Command) int { return strings.Compare(a.Firewall, b.Firewall) })
	return out
}

// tables counts the entries of the firewalls of a decision, and of all of its realm.
// r.mu is held.
func (r *Responder) tables(d *events.Decision) (concerned, realm uint64) {
	for name, s := range r.fleet {
		if _, ours := events.ZoneOf(d.Realm, s.health.Realm); !ours {
			continue
		}
		realm += s.health.Table.Count
		if slices.Contains(d.Firewalls, name) {
			concerned += s.health.Table.Count
		}
	}
	return concerned, realm
}

// sendAgain is the pause before a firewall that is away is tried again.
const sendAgain = 250 * time.Millisecond

// send commands one firewall, and one that is away again and again, until the
// command expires. It fails when nothing came of the command, and might the next
// time; or with bus.ErrNoAnswer, when nobody knows what came of it. A refusal for
// good is an answer: the receipt says why.
func (r *Responder) send(ctx context.Context, c *events.Command) (*events.Receipt, error) {
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%s: too many commands are under way", c.Firewall)
	}
	var receipt events.Receipt
	for {
		err := r.conn.Command(ctx, r.signer, events.CommandSubject(c.Firewall, c.Verb), c, &receipt)
		if err == nil {
			break
		}
		if !errors.Is(err, bus.ErrNobody) || !daemon.Sleep(ctx, sendAgain) {
			return nil, fmt.Errorf("%s: %w", c.Firewall, err)
		}
	}
	if receipt.ID != c.ID || receipt.Firewall != c.Firewall {
		return nil, fmt.Errorf("%s: the answer is about command %s of %s: %w", c.Firewall, receipt.ID, receipt.Firewall, bus.ErrNoAnswer)
	}
	r.log.Info("receipt", "firewall", receipt.Firewall, "verb", receipt.Verb, "addresses", receipt.Addresses, "matched", receipt.Matched, "deleted", receipt.Deleted,
		"refused", receipt.Refused, "error", receipt.Error, "ms", receipt.DurationMS)
	if receipt.Error != "" && receipt.Deleted == 0 && receipt.BlockedUntil == nil && !refusedForGood(&receipt) {
		return &receipt, fmt.Errorf("%s: %s", c.Firewall, receipt.Error)
	}
	return &receipt, nil
}

// passing are the refusals that a later command may not meet.
var passing = []string{guard.NotReady, guard.WrongBoot, guard.Expired, guard.TooFarAhead, guard.RateLimited, guard.Unread}

// sparing are the refusals that say that an address is none to act upon. Others, a
// repetition above all, do not say that nothing was done.
var sparing = []string{conntrack.RefusedFew, conntrack.RefusedUnanswered, guard.Protected, guard.Allowlisted, guard.NotEnabled}

// refused reports whether a firewall did nothing, because it would not.
func refused(r *events.Receipt) bool {
	return r.Deleted == 0 && r.BlockedUntil == nil && len(r.Refused) > 0 &&
		!slices.ContainsFunc(r.Refused, func(f events.Refusal) bool { return !slices.Contains(sparing, f.Reason) })
}

// refusedForGood reports whether the firewall's guard refused the whole command
// for a reason that holds for the next one too.
func refusedForGood(r *events.Receipt) bool {
	return slices.ContainsFunc(r.Refused, func(f events.Refusal) bool { return f.Count == 0 && !slices.Contains(passing, f.Reason) })
}

package responder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// carryOut sends the commands of a recorded decision and records it once more,
// for the firewalls concerned, when some of them came to nothing. When all did,
// the cool-down that the decision began is over: the alert's next update is to
// try again.
func (r *Responder) carryOut(ctx context.Context, decided *events.Decision, commands []*events.Command) {
	failures := make([]error, len(commands))
	var wg sync.WaitGroup
	for i, c := range commands {
		wg.Go(func() { failures[i] = r.send(ctx, c) })
	}
	wg.Wait()
	rec := *decided
	rec.Outcome, rec.Firewalls = events.OutcomeFailed, nil
	for i, c := range commands {
		if failures[i] != nil {
			rec.Firewalls = append(rec.Firewalls, c.Firewall)
		}
	}
	if len(rec.Firewalls) == 0 {
		return
	}
	scope := fmt.Sprintf("%d of %d commands failed: ", len(rec.Firewalls), len(commands))
	if nothingDone(&rec) {
		scope = "nothing was done, an update of the alert tries again: "
		r.retract(&rec)
	}
	rec.Reason = short(scope + strings.ReplaceAll(errors.Join(failures...).Error(), "\n", "; "))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	r.log.Warn("commands failed", "alert", rec.Alert, "reason", rec.Reason)
	if err := r.record(ctx, &rec); err != nil {
		r.log.Error("cannot record that commands failed", "alert", rec.Alert, "error", err)
	}
}

// nothingDone reports whether a record says that no firewall did anything. The
// record of a failure lists the commands that were sent, and the firewalls whose
// commands failed.
func nothingDone(d *events.Decision) bool {
	return d.Outcome == events.OutcomeFailed && len(d.Firewalls) == len(d.Commands)
}

// deed is what a record's cool-down is known by: the record of a failure has the
// alert and the time of the decision that it is about.
func deed(d *events.Decision) policy.Deed { return policy.Deed{Alert: d.Alert, Time: d.Time} }

// retract ends the cool-down that a decision began.
func (r *Responder) retract(d *events.Decision) {
	address, err := events.ParsePrefix(d.Key)
	if err != nil {
		return // it began none
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.engine.Retract(d.Realm, address, deed(d))
}

// maxReason keeps a record's text within what messages may hold.
const maxReason = 900

func short(s string) string {
	if len(s) <= maxReason {
		return s
	}
	return strings.ToValidUTF8(s[:maxReason], "") + "…"
}

// commands makes one command per firewall, to be carried out by its present
// producer within commandLife by its own clock.
func (r *Responder) commands(a *events.Alert, d policy.Decision) []*events.Command {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*events.Command
	for _, name := range d.Firewalls {
		s := r.fleet[name]
		out = append(out, &events.Command{
			// A firing alert is acted upon again after its cool-down: Updated
			// keeps the second command from being refused as a repetition, and
			// is the same for two responders.
			ID:   policy.CommandID(fmt.Sprintf("%s@%d", a.ID, a.Updated), name, d.Action),
			Verb: events.VerbFlush, Firewall: name, Realm: a.Realm, Boot: s.health.Boot,
			Expires: s.health.Sent + int64(time.Since(s.at)+commandLife),
			Actor:   events.ActorResponder, Reason: d.Reason, Alert: a.ID, Rule: a.Rule,
			Addresses: []string{a.Key}, By: d.By, Unanswered: d.Unanswered,
		})
	}
	slices.SortFunc(out, func(a, b *events.Command) int { return strings.Compare(a.Firewall, b.Firewall) })
	return out
}

// send commands one firewall. It fails when nothing came of the command, and
// might the next time. A refusal for good is an answer: the receipt says why.
func (r *Responder) send(ctx context.Context, c *events.Command) error {
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return fmt.Errorf("%s: too many commands are under way", c.Firewall)
	}
	var receipt events.Receipt
	if err := r.conn.Command(ctx, r.signer, events.CommandSubject(c.Firewall, c.Verb), c, &receipt); err != nil {
		return fmt.Errorf("%s: %w", c.Firewall, err)
	}
	r.log.Info("receipt", "firewall", receipt.Firewall, "addresses", receipt.Addresses, "matched", receipt.Matched, "deleted", receipt.Deleted,
		"refused", receipt.Refused, "error", receipt.Error, "ms", receipt.DurationMS)
	if receipt.Error != "" && receipt.Deleted == 0 && !refusedForGood(&receipt) {
		return fmt.Errorf("%s: %s", c.Firewall, receipt.Error)
	}
	return nil
}

// passing are the refusals that a later command may not meet.
var passing = []string{guard.NotReady, guard.WrongBoot, guard.Expired, guard.TooFarAhead, guard.RateLimited}

// refusedForGood reports whether the firewall's guard refused the whole command
// for a reason that holds for the next one too.
func refusedForGood(r *events.Receipt) bool {
	return slices.ContainsFunc(r.Refused, func(f events.Refusal) bool { return f.Count == 0 && !slices.Contains(passing, f.Reason) })
}

package responder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// carryOut sends the commands of a recorded decision and records it once more
// when one of them could not be delivered.
func (r *Responder) carryOut(ctx context.Context, decided *events.Decision, commands []*events.Command) {
	failures := make([]error, len(commands))
	var wg sync.WaitGroup
	for i, c := range commands {
		wg.Go(func() { failures[i] = r.send(ctx, c) })
	}
	wg.Wait()
	err := errors.Join(failures...)
	if err == nil {
		return
	}
	rec := *decided
	rec.Outcome, rec.Reason = events.OutcomeFailed, short(strings.ReplaceAll(err.Error(), "\n", "; "))
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	r.log.Warn("a command could not be delivered", "alert", rec.Alert, "reason", rec.Reason)
	if err := r.record(ctx, &rec); err != nil {
		r.log.Error("cannot record that a command could not be delivered", "alert", rec.Alert, "error", err)
	}
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
			Addresses: []string{a.Key}, By: d.By,
		})
	}
	slices.SortFunc(out, func(a, b *events.Command) int { return strings.Compare(a.Firewall, b.Firewall) })
	return out
}

// send commands one firewall. A refusal is an answer: the receipt says why.
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
	if err := r.conn.Request(ctx, events.CommandSubject(c.Firewall, c.Verb), c, &receipt); err != nil {
		return fmt.Errorf("%s: %w", c.Firewall, err)
	}
	r.log.Info("receipt", "firewall", receipt.Firewall, "addresses", receipt.Addresses, "matched", receipt.Matched, "deleted", receipt.Deleted,
		"refused", receipt.Refused, "error", receipt.Error, "ms", receipt.DurationMS)
	return nil
}

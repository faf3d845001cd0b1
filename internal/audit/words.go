package audit

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Words says for a person what was decided or done, and why and by whom; id is of the
// command, the decision or the approval.
func (e *Entry) Words() (id, what, why string) {
	if d := e.Decision; d != nil {
		if why = d.Reason; d.Who != "" {
			why = d.Who + ": " + why
		}
		what = d.Outcome + ": " + Asked(d)
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

// Asked says in words what a decision asks of the firewalls.
func Asked(d *events.Decision) string {
	s := d.Action + " " + cmp.Or(d.Address, d.Key)
	if d.By == events.ByDst {
		s += " as destination"
	}
	if d.Towards != "" {
		s += " towards " + d.Towards
	}
	if d.Unanswered {
		s += ", unanswered entries only"
	}
	if d.BlockS > 0 {
		s += fmt.Sprintf(", block for %s", time.Duration(d.BlockS)*time.Second)
	}
	return s
}

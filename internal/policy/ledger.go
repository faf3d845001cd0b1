package policy

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// FinishWithin is how long somebody else goes on with a deed that was begun. Until a
// while after it, firewalls remember the commands that it led to.
const FinishWithin = 10 * time.Second

// Charge settles an open decision at now, by the server's clock: it is declined
// while the address's cool-down lasts, or takes its place in the ledger. When the
// budget is spent, the circuit opens and the decision is only simulated, as all are
// while it is open. It reports whether the ledger was changed, which then has to be
// kept before anything is done.
//
// A deed that is in the ledger for less than FinishWithin was begun by somebody who
// did not finish it: it is settled as it was.
func (e *Engine) Charge(d *Decision, l *events.Ledger, now time.Time) (changed bool) {
	if d.Outcome != "" {
		return false
	}
	prune(l, now)
	if l.Circuit.Open {
		d.onlyObserve(l)
	}
	if d.lately(l, now) {
		return false
	}
	n := e.file.Budget.AddressesPerMinute
	if n > 0 && d.Mode != Observe && spent(d, l, now) >= n {
		l.Circuit = events.Circuit{Open: true, Since: now.UnixMilli(), Why: fmt.Sprintf("the budget of %d addresses a minute is spent", n)}
		d.onlyObserve(l)
		changed = true
		if d.lately(l, now) {
			return changed
		}
	}
	if n > 0 && d.Mode == Observe && spent(d, l, now) >= n {
		*d = d.declined(fmt.Errorf("the budget of %d addresses a minute is spent", n))
		return changed
	}
	if len(l.Acts) >= events.MaxLedgerActs && !makeRoom(l) {
		*d = d.declined(fmt.Errorf("%d addresses were acted upon within their cool-downs, more cannot be remembered", len(l.Acts)))
		return changed
	}
	left := e.file.CoolDown
	if d.Mode == Approve {
		left = max(left, e.file.ApproveWithin) // or each update would be proposed again
	}
	enter(l, d, now, left)
	d.settle()
	return true
}

// enter gives a deed its place in the ledger, and its address a cool-down from now on.
func enter(l *events.Ledger, d *Decision, now time.Time, coolDown time.Duration) {
	l.Acts = append(l.Acts, events.Acted{
		Realm: d.Realm, Address: events.FormatPrefix(d.Address), Alert: d.Alert, Updated: d.Updated,
		At: now.UnixMilli(), Until: now.Add(coolDown).UnixMilli(), Simulated: d.Mode == Observe,
	})
}

// onlyObserve is what an open circuit makes of a decision.
func (d *Decision) onlyObserve(l *events.Ledger) {
	if d.Mode != Observe {
		d.Mode = Observe
		d.Reason += fmt.Sprintf(" (the circuit is open: %s)", l.Circuit.Why)
	}
}

// lately settles what was begun or done a while ago, and reports whether that was so.
func (d *Decision) lately(l *events.Ledger, now time.Time) bool {
	if begun(d, l, now) {
		d.settle()
		return true
	}
	left := cooling(d, l, now)
	if left > 0 {
		*d = d.declined(fmt.Errorf("%s was acted upon and is left alone for another %s", d.Address, left.Round(time.Second)))
	}
	return left > 0
}

// begun reports whether somebody has begun with this very deed, and may not have
// finished it.
func begun(d *Decision, l *events.Ledger, now time.Time) bool {
	return slices.ContainsFunc(l.Acts, func(a events.Acted) bool {
		return is(&a, d) && a.Simulated == (d.Mode == Observe) &&
			now.UnixMilli()-a.At < FinishWithin.Milliseconds()
	})
}

// cooling is for how long the address is still left alone. What was only simulated
// is in nobody's way but a simulation's.
func cooling(d *Decision, l *events.Ledger, now time.Time) (left time.Duration) {
	for _, a := range l.Acts {
		if a.Realm == d.Realm && a.Address == events.FormatPrefix(d.Address) && (!a.Simulated || d.Mode == Observe) {
			left = max(left, time.UnixMilli(a.Until).Sub(now))
		}
	}
	return left
}

// spent is how much of the minute's budget is used up. What is only simulated has one
// of its own.
func spent(d *Decision, l *events.Ledger, now time.Time) (n int) {
	for _, a := range l.Acts {
		if a.Simulated == (d.Mode == Observe) && now.UnixMilli()-a.At < time.Minute.Milliseconds() {
			n++
		}
	}
	return n
}

// ErrNot is what the error of a decision is that must not be carried out any more;
// others pass.
var ErrNot = errors.New("it must not be done")

// forGood is an error that is ErrNot, in its own words.
type forGood struct{ error }

func (forGood) Is(target error) bool { return target == ErrNot }
func (f forGood) Unwrap() error      { return f.error }

// Resume charges a decision that a person has approved at now: its cool-down begins,
// and its place in the budget is that of this minute. An error says why it cannot be
// carried out: for good, with [ErrNot], or until the minute is over.
func (e *Engine) Resume(d *Decision, rule string, l *events.Ledger, known Known, now time.Time) error {
	mode := e.file.Mode
	if m := e.policies[rule].Mode; m != "" {
		mode = m
	}
	switch {
	case l.Circuit.Open:
		return forGood{fmt.Errorf("the circuit is open: %s", l.Circuit.Why)}
	case !e.Concerns(rule) || mode == Observe:
		return forGood{errors.New("the policy only observes now")}
	case known.Allow == nil:
		return fmt.Errorf("the live allowlist is not known: %w", known.AllowError)
	}
	if err := e.spared(d, known.Allow); err != nil {
		return forGood{err}
	}
	prune(l, now)
	others := events.Ledger{Acts: slices.Clone(l.Acts)}
	Retract(&others, d)
	if n := e.file.Budget.AddressesPerMinute; n > 0 && spent(d, &others, now) >= n {
		return fmt.Errorf("the budget of %d addresses a minute is spent", n)
	}
	l.Acts = others.Acts
	enter(l, d, now, e.file.CoolDown)
	return nil
}

// makeRoom forgets the oldest act that nothing came of: what was refused, or only
// simulated, must not keep what is true out of the ledger.
func makeRoom(l *events.Ledger) bool {
	i := slices.IndexFunc(l.Acts, func(a events.Acted) bool { return a.At == 0 || a.Simulated })
	if i < 0 {
		return false
	}
	l.Acts = slices.Delete(l.Acts, i, i+1)
	return true
}

// settle gives a decision the outcome of its mode.
func (d *Decision) settle() {
	switch d.Mode {
	case Enforce:
		d.Outcome = events.OutcomeCommanded
	case Approve:
		d.Outcome = events.OutcomeProposed
	default:
		d.Outcome = events.OutcomeSimulated
	}
}

// prune forgets what neither a cool-down nor the budget's minute is about any more.
func prune(l *events.Ledger, now time.Time) {
	l.Acts = slices.DeleteFunc(l.Acts, func(a events.Acted) bool {
		return a.Until <= now.UnixMilli() && now.UnixMilli()-a.At >= time.Minute.Milliseconds()
	})
}

// Retract takes a deed out of the ledger, with what it spent and its cool-down,
// when nothing came of it: no firewall carried it out. Another deed's about the same
// address stays. It reports whether there was one.
func Retract(l *events.Ledger, d *Decision) bool {
	before := len(l.Acts)
	l.Acts = slices.DeleteFunc(l.Acts, func(a events.Acted) bool { return is(&a, d) })
	return len(l.Acts) != before
}

// Refund gives back what a deed took of the budget, when every firewall refused it:
// forged sources, which firewalls leave alone, must not use it up. Its cool-down
// stays. It reports whether there was anything to give back.
func Refund(l *events.Ledger, d *Decision) bool {
	for i := range l.Acts {
		if a := &l.Acts[i]; is(a, d) && a.At != 0 {
			a.At = 0
			return true
		}
	}
	return false
}

// is reports whether a is the deed of d.
func is(a *events.Acted, d *Decision) bool {
	return a.Realm == d.Realm && a.Address == events.FormatPrefix(d.Address) && a.Alert == d.Alert && a.Updated == d.Updated
}

// ApproveWithin is how long a proposal waits for a person.
func (e *Engine) ApproveWithin() time.Duration { return e.file.ApproveWithin }

// Most is how many entries one firewall may delete for a decision, when its table
// holds count entries and those of all firewalls of the realm realm, of which those
// concerned hold concerned. 0 means no limit.
func (e *Engine) Most(count, concerned, realm uint64) uint64 {
	most := uint64(0)
	limit := func(n float64) {
		// At least one: 0 would be no limit.
		if v := max(uint64(n), 1); most == 0 || v < most {
			most = v
		}
	}
	if p := e.file.Budget.TablePercent; p > 0 {
		limit(p / 100 * float64(count))
	}
	if p := e.file.Budget.RealmPercent; p > 0 && concerned > 0 {
		limit(p / 100 * float64(realm) * float64(count) / float64(concerned))
	}
	return most
}

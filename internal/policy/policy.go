// Package policy decides whether an alert is acted upon, and how. It is pure: an
// alert, the time, what is known of the firewalls and what was done lately go in;
// decisions come out, each with a reason for a person. Nothing here sends anything.
//
// The answer is "no" by default. A policy must name the rule; the mode must be
// enforce, or the decision is only simulated, or proposed to a person; the address
// must be on no allowlist, the alert must be fresh (see [Engine.Propose]). The
// address must not have been acted upon within the cool-down, and there must be some
// of the budget left, or the circuit opens (see [Engine.Charge]). The firewall then
// decides again, by itself (package guard).
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Firewall is what the responder knows of one firewall.
type Firewall struct {
	Name  string
	Realm string
	Fresh bool // heard of within the last seconds: its clock is known
}

// Known is what the responder knows when it decides.
type Known struct {
	Fleet      []Firewall
	Allow      *allowlist.List // the live allowlist of the alert's realm; nil where it is not known
	AllowError error           // why not
}

// Decision is what to do about one address because of an alert.
type Decision struct {
	Outcome string // events.Outcome…; "" while it is open
	Reason  string
	Mode    string
	Action  string

	// What the firewalls are asked for, see [events.Command].
	Address    netip.Prefix
	By         string
	Towards    netip.Prefix // the zero Prefix: anywhere
	Unanswered bool
	BlockFor   time.Duration
	// UntilPercent is how full a table may stay that is relieved: the decisions about
	// it are carried out one after the other, until it is.
	UntilPercent float64

	Firewalls []string // fresh ones, to be commanded
	Away      []string // in scope, but not heard of lately or at all: cannot be commanded

	// The deed: the same alert in the same state, about the same address, is the same
	// one, whoever decides.
	Alert   string
	Updated int64
	Realm   string
}

// Engine applies a file. It remembers nothing: what was done lately is in the
// ledger, which responders share. It is safe for concurrent use.
type Engine struct {
	file     File
	policies map[string]Policy
	allow    *allowlist.List
}

// New returns an engine for a validated file.
func New(f File) *Engine {
	e := &Engine{file: f, policies: map[string]Policy{}, allow: allowlist.New(allowlist.Prefixes("policy file", f.Allowlist...)...)}
	for _, p := range f.Policies {
		e.policies[p.Rule] = p
	}
	return e
}

// Concerns reports whether a policy is about the alerts of a rule.
func (e *Engine) Concerns(rule string) bool {
	_, ok := e.policies[rule]
	return ok
}

// Propose says what could be done about one firing alert of the given age: a
// decision for each address, open or declined. There is none when no policy
// concerns the alert, so that there is nothing to record.
func (e *Engine) Propose(a *events.Alert, age time.Duration, known Known) []Decision {
	p, ok := e.policies[a.Rule]
	if !ok || a.State != events.Firing {
		return nil
	}
	d := Decision{
		Mode: e.file.Mode, Action: p.Action, By: events.BySrc, Unanswered: p.Unanswered == UnansweredDelete, BlockFor: p.BlockFor,
		Reason: a.Text, Alert: a.ID, Updated: a.Updated, Realm: a.Realm,
	}
	if p.Mode != "" {
		d.Mode = p.Mode
	}
	if err := e.actionable(a, age, known); err != nil {
		return []Decision{d.declined(err)}
	}
	list, err := targets(a, p, d)
	if err != nil {
		return []Decision{d.declined(err)}
	}
	for i := range list {
		d := &list[i]
		d.place(a, p.Where, known.Fleet)
		err := e.spared(d, known.Allow)
		switch n := e.file.Budget.Firewalls; {
		case err != nil:
		case len(d.Firewalls) == 0:
			err = errors.New("none of the firewalls concerned can be reached")
		case n > 0 && len(d.Firewalls) > n:
			err = fmt.Errorf("it would be on %d firewalls at a time, the budget is %d", len(d.Firewalls), n)
		}
		if err != nil {
			*d = d.declined(err)
		}
	}
	return list
}

// declined returns d with the reason why nothing is done.
func (d Decision) declined(err error) Decision {
	d.Outcome, d.Reason = events.OutcomeDeclined, err.Error()
	return d
}

// actionable returns nil when an alert may be acted upon at all.
func (e *Engine) actionable(a *events.Alert, age time.Duration, known Known) error {
	switch {
	case age > e.file.MaxAge:
		return fmt.Errorf("the alert is %s old, at most %s is acted upon", age.Round(time.Second), e.file.MaxAge)
	case a.Simulated:
		return errors.New("the alert is simulated")
	case a.Value < a.Count:
		return errors.New("the value is under the threshold again")
	case known.Allow == nil:
		return fmt.Errorf("the live allowlist is not known: %w", known.AllowError)
	}
	return nil
}

// spared returns nil when no allowlist has a word about the address of d.
func (e *Engine) spared(d *Decision, live *allowlist.List) error {
	for _, list := range []*allowlist.List{e.allow, live} {
		if entry, listed := list.Covers(d.Address); listed {
			return fmt.Errorf("%s is on the allowlist: %s (%s)", d.Address, entry.Prefix, entry.Why)
		}
		if entry, listed := list.Within(d.Address); listed {
			return fmt.Errorf("%s contains %s, which is on the allowlist (%s)", d.Address, entry.Prefix, entry.Why)
		}
	}
	return nil
}

// place fills in the firewalls that are to be commanded: of the alert's realm,
// and, where the policy says so, only those that the alert names.
func (d *Decision) place(a *events.Alert, where string, fleet []Firewall) {
	d.Firewalls, d.Away = nil, nil
	known := map[string]bool{}
	for _, f := range fleet {
		known[f.Name] = true
		_, named := a.Firewalls[f.Name]
		if _, ours := events.ZoneOf(a.Realm, f.Realm); !ours || where == WhereAlert && !named {
			continue
		}
		if f.Fresh {
			d.Firewalls = append(d.Firewalls, f.Name)
		} else {
			d.Away = append(d.Away, f.Name)
		}
	}
	for name := range a.Firewalls {
		if !known[name] {
			d.Away = append(d.Away, name)
		}
	}
	slices.Sort(d.Firewalls)
	slices.Sort(d.Away)
}

// CommandID is the id of the command that a deed causes on one firewall: two
// responders make the same one.
func CommandID(alert string, updated int64, address, firewall, action string) string {
	h := sha256.Sum256(fmt.Appendf(nil, "%s\x00%d\x00%s\x00%s\x00%s", alert, updated, address, firewall, action))
	return hex.EncodeToString(h[:12])
}

// Package policy decides whether an alert is acted upon, and how. It is pure:
// an alert, the time and what is known of the firewalls go in; a decision comes
// out, with a reason for a person. Nothing here sends anything.
//
// The answer is "no" by default. A policy must name the rule; the mode must be
// enforce, or the decision is only simulated; the address must be on no allowlist,
// must not have been acted upon within the cool-down, the alert must be fresh, and
// there must be some of the budget left. The firewall then decides again, by itself
// (package guard).
package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Modes.
const (
	Observe = "observe" // decide and record, send nothing
	Enforce = "enforce" // send commands
)

// ActionFlush deletes the address's entries. Other actions come with their
// mechanisms.
const ActionFlush = "flush"

// What to do about a source none of whose flows was ever answered: it may be
// forged, and its owner would be the one who suffers.
const (
	UnansweredRefuse = "refuse" // the firewall leaves it alone
	UnansweredDelete = "delete" // only entries without an answer are deleted, whoever's they are
)

// Where an action applies: to the firewalls that the alert names, or to all of
// its realm.
const (
	WhereAlert = "alert"
	WhereRealm = "realm"
)

// File is the policy file.
type File struct {
	Mode      string        `yaml:"mode"`
	Policies  []Policy      `yaml:"policies"`
	Allowlist rule.Prefixes `yaml:"allowlist"` // addresses and prefixes
	// CoolDown is how long an address is left alone after an action: a flush
	// makes established flows come back as new ones, which must not trigger
	// the next flush. An address that is still over the threshold then is acted
	// upon again.
	CoolDown time.Duration `yaml:"cool_down"`
	// MaxAge is how old an alert may be to be acted upon.
	MaxAge time.Duration `yaml:"max_age"`
	// Budget bounds what all policies together may do.
	Budget Budget `yaml:"budget"`
}

// Budget bounds the damage that a wrong rule, or whoever makes alerts fire, can do.
type Budget struct {
	// AddressesPerMinute is how many times an address is acted upon within any
	// minute, by all responders together as far as they have heard of one another.
	// 0: no limit.
	AddressesPerMinute int `yaml:"addresses_per_minute"`
}

// Policy says what to do about the alerts of one rule.
type Policy struct {
	Rule   string `yaml:"rule"`
	Mode   string `yaml:"mode"` // overrides the file's
	Action string `yaml:"action"`
	Where  string `yaml:"where"`
	// Unanswered is UnansweredRefuse unless it says otherwise.
	Unanswered string `yaml:"unanswered"`
}

// Default is a file without policies.
func Default() File {
	return File{Mode: Observe, CoolDown: time.Minute, MaxAge: 30 * time.Second, Budget: Budget{AddressesPerMinute: 10}}
}

// wrong is an error about one key of the file.
type wrong struct {
	path string // such as $.policies[1].where
	error
}

func (w wrong) KeyPath() string { return w.path }
func (w wrong) Unwrap() error   { return w.error }

// Validate reports the first thing that is wrong, naming it.
func (f *File) Validate() error {
	refuse := func(path, format string, args ...any) error { return wrong{path, fmt.Errorf(format, args...)} }
	if err := checkMode("mode", f.Mode); err != nil {
		return wrong{"$.mode", err}
	}
	if f.CoolDown < 0 {
		return refuse("$.cool_down", "cool_down: must not be negative, is %s", f.CoolDown)
	}
	if f.MaxAge <= 0 {
		return refuse("$.max_age", "max_age: must be positive, is %s", f.MaxAge)
	}
	if n := f.Budget.AddressesPerMinute; n < 0 {
		return refuse("$.budget.addresses_per_minute", "budget: addresses_per_minute: must not be negative, is %d", n)
	}
	for i, p := range f.Allowlist {
		path := fmt.Sprintf("$.allowlist[%d]", i)
		if !p.IsValid() {
			return refuse(path, "allowlist: an entry is empty")
		}
		if p != p.Masked() {
			return refuse(path, "allowlist: %s has bits beyond its length, %s is meant?", p, p.Masked())
		}
	}
	seen := map[string]bool{}
	for i := range f.Policies {
		p := &f.Policies[i]
		path := fmt.Sprintf("$.policies[%d].", i)
		if err := events.CheckName(p.Rule); err != nil {
			return refuse(path+"rule", "policies[%d]: rule: %w", i, err)
		}
		if seen[p.Rule] {
			return refuse(path+"rule", "policies[%d]: rule %s has a policy already", i, p.Rule)
		}
		seen[p.Rule] = true
		if p.Mode != "" {
			if err := checkMode("mode", p.Mode); err != nil {
				return refuse(path+"mode", "policy for %s: %w", p.Rule, err)
			}
		}
		if p.Action == "" {
			p.Action = ActionFlush
		}
		if p.Action != ActionFlush {
			return refuse(path+"action", "policy for %s: action: %q is not known, this version has %q", p.Rule, p.Action, ActionFlush)
		}
		if p.Where == "" {
			p.Where = WhereAlert
		}
		if !slices.Contains([]string{WhereAlert, WhereRealm}, p.Where) {
			return refuse(path+"where", "policy for %s: where: %q is neither %q nor %q", p.Rule, p.Where, WhereAlert, WhereRealm)
		}
		if p.Unanswered == "" {
			p.Unanswered = UnansweredRefuse
		}
		if !slices.Contains([]string{UnansweredRefuse, UnansweredDelete}, p.Unanswered) {
			return refuse(path+"unanswered", "policy for %s: unanswered: %q is neither %q nor %q", p.Rule, p.Unanswered, UnansweredRefuse, UnansweredDelete)
		}
	}
	return nil
}

func checkMode(key, mode string) error {
	switch mode {
	case Observe, Enforce:
		return nil
	case "approve":
		return fmt.Errorf("%s: approve needs approvals, which this version does not have; use %q or %q", key, Observe, Enforce)
	}
	return fmt.Errorf("%s: %q is neither %q nor %q", key, mode, Observe, Enforce)
}

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

// Decision is what to do about an alert.
type Decision struct {
	Outcome string // events.Outcome…
	Reason  string
	Mode    string
	Action  string
	Address netip.Prefix
	By      string
	// Unanswered: only entries without an answer are meant.
	Unanswered bool
	Firewalls  []string // fresh ones, to be commanded
	Away       []string // in scope, but not heard of lately or at all: cannot be commanded
}

// Engine applies a file and remembers the cool-downs. It is not safe for
// concurrent use.
type Engine struct {
	file     File
	policies map[string]Policy
	allow    *allowlist.List
	cooling  map[target]coolDown
	spent    map[act]spending // what was done within the last minute
}

// act is one decision to act upon an address.
type act struct {
	target
	Deed
}

// spending is one use of the budget. What is only simulated has one of its own: it
// shows what would have been done, and takes nothing from what is.
type spending struct {
	at        time.Time
	simulated bool
}

// target is what a cool-down is about. An address means nothing without its
// realm.
type target struct {
	realm   string
	address netip.Prefix
}

// Deed tells one decision to act from the next about the same address, as their
// records do.
type Deed struct {
	Alert string // id
	Time  int64  // when it was decided, Unix ms
}

type coolDown struct {
	until time.Time
	deed  Deed // that it is for
}

// New returns an engine for a validated file.
func New(f File) *Engine {
	e := &Engine{file: f, policies: map[string]Policy{}, allow: allowlist.New(allowlist.Prefixes("policy file", f.Allowlist...)...), cooling: map[target]coolDown{}, spent: map[act]spending{}}
	for _, p := range f.Policies {
		e.policies[p.Rule] = p
	}
	return e
}

// Decide judges one firing alert of the given age. ok is false when no policy
// concerns it, so that there is nothing to record. When the answer is yes, the
// cool-down of the address begins; see [Engine.Retract].
func (e *Engine) Decide(a *events.Alert, age time.Duration, now time.Time, known Known) (d Decision, ok bool) {
	p, ok := e.policies[a.Rule]
	if !ok || a.State != events.Firing {
		return d, false
	}
	d = Decision{Mode: e.file.Mode, Action: p.Action, By: events.BySrc, Unanswered: p.Unanswered == UnansweredDelete}
	if p.Mode != "" {
		d.Mode = p.Mode
	}
	decline := func(format string, args ...any) (Decision, bool) {
		d.Outcome, d.Reason = events.OutcomeDeclined, fmt.Sprintf(format, args...)
		return d, true
	}
	switch a.Track {
	case "by_src":
	case "by_dst":
		return decline("the address is the destination of the flows: the victim is not flushed")
	default:
		return decline("an alert about a table names no address to flush")
	}
	var err error
	if d.Address, err = events.ParsePrefix(a.Key); err != nil {
		return decline("the alert's key is no address: %v", err)
	}
	if age > e.file.MaxAge {
		return decline("the alert is %s old, at most %s is acted upon", age.Round(time.Second), e.file.MaxAge)
	}
	if a.Simulated {
		return decline("the alert is simulated")
	}
	if a.Value < a.Count {
		return decline("the value is under the threshold again")
	}
	if known.Allow == nil {
		return decline("the live allowlist is not known: %v", known.AllowError)
	}
	for _, list := range []*allowlist.List{e.allow, known.Allow} {
		if entry, listed := list.Covers(d.Address); listed {
			return decline("%s is on the allowlist: %s (%s)", d.Address, entry.Prefix, entry.Why)
		}
		if entry, listed := list.Within(d.Address); listed {
			return decline("%s contains %s, which is on the allowlist (%s)", d.Address, entry.Prefix, entry.Why)
		}
	}
	e.place(&d, a, p.Where, known.Fleet)
	if len(d.Firewalls) == 0 {
		return decline("none of the firewalls concerned can be reached")
	}
	for t, c := range e.cooling {
		if !now.Before(c.until) {
			delete(e.cooling, t)
		}
	}
	t := target{a.Realm, d.Address}
	if c, hot := e.cooling[t]; hot {
		return decline("%s was acted upon and is left alone for another %s", d.Address, c.until.Sub(now).Round(time.Second))
	}
	simulated, spent := d.Mode == Observe, 0
	for done, s := range e.spent {
		switch {
		case now.Sub(s.at) >= time.Minute:
			delete(e.spent, done)
		case s.simulated == simulated:
			spent++
		}
	}
	if n := e.file.Budget.AddressesPerMinute; n > 0 && spent >= n {
		return decline("the budget of %d addresses a minute is spent", n)
	}
	deed := Deed{a.ID, now.UnixMilli()}
	e.cooling[t] = coolDown{now.Add(e.file.CoolDown), deed}
	e.spent[act{t, deed}] = spending{now, simulated}
	d.Reason = a.Text
	d.Outcome = events.OutcomeCommanded
	if simulated {
		d.Outcome = events.OutcomeSimulated
	}
	return d, true
}

// place fills in the firewalls that are to be commanded: of the alert's realm,
// and, where the policy says so, only those that the alert names.
func (e *Engine) place(d *Decision, a *events.Alert, where string, fleet []Firewall) {
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

// Retract ends the cool-down that a deed began, and gives back what it spent, when
// nothing came of it: it could not be recorded, or no firewall carried it out. A
// later deed's stays.
func (e *Engine) Retract(realm string, address netip.Prefix, deed Deed) {
	t := target{realm, address}
	if e.cooling[t].deed == deed {
		delete(e.cooling, t)
	}
	delete(e.spent, act{t, deed})
}

// Acted tells that address was acted upon, by another responder or by this one
// before it was started again.
func (e *Engine) Acted(realm string, address netip.Prefix, deed Deed, at time.Time) {
	t := target{realm, address}
	e.spent[act{t, deed}] = spending{at: at}
	if until := at.Add(e.file.CoolDown); until.After(e.cooling[t].until) {
		e.cooling[t] = coolDown{until, deed}
	}
}

// CommandID is the id of the command that an alert causes on one firewall: two
// responders make the same one.
func CommandID(alert, firewall, action string) string {
	h := sha256.Sum256([]byte(alert + "\x00" + firewall + "\x00" + action))
	return hex.EncodeToString(h[:12])
}

package rule

import (
	"fmt"
	"slices"
	"time"
)

// An Adopted alert is one that fired before this engine existed.
type Adopted struct {
	ID      string
	Rule    string
	Subject Subject
	Value   float64
	Peak    float64
	Started int64 // ns
	Updated int64 // ns; when it was last reported
}

// Adopt takes over an alert that fires already: nothing is reported for it until
// its value changes or it is resolved. It returns an error where the rule is no
// more, or no longer fits the subject: nobody will resolve that alert then but the
// caller. An adopted alert takes the place of one that this engine has for the same
// subject.
func (e *Engine) Adopt(a Adopted) error {
	if a.Rule == Summary {
		if a.ID == "" {
			return fmt.Errorf("adopt alert: no id")
		}
		e.summary.id, e.summary.value, e.summary.last, e.summary.peak = a.ID, a.Value, a.Value, a.Peak
		e.summary.started, e.summary.reported = a.Started, a.Updated
		return nil
	}
	rule := slices.IndexFunc(e.rules, func(r Rule) bool { return r.Name == a.Rule })
	switch {
	case a.ID == "":
		return fmt.Errorf("adopt alert: no id")
	case rule < 0:
		return fmt.Errorf("adopt alert %s: no rule is named %s", a.ID, a.Rule)
	case !e.rules[rule].fits(a.Subject):
		return fmt.Errorf("adopt alert %s: rule %s no longer fits %s of %s", a.ID, a.Rule, a.Subject.Key, a.Subject.Scope())
	}
	key := stateKey{rule, a.Subject}
	if old := e.states[key]; old != nil {
		switch old.phase {
		case firing:
			e.firing--
		case held:
			e.held--
		}
	}
	e.states[key] = &state{
		stateKey: key, phase: firing, id: a.ID, value: a.Value, last: a.Value, peak: max(a.Peak, a.Value),
		started: a.Started, reported: a.Updated, under: unknown,
	}
	e.firing++
	return nil
}

// Hear takes note of what was made known of an alert, by another engine that judges the
// same or by this one. An alert that fires is reported again by whoever is first when it
// is due again, not by each; one that this engine does not have, or has under another
// id, it takes over; and one that is over is over here too. If its value is still over
// the threshold here after a while, it fires anew, as another alert.
//
// It returns the error of [Engine.Adopt] where an alert that fires cannot be taken over.
func (e *Engine) Hear(a Adopted, resolved bool) error {
	st := &e.summary
	if a.Rule != Summary {
		st = e.states[stateKey{slices.IndexFunc(e.rules, func(r Rule) bool { return r.Name == a.Rule }), a.Subject}]
	}
	same := st != nil && st.id == a.ID && a.ID != "" // a pending one has none yet
	switch {
	case resolved && !same:
		return nil
	case resolved && a.Rule == Summary:
		st.id = ""
		return nil
	case resolved:
		e.drop(st)
		if r := &e.rules[st.rule]; st.value >= r.Count {
			// Not at once: who ended it sees less than this engine, and would end it again.
			e.states[st.stateKey] = &state{stateKey: st.stateKey, value: st.value, started: e.now, under: unknown, notBefore: e.now + int64(max(r.Recover, settle))}
		}
		return nil
	case !same || st.phase == held:
		return e.Adopt(a)
	case a.Updated > st.reported:
		st.reported, st.last, st.peak = a.Updated, a.Value, max(st.peak, a.Peak)
	}
	return nil
}

// settle is how long an alert that another engine has ended does not fire here again, however
// short the rule's recover is: two that do not agree must not end and fire it at each tick.
const settle = 10 * time.Second

// drop forgets a firing or held alert of which nothing is to be said.
func (e *Engine) drop(st *state) {
	delete(e.states, st.stateKey)
	if st.phase == held {
		e.held--
	} else {
		e.firing--
	}
}

// fits says whether the rule, as it is now, judges a subject.
func (r *Rule) fits(s Subject) bool {
	if (r.Scope == Firewall) != (s.Firewall != "") {
		return false
	}
	if r.Track == Table || !s.Key.IsValid() {
		return r.Track == Table && !s.Key.IsValid()
	}
	bits := r.Prefix.IPv6
	if s.Key.Addr().Is4() {
		bits = r.Prefix.IPv4
	}
	return s.Key.Bits() == bits && !r.excepts(s.Key)
}

// Firing returns the alerts that fire now as they were last judged, in the order of
// rules and subjects, the summary last.
func (e *Engine) Firing() []Transition {
	var out []Transition
	for _, st := range e.sorted() {
		if st.phase == firing {
			out = append(out, e.show(&e.rules[st.rule], st))
		}
	}
	if e.summary.id != "" {
		out = append(out, e.show(&e.summaryOf, &e.summary))
	}
	return out
}

func (e *Engine) show(r *Rule, st *state) Transition {
	return Transition{
		Kind: Updated, ID: st.id, Rule: r, Subject: st.subject,
		Value: st.value, Peak: st.peak, Started: st.started, Updated: max(st.reported, st.started),
	}
}

// Forget drops what is known of the subjects that gone picks, a firewall that was
// removed from the fleet for instance, and returns the resolutions of those that
// fire.
func (e *Engine) Forget(gone func(Subject) bool, now int64) []Transition {
	e.advance(now)
	var out []Transition
	for _, st := range e.sorted() {
		switch {
		case !gone(st.subject):
		case st.phase == pending:
			delete(e.states, st.stateKey)
		default:
			out = e.resolve(out, st)
		}
	}
	return e.summarize(out)
}

// Stats of an engine.
type Stats struct {
	Pending, Firing, Held int
	Refused               uint64 // values over a threshold that were not followed, because tens of thousands were
}

// Stats returns how many subjects are in which state.
func (e *Engine) Stats() Stats {
	return Stats{Pending: len(e.states) - e.firing - e.held, Firing: e.firing, Held: e.held, Refused: e.refused}
}

package rule

import (
	"reflect"
	"slices"
)

// Change gives the engine other rules, as [NewEngine] takes them. Alerts of a rule of
// the same name that still counts the same thing of the same subject go on, and are
// judged by the new numbers from now on. All others are over: Change returns the
// resolutions of those that fired, which name the rules as they were.
func (e *Engine) Change(rules []Rule, maxFiring int, now int64) ([]Transition, error) {
	n, err := NewEngine(rules, maxFiring)
	if err != nil {
		return nil, err
	}
	e.advance(now)
	var out []Transition
	states := map[stateKey]*state{}
	for _, st := range e.sorted() {
		was := &e.rules[st.rule]
		i := slices.IndexFunc(n.rules, func(r Rule) bool { return r.Name == was.Name })
		if i < 0 || !n.rules[i].fits(st.subject) || !n.rules[i].countsAs(was) {
			if st.phase == pending {
				delete(e.states, st.stateKey)
			} else {
				out = e.resolve(out, st)
			}
			continue
		}
		st.rule = i
		states[st.stateKey] = st
	}
	e.rules, e.maxFiring, e.states = n.rules, n.maxFiring, states
	return e.summarize(out), nil
}

// countsAs reports whether the rule counts the same thing as another does: then
// values of the one may be judged by the other. Over how long is no matter.
func (r *Rule) countsAs(o *Rule) bool {
	return r.Track == o.Track && r.Metric == o.Metric && r.Combine == o.Combine &&
		r.Match.Protocol == o.Match.Protocol && slices.Equal(r.Match.DPort, o.Match.DPort)
}

// Difference says which rules, by name, are in now and were not in was, which are no
// more, and which have changed.
func Difference(was, now []Rule) (added, removed, changed []string) {
	find := func(in []Rule, name string) *Rule {
		if i := slices.IndexFunc(in, func(r Rule) bool { return r.Name == name }); i >= 0 {
			return &in[i]
		}
		return nil
	}
	for i := range now {
		switch old := find(was, now[i].Name); {
		case old == nil:
			added = append(added, now[i].Name)
		case !reflect.DeepEqual(*old, now[i]):
			changed = append(changed, now[i].Name)
		}
	}
	for i := range was {
		if find(now, was[i].Name) == nil {
			removed = append(removed, was[i].Name)
		}
	}
	return added, removed, changed
}

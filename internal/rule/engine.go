package rule

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// A Subject is whom a rule is judged for.
type Subject struct {
	Realm    string
	Firewall string       // "" for the fleet, that is: all firewalls of the realm
	Key      netip.Prefix // the zero Prefix for a table
}

// Scope returns the scope that alerts carry: a firewall, or what the fleet of this realm is called.
func (s Subject) Scope() string {
	if s.Firewall != "" {
		return s.Firewall
	}
	return events.RealmScope(s.Realm)
}

func (s Subject) compare(o Subject) int {
	return cmp.Or(cmp.Compare(s.Realm, o.Realm), cmp.Compare(s.Firewall, o.Firewall), s.Key.Addr().Compare(o.Key.Addr()), cmp.Compare(s.Key.Bits(), o.Key.Bits()))
}

// Kind says what a transition is.
type Kind uint8

// Kinds of transitions.
const (
	Fired    Kind = iota + 1
	Updated       // it fires on, and its value has changed a lot since it was last reported
	Resolved      // it fires no more
)

func (k Kind) String() string {
	switch k {
	case Fired:
		return "fired"
	case Updated:
		return "updated"
	case Resolved:
		return "resolved"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Transition is a step in the life of an alert. Times are those that the engine was given, in ns.
type Transition struct {
	Kind    Kind
	ID      string // the same for all transitions of one alert, and for all engines that see the same values at the same times
	Rule    *Rule  // not to be changed
	Subject Subject
	Value   float64 // at Updated; of a resolved alert the last one known
	Peak    float64 // the largest since Started
	Started int64   // when the threshold was crossed, or, with for, when it had been crossed for so long
	Updated int64
	// Before is when this alert was last reported, by this engine or another one that it
	// has heard of (see [Engine.Hear]); 0 at Fired. Who publishes it finds out by that
	// whether somebody else was first.
	Before int64
}

// Summary is the rule name of the one alert that stands for all that MaxFiring
// holds back. Its value is their number, its subject the fleet of the default
// realm.
const Summary = "max-firing"

const (
	// updateAfter is the least time between two reports of one alert.
	updateAfter = int64(time.Second)
	// An alert is reported again when its value is this many times what was
	// reported last, or the same part of it.
	updateRatio = 1.5
	// repeatAfter is when an address that is still over the threshold is
	// reported again: whoever acts on alerts may act again after a cool-down,
	// and ignores alerts older than half a minute.
	repeatAfter = int64(15 * time.Second)
	// maxStates bounds the memory of an engine.
	maxStates = 1 << 16
)

// Engine judges values. It belongs to one goroutine.
type Engine struct {
	rules     []Rule
	maxFiring int
	now       int64
	states    map[stateKey]*state
	firing    int
	held      int
	refused   uint64
	summary   state
	summaryOf Rule
}

type stateKey struct {
	rule    int
	subject Subject
}

type phase uint8

const (
	pending phase = iota // over, not long enough
	firing
	held // it would fire, but MaxFiring do
)

// A state is what is remembered of a subject that is over a threshold, or was until a moment ago.
type state struct {
	stateKey
	phase   phase
	id      string
	value   float64
	peak    float64
	started int64 // of pending: when it was first over; unknown after a gap
	// notBefore is when a pending one may fire at the earliest, where another engine has
	// ended the alert before it; 0: whenever.
	notBefore int64
	under     int64 // since when it has been under the clear threshold; unknown while it is not
	reported  int64
	last      float64 // the value reported last
}

// unknown is a time that is not known.
const unknown = int64(-1 << 63)

// NewEngine makes an engine for rules that are valid. At most maxFiring alerts fire at a time.
func NewEngine(rules []Rule, maxFiring int) (*Engine, error) {
	if maxFiring < 1 {
		return nil, fmt.Errorf("rule engine: max firing must be at least 1, not %d", maxFiring)
	}
	e := &Engine{rules: slices.Clone(rules), maxFiring: maxFiring, now: unknown, states: map[stateKey]*state{}}
	for i := range rules {
		if slices.ContainsFunc(rules[:i], func(r Rule) bool { return r.Name == rules[i].Name }) {
			return nil, fmt.Errorf("rule engine: two rules named %s", rules[i].Name)
		}
	}
	e.summaryOf = Default()
	e.summaryOf.Name, e.summaryOf.Count, e.summaryOf.Track, e.summaryOf.Metric = Summary, 1, Table, "held_back"
	e.summary = state{stateKey: stateKey{subject: Subject{Realm: events.RealmDefault}}, under: unknown}
	return e, nil
}

// Rules returns the rules, in the order by which [Engine.Observe] names them. They
// are not to be changed.
func (e *Engine) Rules() []Rule { return e.rules }

// Observe tells the value of a subject. It returns what follows: nothing mostly, a
// firing alert at once when the value reaches the threshold of a rule without for.
// rule is an index of [Engine.Rules]. A time before the last one given is taken as
// the last one.
func (e *Engine) Observe(rule int, s Subject, value float64, now int64) []Transition {
	e.advance(now)
	st := e.states[stateKey{rule, s}]
	if st == nil {
		r := &e.rules[rule]
		if !(value >= r.Count) || r.excepts(s.Key) {
			return nil
		}
		if len(e.states) >= maxStates {
			e.refused++
			return nil
		}
		st = &state{stateKey: stateKey{rule, s}, started: now, under: unknown}
		e.states[st.stateKey] = st
	}
	return e.summarize(e.judge(nil, st, value))
}

// Tick lets time pass: it asks lookup for the value of each subject that is pending
// or firing, and returns what follows, in the order of rules and subjects. A value
// that is not known changes nothing, and what must have lasted a time begins anew
// after it.
func (e *Engine) Tick(now int64, lookup func(rule int, s Subject) (value float64, known bool)) []Transition {
	e.advance(now)
	states := e.sorted()
	var out []Transition
	for _, st := range states {
		if value, known := lookup(st.rule, st.subject); known {
			out = e.judge(out, st, value)
		} else {
			st.under = unknown
			if st.phase == pending {
				st.started = unknown
			}
		}
	}
	return e.summarize(e.release(out, states))
}

// sorted returns all states in the order of rules and subjects.
func (e *Engine) sorted() []*state {
	states := make([]*state, 0, len(e.states))
	for _, st := range e.states {
		states = append(states, st)
	}
	slices.SortFunc(states, func(a, b *state) int {
		return cmp.Or(cmp.Compare(a.rule, b.rule), a.subject.compare(b.subject))
	})
	return states
}

func (e *Engine) advance(now int64) { e.now = max(e.now, now) }

// judge takes a state to where the value leads, and appends what that makes known.
func (e *Engine) judge(out []Transition, st *state, value float64) []Transition {
	r := &e.rules[st.rule]
	st.value = value
	st.peak = max(st.peak, value)
	if st.phase == pending {
		if !(value >= r.Count) {
			delete(e.states, st.stateKey)
			return out
		}
		if st.started == unknown {
			st.started = e.now
		}
		if e.now-st.started < int64(r.For) || e.now < st.notBefore {
			return out
		}
		return e.fire(out, st)
	}
	switch {
	case !(value < r.ClearRatio*r.Count):
		st.under = unknown
	case st.under == unknown:
		st.under = e.now
	}
	if st.under != unknown && e.now-st.under >= int64(r.Recover) {
		return e.resolve(out, st)
	}
	changed := value >= st.last*updateRatio || value <= st.last/updateRatio
	lasting := r.Track != Table && value >= r.Count && e.now-st.reported >= repeatAfter
	if st.phase == firing && e.now-st.reported >= updateAfter && changed || st.phase == firing && lasting {
		out = append(out, e.report(Updated, r, st))
	}
	return out
}

// fire makes a pending or held alert a firing one, or a held one if too many fire.
func (e *Engine) fire(out []Transition, st *state) []Transition {
	if st.phase == pending {
		// Since the crossing, and not since we noticed: two engines that see
		// the same batches make the same id, whatever ticks came between.
		st.started += int64(e.rules[st.rule].For)
		st.id = id(e.rules[st.rule].Name, st.subject, st.started)
	}
	if e.firing >= e.maxFiring {
		if st.phase != held {
			st.phase = held
			e.held++
		}
		return out
	}
	if st.phase == held {
		e.held--
	}
	st.phase = firing
	e.firing++
	return append(out, e.report(Fired, &e.rules[st.rule], st))
}

func (e *Engine) resolve(out []Transition, st *state) []Transition {
	delete(e.states, st.stateKey)
	if st.phase == held {
		e.held-- // nobody has heard of it
		return out
	}
	e.firing--
	return append(out, e.report(Resolved, &e.rules[st.rule], st))
}

// release lets held alerts fire where there is room again, the oldest first.
func (e *Engine) release(out []Transition, states []*state) []Transition {
	room := e.maxFiring - e.firing
	if room <= 0 || e.held == 0 {
		return out
	}
	var waiting []*state
	for _, st := range states {
		if st.phase == held && e.states[st.stateKey] == st && st.under == unknown {
			waiting = append(waiting, st)
		}
	}
	slices.SortStableFunc(waiting, func(a, b *state) int { return cmp.Compare(a.started, b.started) })
	for _, st := range waiting[:min(room, len(waiting))] {
		out = e.fire(out, st)
	}
	return out
}

// summarize appends what is to be said of the alerts that are held back.
func (e *Engine) summarize(out []Transition) []Transition {
	st := &e.summary
	st.value = float64(e.held)
	st.peak = max(st.peak, st.value)
	switch {
	case e.held > 0:
		st.under = unknown
	case st.under == unknown:
		st.under = e.now
	}
	switch active := st.id != ""; {
	case !active && e.held > 0:
		st.started, st.peak = e.now, st.value
		st.id = id(Summary, st.subject, e.now)
		out = append(out, e.report(Fired, &e.summaryOf, st))
	case active && e.held == 0 && e.now-st.under >= int64(e.summaryOf.Recover):
		out = append(out, e.report(Resolved, &e.summaryOf, st))
		st.id = ""
	case active && st.value != st.last && e.now-st.reported >= updateAfter:
		out = append(out, e.report(Updated, &e.summaryOf, st))
	}
	return out
}

func (e *Engine) report(k Kind, r *Rule, st *state) Transition {
	t := Transition{
		Kind: k, ID: st.id, Rule: r, Subject: st.subject,
		Value: st.value, Peak: st.peak, Started: st.started, Updated: e.now, Before: st.reported,
	}
	if k == Fired {
		t.Before = 0
	}
	st.reported, st.last = e.now, st.value
	return t
}

// id names an alert by what it is about and when it began.
func id(rule string, s Subject, started int64) string {
	h := sha256.New()
	for _, part := range []string{rule, s.Realm, s.Scope(), s.Key.String()} {
		h.Write(binary.BigEndian.AppendUint32(nil, uint32(len(part))))
		h.Write([]byte(part))
	}
	h.Write(binary.BigEndian.AppendUint64(nil, uint64(started)))
	return hex.EncodeToString(h.Sum(nil)[:12])
}

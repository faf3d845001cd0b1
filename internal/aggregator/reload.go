package aggregator

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Reload reads the rules file again, and returns what puts it in force; an error says
// what is wrong with it, and changes nothing.
//
// It is in force between two batches. What the rules before counted too goes on, with
// its history and its alerts; what is new begins, partial, and alerts of what is no
// more are resolved. Counting stands still meanwhile, for less than half a second for
// each million keys of a table.
func (a *Aggregator) Reload() (apply func(context.Context), err error) {
	file, err := a.opt.Load()
	if err != nil {
		return nil, fmt.Errorf("--rules: %w", err)
	}
	// A core of its own, which will never count, finds out whether they can be.
	next, err := newCore(slices.Concat(file.Rules, alarms), file.MaxFiring, a.opt.MaxKeys)
	if err != nil {
		return nil, fmt.Errorf("--rules: %s: %w", a.opt.Rules, err)
	}
	return func(context.Context) { a.apply(file, &next) }, nil
}

func (a *Aggregator) apply(file rule.File, next *core) {
	a.mu.Lock()
	defer a.mu.Unlock()
	began := time.Now()
	was := a.rules
	if file.Digest == was.Digest {
		a.log.Info("the rules are as they were", "digest", file.Digest)
		return
	}
	rules := slices.Clone(next.engine.Rules())
	over, err := a.engine.Change(rules, file.MaxFiring, a.counter.Now())
	if err == nil {
		// They are described by what they were judged by, which is about to go.
		a.publishOver(over, rules)
		err = a.counter.Become(next.counter)
	}
	if err != nil {
		// Both were tried before, on the core that never counted.
		a.log.Error("the rules cannot be changed as a whole: restart this aggregator", "error", err)
		return
	}
	a.windows, a.levels, a.rules = next.windows, next.levels, file
	added, removed, changed := rule.Difference(was.Rules, file.Rules)
	a.log.Info("other rules are in force", "before", was.Digest, "after", file.Digest, "added", added, "removed", removed, "changed", changed,
		"windows", a.windows, "took", time.Since(began))
	if a.live {
		// What is over a new threshold already crosses it now.
		a.judge(a.counter.Review())
	}
	a.recordReload(&events.Act{
		Verb: events.VerbReload, What: whatChanged(was.Digest, file.Digest, added, removed, changed),
		Before: was.Digest, After: file.Digest, Reason: "SIGHUP", Time: a.clock.At(time.Now()).UnixMilli(),
	})
}

// publishOver resolves the alerts of rules that are no more, or count something else.
func (a *Aggregator) publishOver(over []rule.Transition, rules []rule.Rule) {
	for i := range over {
		al := a.alert(&over[i])
		if over[i].Kind != rule.Resolved || al.Rule == rule.Summary {
			a.send(al, over[i].Before/1e6) // fewer are held back now
			continue
		}
		al.Text = al.Rule + ": the rule is no more"
		if slices.ContainsFunc(rules, func(r rule.Rule) bool { return r.Name == al.Rule }) {
			al.Text = al.Rule + ": the rule counts something else now"
		}
		a.send(al, over[i].Before/1e6)
	}
}

// whatChanged says in words how rules differ.
func whatChanged(before, after string, added, removed, changed []string) string {
	var s strings.Builder
	fmt.Fprintf(&s, "the aggregator on %s: rules %s instead of %s", hostName(), cmp.Or(after, "none"), cmp.Or(before, "none"))
	for _, part := range []struct {
		word  string
		names []string
	}{{"added", added}, {"removed", removed}, {"changed", changed}} {
		if n := len(part.names); n > 0 {
			names := part.names[:min(n, 4)] // a text has room for so many of the longest
			fmt.Fprintf(&s, ", %s %s", part.word, strings.Join(names, " "))
			if n > len(names) {
				fmt.Fprintf(&s, " and %d more", n-len(names))
			}
		}
	}
	return s.String()
}

func hostName() string {
	host, _ := os.Hostname() // an empty name is fine
	return cmp.Or(host, "an unnamed host")
}

// recordReload keeps in the audit what was changed.
func (a *Aggregator) recordReload(act *events.Act) {
	subject := events.AuditSubject(events.ActorAggregator, act.Verb)
	// An id that nobody can guess: see the producer's records.
	if err := a.outbox.Put(subject, rand.Text(), subject, act); err != nil {
		a.log.Error("cannot record a reload", "what", act.What, "error", err)
	}
}

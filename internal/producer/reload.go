package producer

import (
	"context"
	"crypto/rand"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode"

	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// guardLimits are the options that can be changed while it runs; of all others a change
// needs a restart.
func (o *Options) guardLimits() guard.Limits {
	return guard.Limits{Protect: o.Protect, MinLocal: o.MinLocal, PerMinute: o.PerMinute}
}

// Reload reads the trust file and the flags again, and returns what puts them in force,
// between two commands; an error says what is wrong, and changes nothing.
func (p *Producer) Reload() (apply func(context.Context), err error) {
	now := p.options()
	next := now
	if p.deps.Options != nil {
		if next, err = p.deps.Options(); err != nil {
			return nil, err
		}
		if err := next.Validate(); err != nil {
			return nil, err
		}
	}
	trusted, digest, err := p.trust.Read()
	if err != nil {
		return nil, fmt.Errorf("--trust: %w", err)
	}
	// Of what needs a restart nothing is taken over: what runs is what health says.
	inForce := now
	inForce.Protect, inForce.MinLocal, inForce.PerMinute = next.Protect, next.MinLocal, next.PerMinute
	waiting := differing(&inForce, &next)
	return func(context.Context) {
		p.acting.Lock() // not in the midst of a command
		others := digest != p.trust.Digest()
		trusted()
		p.guard.Limit(inForce.guardLimits())
		p.acting.Unlock()
		if others {
			p.allow.Again() // other entries are believed now
		}
		changed := differing(&now, &inForce)
		before := p.config.Load()
		p.current.Store(&inForce)
		after := inForce.digest(digest)
		p.config.Store(&after)
		if len(waiting) > 0 {
			p.log.Warn("flags have changed that a reload does not change", "flags", waiting, "remedy", "restart the producer")
		}
		if *before == after {
			p.log.Info("flags and trust file are as they were", "config", after)
			return
		}
		what := fmt.Sprintf("the producer of %s: configuration %s instead of %s: trusts %s", p.opt.Name, after, *before, p.trust)
		if len(changed) > 0 {
			what += ", changed: --" + strings.Join(changed, " --")
		}
		if p.input == nil {
			p.preflight() // who is trusted is part of it
		}
		p.log.Info("another configuration is in force", "before", *before, "after", after, "trusts", p.trust.String(), "changed", changed)
		p.recordAct(&events.Act{Verb: events.VerbReload, What: what, Before: *before, After: after, Reason: "SIGHUP", Time: time.Now().UnixMilli()})
	}, nil
}

// options are those in force.
func (p *Producer) options() Options { return *p.current.Load() }

// recordAct hands an act to recordLoop.
func (p *Producer) recordAct(a *events.Act) {
	p.enqueue(record{subject: events.AuditSubject(p.opt.Name, a.Verb), id: rand.Text(), message: a})
}

// differing names the flags in which two configurations differ.
func differing(a, b *Options) (flags []string) {
	x, y := reflect.ValueOf(*a), reflect.ValueOf(*b)
	for i := range x.NumField() {
		if !reflect.DeepEqual(x.Field(i).Interface(), y.Field(i).Interface()) {
			flags = append(flags, flagName(x.Type().Field(i)))
		}
	}
	return flags
}

// flagName is what kong makes of a field.
func flagName(f reflect.StructField) string {
	if name := f.Tag.Get("name"); name != "" {
		return name
	}
	var out strings.Builder
	for i, r := range f.Name {
		if unicode.IsUpper(r) && i > 0 {
			out.WriteByte('-')
		}
		out.WriteRune(unicode.ToLower(r))
	}
	return out.String()
}

package producer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ServiceName is the micro service of all producers.
const ServiceName = "ct-producer"

// flushTime bounds one flush: a full dump of a million entries takes 2 s.
const flushTime = 30 * time.Second

// residualAfter is when we look again what a flush left or what came back.
const residualAfter = 2 * time.Second

func (p *Producer) serve() (stop func(), err error) {
	subject := func(verb string) string { return events.CommandSubject(p.opt.Name, verb) }
	return p.conn.Serve(bus.Service{
		Name:        ServiceName,
		Description: "ctfleet producer: one firewall's connection table",
		Metadata:    map[string]string{"firewall": p.opt.Name, "realm": p.opt.Realm, "version": daemon.ProgramVersion(), "site": p.opt.Label["site"]},
		Stats:       func() any { return p.Stream() },
		Endpoints: []bus.Endpoint{
			{Name: events.VerbFlush, Subject: subject(events.VerbFlush), Handle: p.handleFlush},
			{Name: events.VerbResync, Subject: subject(events.VerbResync), Handle: p.handleResync},
			{Name: events.VerbStatus, Subject: subject(events.VerbStatus), Handle: func(bus.Request) (events.Message, error) { return p.health(false), nil }},
		},
	})
}

// command decodes a command and checks that it belongs on the subject that it
// came on.
func (p *Producer) command(req bus.Request, verb string) (*events.Command, error) {
	var c events.Command
	if err := events.Unmarshal(req.Data, &c); err != nil {
		p.refuse("command", events.CommandSubject(p.opt.Name, verb), err)
		return nil, &bus.RequestError{Err: err}
	}
	if c.Verb != verb {
		return nil, &bus.RequestError{Err: fmt.Errorf("a command to %s came on the subject of %s", c.Verb, verb)}
	}
	return &c, nil
}

// handleResync grants a dump to whoever asks; resyncLoop spaces them.
func (p *Producer) handleResync(req bus.Request) (events.Message, error) {
	c, err := p.command(req, events.VerbResync)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	epoch := p.epoch
	p.mu.Unlock()
	reason := c.Actor + " asked"
	if c.Reason != "" {
		reason += ": " + c.Reason
	}
	p.requestResync(reason)
	return &events.ResyncReply{Firewall: p.opt.Name, Accepted: true, Epoch: epoch}, nil
}

// handleFlush judges a command, carries it out and answers with the receipt,
// which is also recorded in the audit stream.
func (p *Producer) handleFlush(req bus.Request) (events.Message, error) {
	c, err := p.command(req, events.VerbFlush)
	if err != nil {
		return nil, err
	}
	p.flushing.Lock()
	defer p.flushing.Unlock()
	r, match := p.flush(req, c)
	for _, f := range r.Refused {
		p.metrics.refusals.WithLabelValues(f.Reason).Add(float64(max(f.Count, 1)))
	}
	p.metrics.flushed.Add(float64(r.Deleted))
	p.log.Info("flush", "id", r.ID, "actor", r.Actor, "addresses", r.Addresses, "by", r.By, "dry_run", r.DryRun,
		"matched", r.Matched, "deleted", r.Deleted, "gone", r.Gone, "refused", r.Refused, "error", r.Error, "ms", r.DurationMS)
	p.record(r, events.VerbFlush)
	if r.Error == "" && r.Deleted > 0 {
		receipt := *r // r itself is the answer now
		p.later.Go(func() { p.residual(receipt, match) })
	}
	return r, nil
}

// flush returns the receipt and, when the command was allowed, what it matched.
func (p *Producer) flush(req bus.Request, c *events.Command) (r *events.Receipt, m conntrack.Match) {
	r = &events.Receipt{
		ID: c.ID, Firewall: p.opt.Name, Verb: c.Verb, Actor: c.Actor, Reason: c.Reason, Alert: c.Alert, Rule: c.Rule,
		Addresses: c.Addresses, By: c.By, DryRun: c.DryRun, Unanswered: c.Unanswered, Time: time.Now().UnixMilli(), Refused: []events.Refusal{},
	}
	if s := p.sysctls.Load(); s != nil && s.TCPLoose != nil {
		r.TCPLoose = *s.TCPLoose != 0
	}
	verdict := p.guard.Identify(c, guard.Sealed{Seal: req.Seal, Subject: req.Subject, Body: req.Data})
	r.Actor, r.Who = verdict.Actor, verdict.Who
	if !c.DryRun && verdict.Allowed() {
		// Who has logged in since the list was made is protected, too.
		if err := p.protectSessions(); err != nil {
			r.Refused, r.Error = append(r.Refused, events.Refusal{Reason: guard.NotReady}), err.Error()
			return r, m
		}
	}
	verdict, prefixes := p.guard.Check(verdict, c, conntrack.Monotonic())
	if !verdict.Allowed() {
		r.Refused, r.Error = append(r.Refused, events.Refusal{Reason: verdict.Reason}), verdict.Text
		return r, m
	}
	m = conntrack.Match{Prefixes: prefixes, By: c.By, Zone: verdict.Zone, Unanswered: c.Unanswered}
	ctx, cancel := context.WithTimeout(p.life, flushTime)
	defer cancel()
	conn, err := conntrack.Dial(p.ns)
	if err != nil {
		r.Error = err.Error()
		return r, m
	}
	defer conn.Close()
	before, err := conn.State()
	if err != nil {
		r.Error = err.Error()
		return r, m
	}
	r.TableBefore = before.Count
	var claim conntrack.Claim
	claim.Least, claim.Answered = p.guard.Claim(verdict, c)
	res, err := conn.Flush(ctx, m, conntrack.FlushOptions{
		DryRun: c.DryRun,
		Claim:  claim,
		Keep:   p.guard.Keep(verdict, c.By),
		// A flush must not lose its own DESTROY events.
		Pressure: p.reader.Pressure,
	})
	r.Matched, r.Deleted, r.Gone = res.Matched, res.Deleted, res.Gone
	r.DurationMS = float64(res.Duration.Microseconds()) / 1000
	for reason, n := range res.Refused {
		r.Refused = append(r.Refused, events.Refusal{Reason: reason, Count: n})
	}
	slices.SortFunc(r.Refused, func(a, b events.Refusal) int { return int(b.Count) - int(a.Count) })
	if err != nil && p.life.Err() != nil {
		err = errStopping
	}
	if err != nil {
		r.Error = err.Error()
	}
	if after, err := conn.State(); err == nil {
		r.TableAfter = after.Count
	}
	return r, m
}

// errStopping is why a flush ends early.
var errStopping = errors.New("the producer is stopping")

// endFlush waits for a flush that is under way and ends it when its time is
// over: either way there is a receipt of what was deleted. None begins after it.
func (p *Producer) endFlush(deadline time.Time) {
	defer time.AfterFunc(time.Until(deadline), p.end).Stop()
	p.flushing.Lock()
	defer p.flushing.Unlock()
	p.end()
}

// residual counts what matches again a moment later and records it under the
// same id: with tcp_loose=1 a routed TCP connection is back with its next packet.
func (p *Producer) residual(r events.Receipt, m conntrack.Match) {
	if !daemon.Sleep(p.life, residualAfter) {
		return
	}
	ctx, cancel := context.WithTimeout(p.life, flushTime)
	defer cancel()
	conn, err := conntrack.Dial(p.ns)
	if err != nil {
		p.log.Warn("cannot measure the residual", "id", r.ID, "error", err)
		return
	}
	defer conn.Close()
	res, err := conn.Flush(ctx, m, conntrack.FlushOptions{DryRun: true})
	if err != nil {
		p.log.Warn("cannot measure the residual", "id", r.ID, "error", err)
		return
	}
	r.Residual = &res.Matched
	r.Time = time.Now().UnixMilli()
	p.record(&r, events.VerbResidual)
}

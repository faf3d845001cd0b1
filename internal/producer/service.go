package producer

import (
	"fmt"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ServiceName is the micro service of all producers.
const ServiceName = "ct-producer"

func (p *Producer) serve() (stop func(), err error) {
	endpoint := func(verb string, handle func(bus.Request) (events.Message, error)) bus.Endpoint {
		return bus.Endpoint{Name: verb, Subject: events.CommandSubject(p.opt.Name, verb), Handle: handle}
	}
	return p.conn.Serve(bus.Service{
		Name:        ServiceName,
		Description: "ctfleet producer: one firewall's connection table",
		Metadata:    map[string]string{"firewall": p.opt.Name, "realm": p.opt.Realm, "version": daemon.ProgramVersion(), "site": p.opt.Label["site"]},
		Stats:       func() any { return p.Stream() },
		Endpoints: []bus.Endpoint{
			endpoint(events.VerbFlush, p.deed(events.VerbFlush, p.flush)),
			endpoint(events.VerbBlock, p.deed(events.VerbBlock, p.block)),
			endpoint(events.VerbUnblock, p.deed(events.VerbUnblock, p.unblock)),
			endpoint(events.VerbResync, p.handleResync),
			endpoint(events.VerbStatus, func(bus.Request) (events.Message, error) { return p.status(), nil }),
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
	if p.input != nil {
		return &events.ResyncReply{Firewall: p.opt.Name, Reason: errNoTable.Error(), Epoch: epoch}, nil
	}
	reason := c.Actor + " asked"
	if c.Reason != "" {
		reason += ": " + c.Reason
	}
	p.requestResync(reason)
	return &events.ResyncReply{Firewall: p.opt.Name, Accepted: true, Epoch: epoch}, nil
}

// deed handles commands that change something, one at a time whatever their verb:
// do judges one, carries it out and returns its receipt, which is the answer and
// is also recorded in the audit stream. What do says that it has matched is
// counted again later.
func (p *Producer) deed(verb string, do func(bus.Request, *events.Command) (*events.Receipt, conntrack.Match)) func(bus.Request) (events.Message, error) {
	return func(req bus.Request) (events.Message, error) {
		c, err := p.command(req, verb)
		if err != nil {
			return nil, err
		}
		p.acting.Lock()
		defer p.acting.Unlock()
		r, match := do(req, c)
		for _, f := range r.Refused {
			p.metrics.refusals.WithLabelValues(f.Reason).Add(float64(max(f.Count, 1)))
		}
		p.metrics.flushed.Add(float64(r.Deleted))
		said := []any{
			"id", r.ID, "actor", r.Actor, "who", r.Who, "addresses", r.Addresses, "by", r.By, "dry_run", r.DryRun,
			"matched", r.Matched, "deleted", r.Deleted, "gone", r.Gone, "refused", r.Refused, "error", r.Error, "ms", r.DurationMS,
		}
		switch verb {
		case events.VerbBlock:
			said = append(said, "block_s", c.BlockS, "blocked", r.BlockedUntil != nil)
		case events.VerbUnblock:
			said = append(said, "unblocked", r.Unblocked)
		}
		p.log.Info(verb, said...)
		p.record(r, verb)
		if r.Error == "" && r.Deleted > 0 {
			receipt := *r // r itself is the answer now
			p.later.Go(func() { p.residual(receipt, match) })
		}
		return r, nil
	}
}

// judge asks the guard. The receipt says whose command it was, and what was refused
// if it was; with neither Refused nor Error it may be carried out.
func (p *Producer) judge(req bus.Request, c *events.Command) (*events.Receipt, guard.Verdict, conntrack.Match) {
	r := &events.Receipt{
		ID: c.ID, Firewall: p.opt.Name, Verb: c.Verb, Actor: c.Actor, Reason: c.Reason, Alert: c.Alert, Rule: c.Rule,
		Addresses: c.Addresses, By: c.By, DryRun: c.DryRun, Unanswered: c.Unanswered, Towards: c.Towards, Most: c.Most,
		Time: time.Now().UnixMilli(), Refused: []events.Refusal{},
	}
	if s := p.sysctls.Load(); s != nil && s.TCPLoose != nil {
		r.TCPLoose = *s.TCPLoose != 0
	}
	if p.input != nil { // nor is there anything that a dry run could look at
		r.Refused, r.Error = append(r.Refused, events.Refusal{Reason: guard.NotEnabled}), errNoTable.Error()
		return r, guard.Verdict{Reason: guard.NotEnabled}, conntrack.Match{}
	}
	verdict := p.guard.Identify(c, guard.Sealed{Seal: req.Seal, Subject: req.Subject, Body: req.Data})
	r.Actor, r.Who = verdict.Actor, verdict.Who
	if !c.DryRun && c.Verb != events.VerbUnblock && verdict.Allowed() {
		// Who has logged in since the list was made is protected, too.
		if err := p.protectSessions(); err != nil {
			verdict.Reason, verdict.Text = guard.NotReady, err.Error()
		}
	}
	verdict, prefixes := p.guard.Check(verdict, c, conntrack.Monotonic())
	m := conntrack.Match{Prefixes: prefixes, By: c.By, Zone: verdict.Zone, Unanswered: c.Unanswered}
	if !verdict.Allowed() {
		r.Refused, r.Error = append(r.Refused, events.Refusal{Reason: verdict.Reason}), verdict.Text
		return r, verdict, m
	}
	m.Towards, _ = c.TowardsPrefix() // the guard has read it
	if p.life.Err() != nil {
		// It waited for another one, which the producer's stop has ended.
		r.Error = errStopping.Error()
	}
	return r, verdict, m
}

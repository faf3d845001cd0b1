package responder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// pending is a proposal and what was said to it.
type pending struct {
	proposal events.Proposal
	digest   string
	answer   *events.Answer
	who      string // whose answer it is
}

// ask proposes a decision to a person. Proposed twice, it is one proposal.
func (r *Responder) ask(ctx context.Context, d *events.Decision, text string) error {
	p := &events.Proposal{Decision: *d, Text: short(text), Expires: r.now().Add(r.engine.Load().ApproveWithin()).UnixMilli()}
	_, err := r.putOnce(ctx, events.ProposalKey(d.ID, events.KeyRequest), p)
	return err
}

// putOnce sets the value of a key that no responder has set, and reports whether it
// was us. What somebody else has put there is in nobody's way.
func (r *Responder) putOnce(ctx context.Context, key string, v events.Message) (bool, error) {
	rev := uint64(0)
	for try := 0; ; try++ {
		_, err := r.conn.Update(ctx, r.signer, bus.BucketApprovals, key, v, rev)
		if !errors.Is(err, bus.ErrChanged) || try == ledgerTries {
			return err == nil, err
		}
		m, err := r.conn.Value(ctx, bus.BucketApprovals, key)
		if err != nil || m.Seq > 0 && r.believes(m) == nil {
			return false, err
		}
		rev = m.Seq
	}
}

// beginApprovals forgets the proposals: all are about to be told anew.
func (r *Responder) beginApprovals() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pending = map[string]*pending{}
}

// approval takes a value of the bucket CT_APPROVALS.
func (r *Responder) approval(m bus.Msg) {
	id, kind, _ := strings.Cut(bus.BucketKey(bus.BucketApprovals, m.Subject), ".")
	var err error
	switch kind {
	case events.KeyRequest:
		err = r.takeProposal(id, m)
	case events.KeyAnswer:
		err = r.takeAnswer(id, m)
	case events.KeyOutcome:
		if err = r.believes(m); err == nil {
			r.drop(id)
		}
	}
	if err != nil {
		r.refuse("approval", m.Subject, err)
	}
	select {
	case r.answered <- struct{}{}:
	default:
	}
}

// takeProposal notes what one of the responders has proposed.
func (r *Responder) takeProposal(id string, m bus.Msg) error {
	p := &pending{digest: events.ProposalDigest(m.Data)}
	err := r.believes(m)
	if err == nil {
		err = events.Unmarshal(m.Data, &p.proposal)
	}
	if err == nil && p.proposal.Decision.ID != id {
		err = fmt.Errorf("it is about %s", p.proposal.Decision.ID)
	}
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.pending[id] = p
	r.mu.Unlock()
	return nil
}

// takeAnswer notes what a person says, if it is one who may.
func (r *Responder) takeAnswer(id string, m bus.Msg) error {
	a := &events.Answer{}
	if err := events.Unmarshal(m.Data, a); err != nil {
		return err
	}
	party, err := r.trust.Verify(m.Seal, seal.VerbApprove, m.Subject, m.Data)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.pending[id]
	if p == nil {
		return nil // it is dealt with
	}
	if a.ID != id || a.Digest != p.digest {
		return errors.New("it answers another proposal than the one that stands here")
	}
	if p.answer != nil && a.Time < p.answer.Time {
		return errors.New("it is older than the answer that is known")
	}
	p.answer, p.who = a, party.Name
	return nil
}

// approvalsEvery is how often it is looked whether the time of a proposal is over.
const approvalsEvery = 500 * time.Millisecond

// approvals deals with proposals that were answered, or whose time is over, until
// ctx ends.
func (r *Responder) approvals(ctx, sending context.Context) error {
	tick := time.NewTicker(approvalsEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.answered:
		}
		if r.proposals.Current() != nil {
			continue // an answer, or somebody else's outcome, may be on its way
		}
		for id, p := range r.due() {
			if err := r.conclude(ctx, sending, id, p); err != nil {
				r.throttle.Warn(r.log, "cannot deal with an approval, retrying", "id", id, "error", err)
			}
		}
	}
}

// due returns the proposals that need not wait any more.
func (r *Responder) due() map[string]*pending {
	now := r.proposals.Now().UnixMilli()
	r.mu.Lock()
	defer r.mu.Unlock()
	out := map[string]*pending{}
	for id, p := range r.pending {
		if p.answer != nil || now >= p.proposal.Expires {
			out[id] = p
		}
	}
	return out
}

// conclude does what was approved, and records what became of a proposal. Of several
// responders one does.
func (r *Responder) conclude(ctx, sending context.Context, id string, p *pending) error {
	r.changing.RLock()
	defer r.changing.RUnlock()
	r.mu.Lock()
	rec, answer, who := p.proposal.Decision, p.answer, p.who
	r.mu.Unlock()
	rec.Who, rec.Time = who, time.Now().UnixMilli()
	switch {
	case r.proposals.Now().UnixMilli() >= p.proposal.Expires:
		rec.Outcome, rec.Who, rec.Reason = events.OutcomeExpired, "", short("nobody approved it in time: "+rec.Reason)
	case answer == nil:
		return nil // the server's clock was set back
	case !answer.Approve:
		rec.Outcome, rec.Reason = events.OutcomeDenied, short(answer.Reason)
	default:
		rec.Outcome = events.OutcomeCommanded
		if r.place(&rec); len(rec.Firewalls) == 0 {
			return errors.New("none of the firewalls concerned can be reached") // until its time is over
		}
		if err := r.resume(ctx, &rec); errors.Is(err, policy.ErrNot) {
			rec.Outcome, rec.Reason = events.OutcomeDeclined, short("approved, but "+err.Error())
		} else if err != nil {
			return err
		}
	}
	commands := r.commands(&rec)
	// First the record, then the deed. Recorded by two, it is kept once; which of them
	// does it is decided by the outcome.
	if err := r.record(ctx, &rec); err != nil {
		return err
	}
	outcome := &events.Outcome{ID: id, Outcome: rec.Outcome, Who: rec.Who, Time: rec.Time}
	ours, err := r.putOnce(ctx, events.ProposalKey(id, events.KeyOutcome), outcome)
	if err != nil {
		return err
	}
	r.drop(id)
	if ours && rec.Outcome == events.OutcomeCommanded {
		r.sending.Go(func() { r.carryOut(sending, &rec, commands) })
	}
	return nil
}

func (r *Responder) drop(id string) {
	r.mu.Lock()
	delete(r.pending, id)
	r.mu.Unlock()
}

// resume charges a decision that has waited to the ledger, as of now. It fails with
// policy.ErrNot when it must not be carried out any more.
func (r *Responder) resume(ctx context.Context, rec *events.Decision) error {
	d, err := deed(rec)
	if err != nil {
		return err // it was never in the ledger
	}
	known := policy.Known{}
	known.Allow, known.AllowError = r.allow.List(rec.Realm)
	var not error
	err = r.changeLedger(ctx, func(l *events.Ledger) bool {
		not = r.engine.Load().Resume(d, rec.Rule, l, known, r.now())
		return not == nil
	})
	return errors.Join(not, err)
}

// place keeps of a decision's firewalls those that can be commanded now, and says
// which cannot.
func (r *Responder) place(rec *events.Decision) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var fresh, away []string
	for _, name := range rec.Firewalls {
		if r.fleet[name].fresh() {
			fresh = append(fresh, name)
		} else {
			away = append(away, name)
		}
	}
	rec.Firewalls, rec.Reason = fresh, without(rec.Reason, away)
	nameCommands(rec)
}

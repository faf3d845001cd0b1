package responder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
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
	p := &events.Proposal{Decision: *d, Text: short(text), Expires: r.now().Add(r.engine.ApproveWithin()).UnixMilli()}
	_, err := r.conn.Update(ctx, r.signer, bus.BucketApprovals, events.ProposalKey(d.ID, events.KeyRequest), p, 0)
	if errors.Is(err, bus.ErrChanged) {
		return nil
	}
	return err
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
		r.mu.Lock()
		delete(r.pending, id)
		r.mu.Unlock()
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
	p := &pending{digest: digest(m.Data)}
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
	p.answer, p.who = a, party.Name
	return nil
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
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
	r.mu.Lock()
	rec, answer, who := p.proposal.Decision, p.answer, p.who
	r.mu.Unlock()
	rec.Who, rec.Time = who, time.Now().UnixMilli()
	switch {
	case r.proposals.Now().UnixMilli() >= p.proposal.Expires:
		rec.Outcome, rec.Who, rec.Reason = events.OutcomeExpired, "", short("nobody approved it in time: "+rec.Reason)
	case !answer.Approve:
		rec.Outcome, rec.Reason = events.OutcomeDenied, short(answer.Reason)
	default:
		rec.Outcome = events.OutcomeCommanded
		if err := r.recheck(&rec); err != nil {
			rec.Outcome, rec.Reason = events.OutcomeDeclined, short("approved, but "+err.Error())
		}
	}
	if rec.Outcome == events.OutcomeCommanded {
		if r.place(&rec); len(rec.Firewalls) == 0 {
			return errors.New("none of the firewalls concerned can be reached") // until its time is over
		}
	}
	commands := r.commands(&rec)
	outcome := &events.Outcome{ID: id, Outcome: rec.Outcome, Who: rec.Who, Time: rec.Time}
	_, err := r.conn.Update(ctx, r.signer, bus.BucketApprovals, events.ProposalKey(id, events.KeyOutcome), outcome, 0)
	if errors.Is(err, bus.ErrChanged) {
		r.drop(id)
		return nil // another responder was quicker
	}
	if err != nil {
		return err
	}
	r.drop(id)
	if err := r.record(ctx, &rec); err != nil {
		return fmt.Errorf("%s is not done, since it cannot be recorded: %w", rec.Outcome, err)
	}
	if rec.Outcome == events.OutcomeCommanded {
		r.sending.Go(func() { r.carryOut(sending, &rec, commands) })
	}
	return nil
}

func (r *Responder) drop(id string) {
	r.mu.Lock()
	delete(r.pending, id)
	r.mu.Unlock()
}

// recheck returns nil when a decision that has waited may still be carried out.
func (r *Responder) recheck(rec *events.Decision) error {
	d := policy.Decision{}
	var err error
	if d.Address, err = events.ParsePrefix(rec.Address); err != nil {
		return err
	}
	known := policy.Known{}
	known.Allow, known.AllowError = r.allowed(rec.Realm)
	return r.engine.Recheck(&d, known)
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
	rec.Firewalls, rec.Commands = fresh, nil
	for _, name := range fresh {
		rec.Commands = append(rec.Commands, policy.CommandID(rec.Alert, rec.Updated, rec.Address, name, rec.Action))
	}
	if len(away) > 0 {
		rec.Reason = short(fmt.Sprintf("%s (cannot be reached: %s)", rec.Reason, strings.Join(away, ", ")))
	}
}

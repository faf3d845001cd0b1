package responder

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ledgerKey is where our ledger is kept. A responder without a key can only observe
// where firewalls verify: what it simulates must not be in the way of one that acts,
// which could not verify it.
func (r *Responder) ledgerKey() string {
	if r.signer == nil && !r.trust.Open() {
		return events.KeyLedger + "-unsigned"
	}
	return events.KeyLedger
}

// believes returns nil when a value was written by us or by another responder.
func (r *Responder) believes(m bus.Msg) error {
	if r.trust.Open() || r.signer == nil && m.Seal == (seal.Seal{}) || r.signer.Made(m.Seal, m.Subject, m.Data) {
		return nil
	}
	party, err := r.trust.Verify(m.Seal, seal.VerbFlush, m.Subject, m.Data)
	if err == nil && party.Role != seal.RoleResponder {
		err = fmt.Errorf("%w: %s is no responder", seal.ErrVerb, party.Name)
	}
	return err
}

// readLedger returns the ledger and its revision. One that cannot be believed is as
// good as an open circuit, which an operator can close.
func (r *Responder) readLedger(ctx context.Context) (*events.Ledger, uint64, error) {
	l := &events.Ledger{}
	m, err := r.conn.Value(ctx, bus.BucketGuard, r.ledgerKey())
	if err != nil || m.Seq == 0 {
		return l, 0, err
	}
	err = r.believes(m)
	if err == nil {
		err = events.Unmarshal(m.Data, l)
	}
	if err != nil {
		*l = events.Ledger{Circuit: events.Circuit{Open: true, Since: m.Time.UnixMilli(), Why: "the ledger cannot be believed: " + err.Error()}}
	}
	return l, m.Seq, nil
}

// ledgerTries bounds how often a change is tried that others are quicker with.
const ledgerTries = 20

// changeLedger applies a change to the ledger and keeps it, when change says that
// there is one, before anybody else changes it. change may be called several times.
func (r *Responder) changeLedger(ctx context.Context, change func(*events.Ledger) bool) (*events.Ledger, error) {
	r.ledgerMu.Lock()
	defer r.ledgerMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for try := 0; ; try++ {
		l, rev, err := r.readLedger(ctx)
		if err != nil {
			return nil, err
		}
		if !change(l) {
			r.showCircuit(l.Circuit)
			return l, nil
		}
		_, err = r.conn.Update(ctx, r.signer, bus.BucketGuard, r.ledgerKey(), l, rev)
		if err == nil {
			r.showCircuit(l.Circuit)
			return l, nil
		}
		if !errors.Is(err, bus.ErrChanged) || try == ledgerTries {
			return nil, fmt.Errorf("keep the ledger: %w", err)
		}
	}
}

// settle charges decisions to the ledger. Nothing may be done about them before
// it returns.
func (r *Responder) settle(ctx context.Context, ds []policy.Decision) error {
	if !slices.ContainsFunc(ds, func(d policy.Decision) bool { return d.Outcome == "" }) {
		return nil
	}
	var settled []policy.Decision
	opened := false
	l, err := r.changeLedger(ctx, func(l *events.Ledger) (changed bool) {
		settled = slices.Clone(ds)
		was, now := l.Circuit.Open, r.now()
		for i := range settled {
			changed = r.engine.Charge(&settled[i], l, now) || changed
		}
		opened = l.Circuit.Open && !was
		return changed
	})
	if err != nil {
		return err
	}
	copy(ds, settled)
	if opened {
		r.log.Error("the circuit is open: nothing is done until it is closed", "why", l.Circuit.Why, "remedy", "ctfleet guard close")
		r.act(ctx, &events.Act{Verb: events.VerbCircuit, What: "opened: " + l.Circuit.Why, Time: l.Circuit.Since})
	}
	return nil
}

// undo takes back what the deed of a record has done to the ledger, as how says.
func (r *Responder) undo(ctx context.Context, d *events.Decision, how func(l *events.Ledger, realm string, address netip.Prefix, alert string, updated int64) bool) error {
	address, err := events.ParsePrefix(d.Address)
	if err != nil {
		return nil //nolint:nilerr // without an address it was never in the ledger
	}
	_, err = r.changeLedger(ctx, func(l *events.Ledger) bool {
		return how(l, d.Realm, address, d.Alert, d.Updated)
	})
	return err
}

// showCircuit tells the metrics.
func (r *Responder) showCircuit(c events.Circuit) {
	v := 0.0
	if c.Open {
		v = 1
	}
	r.circuit.Set(v)
}

// guardValue takes a value of the bucket CT_GUARD.
func (r *Responder) guardValue(m bus.Msg) {
	if bus.BucketKey(bus.BucketGuard, m.Subject) != events.KeyCircuit {
		return
	}
	var o events.CircuitOrder
	err := events.Unmarshal(m.Data, &o)
	var party seal.Party
	if err == nil {
		party, err = r.trust.Verify(m.Seal, seal.VerbGuard, m.Subject, m.Data)
	}
	if err != nil {
		r.refuse("circuit order", m.Subject, err)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := r.order(ctx, &o, party.Name); err != nil {
		r.throttle.Warn(r.log, "cannot open or close the circuit", "error", err)
	}
}

// order does what an operator says of the circuit, unless something has happened
// since.
func (r *Responder) order(ctx context.Context, o *events.CircuitOrder, who string) error {
	done := false
	_, err := r.changeLedger(ctx, func(l *events.Ledger) bool {
		done = l.Circuit.Open != o.Open && o.Time > l.Circuit.Since
		if done {
			l.Circuit = events.Circuit{Open: o.Open, Since: o.Time, Why: o.Reason, Who: who}
		}
		return done
	})
	if err != nil || !done {
		return err
	}
	what := "closed"
	if o.Open {
		what = "opened"
	}
	r.log.Warn("the circuit was "+what, "who", who, "reason", o.Reason)
	r.act(ctx, &events.Act{Verb: events.VerbCircuit, What: what, Who: who, Reason: o.Reason, Time: o.Time})
	return nil
}

// act records what was done that is no command. Two responders that did the same
// record it once.
func (r *Responder) act(ctx context.Context, a *events.Act) {
	id := fmt.Sprintf("act:%s:%s:%s:%d", a.Verb, a.ID, a.What, a.Time)
	if err := r.conn.PublishMessage(ctx, events.AuditSubject(events.ActorResponder, a.Verb), id, a); err != nil {
		r.log.Error("cannot record what was done", "verb", a.Verb, "what", a.What, "error", err)
	}
}

package responder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
		return events.KeyUnsigned
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
	if err != nil {
		return nil, 0, err
	}
	if m.Seq > 0 {
		err = r.believes(m)
	}
	if err == nil && m.Seq > 0 {
		err = events.Unmarshal(m.Data, l)
	}
	if err == nil && l.Serial < r.serial {
		err = fmt.Errorf("it is older than what is known, change %d after %d", l.Serial, r.serial)
	}
	if err != nil {
		since := m.Time
		if m.Seq == 0 {
			since = r.now() // it was taken away
		}
		*l = events.Ledger{Serial: r.serial, Circuit: events.Circuit{Open: true, Since: since.UnixMilli(), Why: "the ledger cannot be believed: " + err.Error()}}
	}
	r.serial = max(r.serial, l.Serial)
	return l, m.Seq, nil
}

// readOrder returns what an operator said of the circuit last, and who it was; nil
// where nobody did who may.
func (r *Responder) readOrder(ctx context.Context) (*events.CircuitOrder, string, error) {
	m, err := r.conn.Value(ctx, bus.BucketGuard, events.KeyCircuit)
	if err != nil || m.Seq == 0 {
		return nil, "", err
	}
	o := &events.CircuitOrder{}
	party, err := r.trust.Verify(m.Seal, seal.VerbGuard, m.Subject, m.Data)
	if err == nil {
		err = events.Unmarshal(m.Data, o)
	}
	if err != nil {
		r.refuse("circuit order", m.Subject, err)
		return nil, "", nil
	}
	return o, party.Name, nil
}

// obey does what an operator says of the circuit, unless something has happened to
// it since, and reports whether that changed anything.
func obey(l *events.Ledger, o *events.CircuitOrder, who string) bool {
	if o == nil || o.Open == l.Circuit.Open || o.Time <= l.Circuit.Since {
		return false
	}
	l.Circuit = events.Circuit{Open: o.Open, Since: o.Time, Why: o.Reason, Who: who}
	return true
}

// ledgerTries bounds how often a change is tried that others are quicker with.
const ledgerTries = 20

// changeLedger applies what an operator says of the circuit to the ledger, then a
// change, and keeps it before anybody else changes it, when there is something to
// keep. change may be called several times.
func (r *Responder) changeLedger(ctx context.Context, change func(*events.Ledger) bool) error {
	r.ledgerMu.Lock()
	defer r.ledgerMu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	order, who, err := r.readOrder(ctx)
	if err != nil {
		return err
	}
	for try := 0; ; try++ {
		l, rev, err := r.readLedger(ctx)
		if err != nil {
			return err
		}
		obeyed := obey(l, order, who)
		ordered := l.Circuit
		changed := change(l)
		if obeyed || changed {
			l.Serial++
			_, err = r.conn.Update(ctx, r.signer, bus.BucketGuard, r.ledgerKey(), l, rev)
			if errors.Is(err, bus.ErrChanged) && try < ledgerTries {
				continue
			}
			if err != nil {
				return fmt.Errorf("keep the ledger: %w", err)
			}
			r.serial = max(r.serial, l.Serial)
		}
		if obeyed {
			r.announce(ctx, ordered)
		}
		if l.Circuit != ordered {
			r.announce(ctx, l.Circuit)
		}
		r.showCircuit(l.Circuit)
		return nil
	}
}

// announce makes it known that the circuit was opened or closed.
func (r *Responder) announce(ctx context.Context, c events.Circuit) {
	what := "closed"
	if c.Open {
		what = "opened"
	}
	a := &events.Act{Verb: events.VerbCircuit, What: what, Who: c.Who, Reason: c.Why, Time: c.Since}
	switch {
	case c.Open && c.Who == "":
		r.log.Error("the circuit is open: nothing is done until it is closed", "why", c.Why, "remedy", "ctfleet guard close")
		a.What, a.Reason = "opened: "+c.Why, ""
	default:
		r.log.Warn("the circuit was "+what, "who", c.Who, "reason", c.Why)
	}
	r.act(ctx, a)
}

// settle charges decisions to the ledger. Nothing may be done about them before
// it returns.
func (r *Responder) settle(ctx context.Context, ds []policy.Decision) error {
	if !slices.ContainsFunc(ds, func(d policy.Decision) bool { return d.Outcome == "" }) {
		return nil
	}
	var settled []policy.Decision
	err := r.changeLedger(ctx, func(l *events.Ledger) (changed bool) {
		settled = slices.Clone(ds)
		now := r.now()
		for i := range settled {
			changed = r.engine.Load().Charge(&settled[i], l, now) || changed
		}
		return changed
	})
	if err != nil {
		return err
	}
	copy(ds, settled)
	return nil
}

// deed is what the ledger knows a record's decision by.
func deed(rec *events.Decision) (*policy.Decision, error) {
	address, err := events.ParsePrefix(rec.Address)
	return &policy.Decision{Address: address, Alert: rec.Alert, Updated: rec.Updated, Realm: rec.Realm}, err
}

// undo takes back what the deed of a record has done to the ledger, as how says.
func (r *Responder) undo(ctx context.Context, rec *events.Decision, how func(*events.Ledger, *policy.Decision) bool) error {
	d, err := deed(rec)
	if err != nil {
		return nil //nolint:nilerr // without an address it was never in the ledger
	}
	return r.changeLedger(ctx, func(l *events.Ledger) bool { return how(l, d) })
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
	key := bus.BucketKey(bus.BucketGuard, m.Subject)
	if name, ok := strings.CutPrefix(key, events.MuteKey("")); ok {
		r.takeMute(name, m)
		return
	}
	switch key {
	case r.ledgerKey():
		var l events.Ledger
		if r.believes(m) == nil && events.Unmarshal(m.Data, &l) == nil {
			r.showCircuit(l.Circuit) // another responder may have opened it
		}
	case events.KeyCircuit:
		// It is read again with the ledger; here it is in time where nothing happens.
		if err := r.changeLedger(context.Background(), func(*events.Ledger) bool { return false }); err != nil {
			r.throttle.Warn(r.log, "cannot open or close the circuit", "error", err)
		}
	}
}

// act records what was done that is no command. Two responders that did the same
// record it once.
func (r *Responder) act(ctx context.Context, a *events.Act) {
	if err := r.putAct(ctx, a); err != nil {
		r.log.Error("cannot record what was done", "verb", a.Verb, "what", a.What, "error", err)
	}
}

func (r *Responder) putAct(ctx context.Context, a *events.Act) error {
	id := fmt.Sprintf("act:%s:%s:%s:%d", a.Verb, a.ID, a.What, a.Time)
	return r.conn.PublishMessage(ctx, events.AuditSubject(events.ActorResponder, a.Verb), id, a)
}

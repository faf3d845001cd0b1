package responder

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// signs gives the rig's responders a key, and returns those of an operator who may
// do all, and of one who may only flush.
func (r *rig) signs() (operator, other *seal.Signer) {
	r.t.Helper()
	file := "keys:\n"
	key := func(name, role, verbs string) *seal.Signer {
		s, _, err := seal.NewSigner()
		if err != nil {
			r.t.Fatal(err)
		}
		file += fmt.Sprintf("  - {name: %s, role: %s, key: %s, verbs: [%s]}\n", name, role, s.Public(), verbs)
		return s
	}
	r.signer = key("responder", "responder", "flush, block")
	operator, other = key("alice", "operator", strings.Join(seal.Verbs, ", ")), key("bob", "operator", "flush")
	path := filepath.Join(r.t.TempDir(), "trust.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		r.t.Fatal(err)
	}
	var err error
	if r.trust, err = seal.OpenTrust(path); err != nil {
		r.t.Fatal(err)
	}
	return operator, other
}

// acts returns what the responders recorded of a kind.
func (r *rig) acts(verb string) func() []events.Act {
	r.t.Helper()
	var mu sync.Mutex
	var out []events.Act
	stop, err := r.conn.Subscribe(events.AuditSubject(events.ActorResponder, verb), func(_ string, data []byte) {
		var a events.Act
		if err := events.Unmarshal(data, &a); err != nil {
			r.t.Errorf("act: %v", err)
		}
		mu.Lock()
		out = append(out, a)
		mu.Unlock()
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(stop)
	return func() []events.Act { mu.Lock(); defer mu.Unlock(); return slices.Clone(out) }
}

func (r *rig) ledger() events.Ledger {
	r.t.Helper()
	var l events.Ledger
	if _, err := r.conn.Get(r.t.Context(), bus.BucketGuard, events.KeyLedger, &l); err != nil {
		r.t.Fatal(err)
	}
	return l
}

func onFirewallA(a *events.Alert) { a.Firewalls = map[string]float64{"fw-a": 200} }

func (r *rig) fireMany(from, to int) {
	r.t.Helper()
	for i := from; i < to; i++ {
		r.fire(alert(fmt.Sprint("a", i), netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String(), onFirewallA))
	}
}

// TestCircuit: two responders share one budget to the last command; when it is spent
// the circuit opens, once, and what comes is only simulated, also after a restart,
// until an operator who may closes it.
func TestCircuit(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, bob := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	circuit := r.acts(events.VerbCircuit)
	const budget, alerts = 5, 30
	file := enforce(func(f *policy.File) { f.Budget.AddressesPerMinute = budget })
	stops := []func(){r.run(file), r.run(file)}
	r.working()
	r.fireMany(0, alerts)
	ds := r.decisions(alerts)
	outcomes := map[string]int{}
	for _, d := range ds {
		outcomes[d.Outcome]++
	}
	if n := len(r.commands("fw-a")); n != budget || outcomes[events.OutcomeCommanded] != budget || outcomes[events.OutcomeSimulated] != budget {
		t.Errorf("%d commands, %v, want %d of each", n, outcomes, budget)
	}
	if l := r.ledger(); !l.Circuit.Open || l.Circuit.Why != "the budget of 5 addresses a minute is spent" {
		t.Errorf("the circuit: %+v", l.Circuit)
	}
	r.until("the record of the circuit", func() bool { return len(circuit()) > 0 })
	for _, stop := range stops {
		stop()
	}
	r.run(file)
	order := func(by *seal.Signer, open bool) {
		t.Helper()
		// Its time is after that of the opening, by the server's clock.
		o := &events.CircuitOrder{Open: open, Reason: "seen", Time: max(time.Now().UnixMilli(), r.ledger().Circuit.Since+1)}
		if err := r.conn.Put(t.Context(), by, bus.BucketGuard, events.KeyCircuit, o); err != nil {
			t.Fatal(err)
		}
	}
	order(nil, false)
	order(bob, false) // may flush, not this
	r.settled("forged orders")
	r.mu.Lock()
	r.decs = nil
	r.mu.Unlock()
	r.fire(alert("b1", "198.18.2.1", onFirewallA))
	if d := r.decisions(1)[0]; d.Outcome == events.OutcomeCommanded {
		t.Errorf("after orders of those who may not: %+v", d)
	}
	order(alice, false)
	r.until("the circuit to close", func() bool { return !r.ledger().Circuit.Open })
	// The budget's minute is not over: the next one opens it again.
	r.fire(alert("b2", "198.18.2.2", onFirewallA))
	r.until("the circuit to open", func() bool { return r.ledger().Circuit.Open })
	order(alice, false)
	r.until("the circuit to close", func() bool { return !r.ledger().Circuit.Open })
	order(alice, true) // an emergency stop
	r.until("the circuit to open", func() bool { return r.ledger().Circuit.Open })
	if l := r.ledger(); l.Circuit.Who != "alice" || l.Circuit.Why != "seen" {
		t.Errorf("the circuit: %+v", l.Circuit)
	}
	r.until("all records", func() bool { return len(circuit()) >= 5 })
	var what []string
	for _, a := range circuit() {
		what = append(what, strings.TrimSpace(a.Who+" "+a.What))
	}
	const spent = "opened: the budget of 5 addresses a minute is spent"
	if want := []string{spent, "alice closed", spent, "alice closed", "alice opened"}; !slices.Equal(what, want) {
		t.Errorf("recorded %q, want %q", what, want)
	}
}

// TestForgedLedger: a ledger that no responder wrote is as good as an open circuit.
func TestForgedLedger(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, bob := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	for _, by := range []*seal.Signer{nil, bob} {
		if err := r.conn.Put(t.Context(), by, bus.BucketGuard, events.KeyLedger, &events.Ledger{}); err != nil {
			t.Fatal(err)
		}
	}
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", onFirewallA))
	if d := r.decisions(1)[0]; d.Outcome != events.OutcomeSimulated || !strings.Contains(d.Reason, "the ledger cannot be believed") {
		t.Errorf("decision: %+v", d)
	}
	if err := r.conn.Put(t.Context(), alice, bus.BucketGuard, events.KeyCircuit, &events.CircuitOrder{Time: time.Now().Add(time.Second).UnixMilli()}); err != nil {
		t.Fatal(err)
	}
	r.until("a ledger of ours", func() bool { return !r.ledger().Circuit.Open && r.ledger().Circuit.Who == "alice" })
	r.fire(alert("a2", "198.18.0.2", onFirewallA))
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
}

// TestReplayedLedger: an older ledger that is published again is not believed.
func TestReplayedLedger(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(nil))
	r.working()
	subject := bus.BucketSubject(bus.BucketGuard, events.KeyLedger)
	r.fire(alert("a1", "198.18.0.1", onFirewallA))
	r.until("the first command", func() bool { return len(r.commands("fw-a")) == 1 })
	old, err := r.conn.Value(t.Context(), bus.BucketGuard, events.KeyLedger)
	if err != nil {
		t.Fatal(err)
	}
	r.fire(alert("a2", "198.18.0.2", onFirewallA))
	r.until("the second command", func() bool { return len(r.commands("fw-a")) == 2 })
	again := &nats.Msg{Subject: subject, Data: old.Data, Header: nats.Header{seal.HeaderKey: {old.Seal.Key}, seal.HeaderSignature: {old.Seal.Signature}}}
	if _, err := r.conn.JS.PublishMsg(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	r.fire(alert("a3", "198.18.0.3", onFirewallA))
	if d := r.decisions(3)[2]; d.Outcome != events.OutcomeSimulated || !strings.Contains(d.Reason, "older than what is known") {
		t.Errorf("decision: %+v", d)
	}
}

// TestRepetitionIsNoRefusal: that a firewall has carried out a command already says
// nothing against the deed, and gives nothing back.
func TestRepetitionIsNoRefusal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	done := map[string]bool{}
	r.join(&firewall{name: "fw-a", answer: func(c *events.Command) (events.Message, error) {
		if done[c.ID] {
			return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Refused: []events.Refusal{{Reason: "replayed"}}, Error: "a command with this id was carried out already"}, nil
		}
		done[c.ID] = true
		return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Matched: 7, Deleted: 7}, nil
	}})
	r.run(enforce(func(f *policy.File) { f.Budget.AddressesPerMinute = 2 }))
	r.working()
	for i := range 2 {
		for range 2 {
			r.fireMany(i, i+1)
			r.settled(fmt.Sprint("after-", i, time.Now().UnixNano()))
		}
	}
	r.until("all commands, repetitions included", func() bool { return len(r.commands("fw-a")) == 4 })
	time.Sleep(50 * time.Millisecond) // for whatever is done about the last receipt
	r.fireMany(7, 8)
	if d := r.decisions(3)[2]; d.Outcome != events.OutcomeSimulated {
		t.Errorf("the third address: %+v", d)
	}
}

// TestStolenMessageID: a message of somebody else's that has a record's id does not
// keep the record out of the audit.
func TestStolenMessageID(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(nil))
	r.working()
	a := alert("a1", "198.18.0.1", onFirewallA)
	id := policy.CommandID(a.ID, a.Updated, a.Key, "", policy.ActionFlush)
	forged := &events.Receipt{ID: "x", Firewall: "fw-b", Verb: events.VerbFlush}
	if err := r.conn.PublishMessage(t.Context(), events.AuditSubject("fw-b", events.VerbFlush), "decision:"+id+":commanded", forged); err != nil {
		t.Fatal(err)
	}
	r.fire(a)
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	kept := 0
	err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{All: true, Filter: decisionSubject}, func(bus.Msg) { kept++ })
	if err != nil || kept != 1 {
		t.Errorf("the audit has the decision %d times, %v", kept, err)
	}
}

// TestEmergencyStopWhileNobodyIsThere: what an operator said of the circuit while no
// responder ran holds for the first alert.
func TestEmergencyStopWhileNobodyIsThere(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, _ := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	stop := r.run(enforce(nil))
	r.working()
	stop()
	if err := r.conn.Put(t.Context(), alice, bus.BucketGuard, events.KeyCircuit, &events.CircuitOrder{Open: true, Reason: "stop", Time: time.Now().UnixMilli()}); err != nil {
		t.Fatal(err)
	}
	r.fire(alert("a1", "198.18.0.1", onFirewallA))
	r.run(enforce(nil))
	if d := r.decisions(1)[0]; d.Outcome != events.OutcomeSimulated || !strings.Contains(d.Reason, "the circuit is open: stop") {
		t.Errorf("decision: %+v", d)
	}
}

// TestUnfinishedDeed: what a responder had put in the ledger when it was killed, the
// next one finishes, and the audit has it once.
func TestUnfinishedDeed(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	a := alert("a1", "198.18.0.1", onFirewallA)
	now := time.Now()
	dead := &events.Ledger{Acts: []events.Acted{{
		Realm: a.Realm, Address: a.Key, Alert: a.ID, Updated: a.Updated, At: now.UnixMilli(), Until: now.Add(time.Minute).UnixMilli(),
	}}}
	if err := r.conn.Put(t.Context(), nil, bus.BucketGuard, events.KeyUnsigned, dead); err != nil {
		t.Fatal(err)
	}
	stop := r.run(enforce(nil))
	r.working()
	r.fire(a)
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	// And one that was killed after the record: it is the same one.
	r.settled("first")
	stop()
	r.run(enforce(nil))
	r.fire(a)
	r.settled("second")
	r.until("the same command again", func() bool { return len(r.commands("fw-a")) == 2 })
	if c := r.commands("fw-a"); c[0].ID != c[1].ID {
		t.Errorf("commands %s and %s: a firewall would carry out both", c[0].ID, c[1].ID)
	}
	kept := 0
	err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{All: true, Filter: decisionSubject}, func(m bus.Msg) {
		var d events.Decision
		if events.Unmarshal(m.Data, &d) == nil && d.Alert == a.ID {
			kept++
		}
	})
	if err != nil || kept != 1 {
		t.Errorf("the audit has it %d times, %v", kept, err)
	}
}

// TestRefusalsSpendNothing: sources that every firewall refuses, as it does forged
// ones, do not use up the budget.
func TestRefusalsSpendNothing(t *testing.T) {
	r := newRig(t)
	r.bootstrap()
	r.join(&firewall{name: "fw-a", answer: func(c *events.Command) (events.Message, error) {
		if c.Addresses[0] == "198.18.2.1" {
			return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Matched: 7, Deleted: 7}, nil
		}
		return &events.Receipt{ID: c.ID, Firewall: "fw-a", Verb: c.Verb, Matched: 9, Refused: []events.Refusal{{Reason: "never-answered", Count: 9}}}, nil
	}})
	r.run(enforce(func(f *policy.File) { f.Budget.AddressesPerMinute = 2 }))
	r.working()
	for i := range 6 {
		r.fireMany(i, i+1)
		r.until("the command to be refused", func() bool { return len(r.commands("fw-a")) == i+1 })
		r.settled(fmt.Sprint("after-", i))
		r.until("what it spent to be given back", func() bool {
			var l events.Ledger
			_, err := r.conn.Get(t.Context(), bus.BucketGuard, events.KeyUnsigned, &l)
			return err == nil && len(l.Acts) == i+1 && l.Acts[i].At == 0
		})
	}
	r.fire(alert("true", "198.18.2.1", onFirewallA))
	r.until("the one that is carried out", func() bool { return len(r.commands("fw-a")) == 7 })
}

// TestNoAnswerIsNoFailure: a command that was not answered may have been carried out,
// so the deed stays in the ledger.
func TestNoAnswerIsNoFailure(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	release := make(chan struct{})
	defer close(release)
	r.join(&firewall{name: "fw-a", answer: func(*events.Command) (events.Message, error) { <-release; return nil, os.ErrClosed }})
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", updated(0)))
	d := r.decisions(2)[1]
	if d.Outcome != events.OutcomeFailed || !strings.HasPrefix(d.Reason, "1 of 1 commands failed: fw-a: ") || !strings.Contains(d.Reason, "no answer in time") {
		t.Errorf("decision: %+v", d)
	}
	r.fire(alert("a1", "198.18.0.1", updated(1)))
	r.settled("end")
	if n := len(r.commands("fw-a")); n != 1 {
		t.Errorf("%d commands", n)
	}
}

// TestAwayForAMoment: a firewall that is away when it is commanded, and back before
// the command expires, gets it.
func TestAwayForAMoment(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	r.bootstrap()
	r.report(&firewall{name: "fw-a", realm: events.RealmDefault, boot: "boot-of-fw-a"})
	r.run(enforce(nil))
	r.working()
	r.fire(alert("a1", "198.18.0.1", onFirewallA))
	r.decisions(1)
	time.Sleep(2 * sendAgain)
	r.join(&firewall{name: "fw-a"})
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	r.settled("end")
	r.decisions(1)
}

package responder

import (
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// proposal waits for one and returns it, with the digest of what is in the bucket.
func (r *rig) proposal(id string) (p events.Proposal, sum string) {
	r.t.Helper()
	m, err := r.conn.Value(r.t.Context(), bus.BucketApprovals, events.ProposalKey(id, events.KeyRequest))
	if err != nil || m.Seq == 0 {
		r.t.Fatalf("proposal %s: %v", id, err)
	}
	if err := events.Unmarshal(m.Data, &p); err != nil {
		r.t.Fatal(err)
	}
	return p, events.ProposalDigest(m.Data)
}

func (r *rig) answer(by *seal.Signer, a *events.Answer) {
	r.t.Helper()
	a.Time = time.Now().UnixMilli()
	if err := r.conn.Put(r.t.Context(), by, bus.BucketApprovals, events.ProposalKey(a.ID, events.KeyAnswer), a); err != nil {
		r.t.Fatal(err)
	}
}

// propose fires an alert and waits for what is proposed.
func (r *rig) propose(n int, id, key string) events.Decision {
	r.t.Helper()
	r.fire(alert(id, key, onFirewallA))
	d := r.decisions(n)[n-1]
	if d.Outcome != events.OutcomeProposed || len(d.Commands) != 0 {
		r.t.Fatalf("decision: %+v", d)
	}
	r.until("the proposal", func() bool {
		m, err := r.conn.Value(r.t.Context(), bus.BucketApprovals, events.ProposalKey(d.ID, events.KeyRequest))
		return err == nil && m.Seq > 0
	})
	return d
}

// TestApprovals: with two responders, what a person approves is done once, and what
// is denied, or answered by nobody who may, is not.
func TestApprovals(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, bob := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	file := enforce(func(f *policy.File) { f.Mode = policy.Approve })
	r.run(file)
	r.run(file)
	r.working()

	d := r.propose(1, "a1", "198.18.0.1")
	p, sum := r.proposal(d.ID)
	if p.Decision.Address != "198.18.0.1" || !strings.Contains(p.Text, "opened 200 flows") || time.Until(time.UnixMilli(p.Expires)) < 9*time.Minute {
		t.Errorf("proposal: %+v", p)
	}
	for what, forged := range map[string]func(){
		"unsigned":           func() { r.answer(nil, &events.Answer{ID: d.ID, Approve: true, Digest: sum}) },
		"by one who may not": func() { r.answer(bob, &events.Answer{ID: d.ID, Approve: true, Digest: sum}) },
		"to something else":  func() { r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: events.ProposalDigest(nil)}) },
		"to another one":     func() { r.answer(alice, &events.Answer{ID: "another", Approve: true, Digest: sum}) },
	} {
		forged()
		time.Sleep(50 * time.Millisecond)
		if n := len(r.commands("fw-a")); n != 0 {
			t.Fatalf("%d commands after an answer %s", n, what)
		}
	}
	r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: sum, Reason: "seen"})
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	if done := r.decisions(2)[1]; done.Outcome != events.OutcomeCommanded || done.Who != "alice" || done.ID != d.ID || len(done.Commands) != 1 {
		t.Errorf("approved: %+v", done)
	}

	d = r.propose(3, "a2", "198.18.0.2")
	_, sum = r.proposal(d.ID)
	r.answer(alice, &events.Answer{ID: d.ID, Digest: sum, Reason: "the backup"})
	if denied := r.decisions(4)[3]; denied.Outcome != events.OutcomeDenied || denied.Who != "alice" || denied.Reason != "the backup" {
		t.Errorf("denied: %+v", denied)
	}
	// A second answer is too late.
	r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: sum})

	// What came on the allowlist meanwhile is not done.
	d = r.propose(5, "a3", "198.18.0.3")
	_, sum = r.proposal(d.ID)
	e := &events.AllowEntry{Prefix: "198.18.0.3", Time: time.Now().UnixMilli()}
	prefix, err := events.ParsePrefix(e.Prefix)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.conn.Put(t.Context(), alice, bus.BucketAllowlist, events.AllowKey("", prefix), e); err != nil {
		t.Fatal(err)
	}
	time.Sleep(100 * time.Millisecond)
	r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: sum})
	if late := r.decisions(6)[5]; late.Outcome != events.OutcomeDeclined || !strings.Contains(late.Reason, "approved, but 198.18.0.3/32 is on the allowlist") {
		t.Errorf("approved too late: %+v", late)
	}
	r.settled("end")
	r.decisions(6)
	if n := len(r.commands("fw-a")); n != 1 {
		t.Errorf("%d commands", n)
	}
}

// TestApprovedWhileOpen: while the circuit is open nothing is done, approved or not;
// and an outcome that no responder wrote ends no proposal.
func TestApprovedWhileOpen(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, bob := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) { f.Mode = policy.Approve }))
	r.working()
	d := r.propose(1, "a1", "198.18.0.1")
	_, sum := r.proposal(d.ID)
	for _, by := range []*seal.Signer{nil, bob} {
		forged := &events.Outcome{ID: d.ID, Outcome: events.OutcomeCommanded, Who: "bob"}
		if err := r.conn.Put(t.Context(), by, bus.BucketApprovals, events.ProposalKey(d.ID, events.KeyOutcome), forged); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.conn.Put(t.Context(), alice, bus.BucketGuard, events.KeyCircuit, &events.CircuitOrder{Open: true, Reason: "stop", Time: time.Now().UnixMilli() + 1}); err != nil {
		t.Fatal(err)
	}
	r.until("the circuit to open", func() bool { return r.ledger().Circuit.Open })
	r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: sum})
	if got := r.decisions(2)[1]; got.Outcome != events.OutcomeDeclined || got.Reason != "approved, but the circuit is open: stop" {
		t.Errorf("decision: %+v", got)
	}
	if n := len(r.commands("fw-a")); n != 0 {
		t.Errorf("%d commands", n)
	}
}

// TestForgedProposal: what no responder proposed cannot be approved.
func TestForgedProposal(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, bob := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	r.run(enforce(func(f *policy.File) { f.Mode = policy.Approve }))
	r.working()
	for _, by := range []*seal.Signer{nil, bob, alice} {
		p := &events.Proposal{Expires: time.Now().Add(time.Hour).UnixMilli(), Decision: events.Decision{
			ID: "forged", Rule: "flood", Realm: events.RealmDefault, Key: "198.18.0.9", Address: "198.18.0.9", By: "src", Action: "flush", Firewalls: []string{"fw-a"},
		}}
		if err := r.conn.Put(t.Context(), by, bus.BucketApprovals, events.ProposalKey("forged", events.KeyRequest), p); err != nil {
			t.Fatal(err)
		}
		_, sum := r.proposal("forged")
		r.answer(alice, &events.Answer{ID: "forged", Approve: true, Digest: sum})
	}
	r.settled("end")
	time.Sleep(2 * approvalsEvery)
	r.decisions(0)
	if n := len(r.commands("fw-a")); n != 0 {
		t.Errorf("%d commands", n)
	}
}

// TestExpiredApproval: nobody's answer is a no, and it is in the audit; also when no
// responder was there while the time ran out.
func TestExpiredApproval(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, _ := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	file := enforce(func(f *policy.File) { f.Mode, f.ApproveWithin = policy.Approve, 300*time.Millisecond })
	stop := r.run(file)
	r.working()
	d := r.propose(1, "a1", "198.18.0.1")
	_, sum := r.proposal(d.ID)
	expired := func(n int) {
		t.Helper()
		if got := r.decisions(n)[n-1]; got.Outcome != events.OutcomeExpired || got.ID != d.ID || !strings.HasPrefix(got.Reason, "nobody approved it in time: ") {
			t.Errorf("decision: %+v", got)
		}
	}
	expired(2)
	r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: sum}) // too late
	d = r.propose(3, "a2", "198.18.0.2")
	stop()
	if len(r.decisionsSoFar()) == 4 {
		t.Log("this machine was too slow to stop the responder within 300 ms: what follows is the same as before")
	}
	time.Sleep(300 * time.Millisecond)
	r.run(file)
	expired(4)
	r.settled("end")
	if n := len(r.commands("fw-a")); n != 0 {
		t.Errorf("%d commands", n)
	}
}

// TestApprovedWhileAway: an answer that came while no responder was there is acted
// upon when one is, within its time.
func TestApprovedWhileAway(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	alice, _ := r.signs()
	r.bootstrap()
	r.join(&firewall{name: "fw-a"})
	file := enforce(func(f *policy.File) { f.Mode = policy.Approve })
	stop := r.run(file)
	r.working()
	d := r.propose(1, "a1", "198.18.0.1")
	stop()
	_, sum := r.proposal(d.ID)
	r.answer(alice, &events.Answer{ID: d.ID, Approve: true, Digest: sum})
	r.run(file)
	r.until("the command", func() bool { return len(r.commands("fw-a")) == 1 })
	r.decisions(2)
}

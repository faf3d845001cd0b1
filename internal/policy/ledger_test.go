package policy

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	yes       = events.OutcomeCommanded
	no        = events.OutcomeDeclined
	simulated = events.OutcomeSimulated
)

// desk decides with one ledger.
type desk struct {
	*testing.T
	e *Engine
	l *events.Ledger
	n int64 // updates so far
}

func newDesk(t *testing.T, change func(*File)) *desk {
	return &desk{t, engine(t, change), &events.Ledger{}, 0}
}

// is decides about an alert that nobody has decided about yet.
func (d *desk) is(at time.Duration, outcome, reason string, change func(*events.Alert)) Decision {
	d.Helper()
	d.n++
	got, _ := decide(d.e, d.l, alert(func(a *events.Alert) {
		if a.Updated = d.n; change != nil {
			change(a)
		}
	}), 0, start.Add(at), known())
	if got.Outcome != outcome || !strings.Contains(got.Reason, reason) {
		d.Errorf("at %s: %q because %q, want %q because %q", at, got.Outcome, got.Reason, outcome, reason)
	}
	return got
}

func of(address string) func(*events.Alert) {
	return func(a *events.Alert) { a.ID, a.Key = "a"+address, address }
}

func TestCoolDown(t *testing.T) {
	d := newDesk(t, func(f *File) { f.CoolDown = time.Minute })
	branch := func(a *events.Alert) { a.Realm, a.Firewalls = "branch", map[string]float64{"fw-x": 1} }
	d.is(0, yes, "", nil)
	d.is(time.Second, no, "left alone for another 59s", nil)
	d.is(time.Second, no, "", func(a *events.Alert) { a.ID, a.Key = "a2", "::ffff:198.18.0.1" }) // another alert of the same address
	d.is(time.Second, yes, "", of("198.18.0.2"))
	d.is(time.Second, yes, "", branch) // another host
	d.is(time.Minute-1, no, "", nil)
	second := d.is(time.Minute, yes, "", nil)
	d.is(time.Minute+1, no, "", nil)
	// What failed late ends no cool-down but its own.
	for _, other := range []struct {
		realm   string
		updated int64
	}{{events.RealmDefault, 1}, {"branch", second.Updated}} {
		deed := second
		deed.Realm, deed.Updated = other.realm, other.updated
		if Retract(d.l, &deed) && other.updated == second.Updated {
			t.Errorf("%+v was retracted", other)
		}
		d.is(time.Minute+1, no, "", nil)
	}
	if !Retract(d.l, &second) {
		t.Error("it was not retracted")
	}
	d.is(time.Minute+1, yes, "", nil)
	// What is declined is not in the ledger, and what is over leaves it.
	d.is(time.Hour, no, "", func(a *events.Alert) { a.Value = 1 })
	if d.is(2*time.Hour, yes, "", nil); len(d.l.Acts) != 1 {
		t.Errorf("the ledger holds %+v", d.l.Acts)
	}

	none := newDesk(t, func(f *File) { f.CoolDown = 0 })
	none.is(0, yes, "", nil)
	none.is(0, yes, "", nil)

	// What was only simulated is in nobody's way but a simulation's.
	both := newDesk(t, func(f *File) { f.Policies = append(f.Policies, Policy{Rule: "trial", Mode: Observe}) })
	trial := func(a *events.Alert) { a.Rule = "trial" }
	both.is(0, simulated, "", trial)
	both.is(0, no, "left alone", trial)
	both.is(0, yes, "", nil)
	both.is(0, no, "left alone", nil)
}

// TestTheSameDeed: whoever finds a deed in the ledger that nobody finished goes on
// with it, and it is spent once.
func TestTheSameDeed(t *testing.T) {
	d := newDesk(t, func(f *File) { f.Budget.AddressesPerMinute = 1 })
	same := func(a *events.Alert) { a.Updated = 7 }
	for range 3 {
		d.is(time.Second, yes, "", same)
	}
	d.is(time.Second, no, "left alone", func(a *events.Alert) { a.Updated = 8 })
	if len(d.l.Acts) != 1 {
		t.Errorf("the ledger holds %+v", d.l.Acts)
	}
}

// TestOldDeed: what was begun a while ago is not gone on with: firewalls may not
// remember the command any more.
func TestOldDeed(t *testing.T) {
	d := newDesk(t, nil)
	same := func(a *events.Alert) { a.Updated = 7 }
	d.is(0, yes, "", same)
	d.is(FinishWithin-time.Millisecond, yes, "", same)
	d.is(FinishWithin, no, "left alone", same)
}

// TestRoom: what was refused or only simulated does not keep out what is true.
func TestRoom(t *testing.T) {
	d := newDesk(t, func(f *File) { f.Budget.AddressesPerMinute, f.CoolDown = 0, time.Hour })
	for i := range events.MaxLedgerActs {
		d.l.Acts = append(d.l.Acts, events.Acted{Realm: "default", Address: fmt.Sprint("x", i), Until: start.Add(time.Hour).UnixMilli(), Simulated: i%2 == 0})
	}
	d.is(time.Second, yes, "", nil)
	if len(d.l.Acts) != events.MaxLedgerActs {
		t.Errorf("%d acts", len(d.l.Acts))
	}
}

// TestResume: what was approved is charged when it is done, and not done when it
// must not be any more.
func TestResume(t *testing.T) {
	d := newDesk(t, func(f *File) { f.Mode, f.CoolDown, f.Budget.AddressesPerMinute = Approve, time.Minute, 1 })
	first := d.is(0, events.OutcomeProposed, "", nil)
	resume := func(e *Engine, at time.Duration, k Known) error {
		return e.Resume(&first, "flood", d.l, k, start.Add(at))
	}
	if err := resume(d.e, 5*time.Minute, known()); err != nil {
		t.Errorf("approved: %v", err)
	}
	if a := d.l.Acts; len(a) != 1 || a[0].At != start.Add(5*time.Minute).UnixMilli() || a[0].Until != start.Add(6*time.Minute).UnixMilli() {
		t.Errorf("the ledger holds %+v", a)
	}
	d.l.Acts = append(d.l.Acts, events.Acted{Realm: "default", Address: "198.18.0.77", At: start.Add(5 * time.Minute).UnixMilli()})
	if err := resume(d.e, 5*time.Minute, known()); err == nil || errors.Is(err, ErrNot) || !strings.Contains(err.Error(), "budget") {
		t.Errorf("over the budget: %v, want it to wait", err)
	}
	listed := Known{Allow: allowlist.New(allowlist.Prefixes("backup", first.Address)...)}
	observing := engine(t, func(f *File) { f.Mode = Observe })
	for what, err := range map[string]error{
		"on the allowlist":    resume(d.e, time.Hour, listed),
		"the mode is another": resume(observing, time.Hour, known()),
		"no policy":           New(Default()).Resume(&first, "flood", d.l, known(), start),
	} {
		if !errors.Is(err, ErrNot) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := resume(d.e, time.Hour, Known{AllowError: errors.New("x")}); err == nil || errors.Is(err, ErrNot) {
		t.Errorf("the allowlist is not known: %v, want it to wait", err)
	}
	d.l.Circuit.Open = true
	if err := resume(d.e, time.Hour, known()); !errors.Is(err, ErrNot) {
		t.Errorf("the circuit is open: %v", err)
	}
}

// TestBudget: no more addresses are acted upon within any minute than the file
// allows. The next one opens the circuit, and from then on all is simulated until it
// is closed.
func TestBudget(t *testing.T) {
	d := newDesk(t, func(f *File) { f.Budget.AddressesPerMinute = 3 })
	n := 0
	next := func(at time.Duration, outcome, reason string) Decision {
		t.Helper()
		n++
		return d.is(at, outcome, reason, of(netip.AddrFrom4([4]byte{198, 18, 7, byte(n)}).String()))
	}
	next(0, yes, "")
	next(10*time.Second, yes, "")
	third := next(20*time.Second, yes, "")
	// What came to nothing is given back.
	Retract(d.l, &third)
	next(30*time.Second, yes, "")
	opening := next(time.Minute-1, simulated, "(the circuit is open: the budget of 3 addresses a minute is spent)")
	if opening.Mode != Observe || !d.l.Circuit.Open || d.l.Circuit.Since != start.Add(time.Minute-1).UnixMilli() {
		t.Errorf("%+v with %+v", opening, d.l.Circuit)
	}
	next(time.Minute, simulated, "circuit is open")
	next(time.Hour, simulated, "circuit is open") // time does not close it
	d.l.Circuit.Open = false
	next(time.Hour, yes, "")
	next(time.Hour, yes, "")
	next(time.Hour, yes, "")
	next(time.Hour, simulated, "circuit is open")

	// What is only simulated has a budget of its own, and opens nothing.
	mixed := newDesk(t, func(f *File) {
		f.Budget.AddressesPerMinute = 1
		f.Policies = append(f.Policies, Policy{Rule: "trial", Mode: Observe})
	})
	for i, step := range []struct{ rule, outcome, reason string }{
		{"trial", simulated, ""}, {"trial", no, "the budget of 1 addresses a minute is spent"}, {"flood", yes, ""}, {"flood", no, "is spent"},
	} {
		mixed.is(0, step.outcome, step.reason, func(a *events.Alert) { a.Rule, a.Key = step.rule, fmt.Sprint("198.18.9.", i) })
		if open := mixed.l.Circuit.Open; open != (i == 3) {
			t.Errorf("step %d: the circuit is open: %t", i, open)
		}
	}

	// Without a budget, as much as the ledger has room for.
	none := newDesk(t, func(f *File) { f.Budget.AddressesPerMinute = 0 })
	for i := range events.MaxLedgerActs + 1 {
		outcome := yes
		if i == events.MaxLedgerActs {
			outcome = no
		}
		none.is(0, outcome, "", of(netip.AddrFrom4([4]byte{198, 18, byte(8 + i>>8), byte(i)}).String()))
	}
	if err := none.l.Validate(); err != nil {
		t.Error(err)
	}
	data, err := events.Marshal(none.l)
	if err != nil || len(data) > events.MaxMessageBytes {
		t.Errorf("a full ledger has %d bytes, %v", len(data), err)
	}
}

// TestRefund: what every firewall refused counts no more, but the address is left
// alone all the same.
func TestRefund(t *testing.T) {
	d := newDesk(t, func(f *File) { f.Budget.AddressesPerMinute = 1 })
	refused := d.is(0, yes, "", nil)
	give := func() bool { return Refund(d.l, &refused) }
	if !give() || give() {
		t.Error("it is given back once")
	}
	d.is(time.Second, no, "left alone", nil)
	d.is(time.Second, yes, "", of("198.18.0.2"))
	d.is(time.Second, simulated, "circuit", of("198.18.0.3"))
}

// TestApprove: what is proposed spends the budget, and is not proposed again while a
// person may still answer.
func TestApprove(t *testing.T) {
	d := newDesk(t, func(f *File) {
		f.Mode, f.CoolDown, f.ApproveWithin, f.Budget.AddressesPerMinute = Approve, time.Minute, 10*time.Minute, 1
	})
	d.is(0, events.OutcomeProposed, "", nil)
	d.is(9*time.Minute, no, "left alone", nil)
	d.is(10*time.Minute, events.OutcomeProposed, "", nil)
	d.is(10*time.Minute, simulated, "the circuit is open", of("198.18.0.9"))
}

func TestMost(t *testing.T) {
	for _, f := range []struct {
		table, realm            float64
		count, concerned, whole uint64
		want                    uint64
	}{
		{0, 0, 1000, 1000, 5000, 0},
		{20, 0, 1000, 1000, 5000, 200},
		{0, 10, 1000, 2000, 5000, 250}, // 500 in all, half of them here
		{20, 10, 1000, 2000, 5000, 200},
		{50, 10, 1000, 2000, 5000, 250},
		{20, 0, 0, 0, 0, 1}, // 0 would be no limit
		{0, 10, 0, 0, 0, 0},
		{100, 100, 1000, 1000, 1000, 1000},
	} {
		e := engine(t, func(v *File) { v.Budget.TablePercent, v.Budget.RealmPercent = f.table, f.realm })
		if got := e.Most(f.count, f.concerned, f.whole); got != f.want {
			t.Errorf("%+v: %d", f, got)
		}
	}
}

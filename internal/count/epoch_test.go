package count

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// flow is an event of a flow from 192.0.2.<src>.
func flowEvent(typ events.Type, src byte, flags events.Flags) events.Event {
	return events.Event{Type: typ, Flags: flags, Proto: 6, Orig: events.Tuple{Src: events.Addr{Lo: 0xc0000200 | uint64(src)}, Dst: events.Addr{Lo: 0xc6336401}, DstPort: 443}}
}

func source(src byte) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, src}), 32)
}

var (
	realmDefault = Place{Realm: "default"}
	onFirewallA  = Place{Realm: "default", Firewall: "fw-a"}
	activeBySrc  = Set{Track: BySrc, Metric: Active}
)

// active expects the active count of a source on fw-a and in its realm; -1 is
// unknown.
func (r *receiver) active(src byte, want int) {
	r.t.Helper()
	for _, p := range []Place{onFirewallA, realmDefault} {
		got, known := r.c.Value(activeBySrc, scopeOf(p), p, source(src), 0)
		if !known && want != -1 || known && int(got) != want {
			r.t.Errorf("%v: %d active, known %v, want %d", p, got, known, want)
		}
	}
}

const (
	part  = events.SnapshotPart
	begin = events.SnapshotPart | events.SnapshotBegin
	end   = events.SnapshotPart | events.SnapshotEnd
	whole = begin | end
	abort = events.SnapshotPart | events.SnapshotAbort
)

func TestEpochInOrder(t *testing.T) {
	rec := newReceiver(t, Config{})
	is := func(src byte, want int) { t.Helper(); rec.active(src, want) }
	rec.live(events.Header{Seq: 1, Epoch: 0}, day, flowEvent(events.New, 1, 0)) // before the first dump
	is(1, -1)
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: begin, After: 1}, day, flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 2, 0))
	is(1, -1)
	rec.live(events.Header{Seq: 2, Epoch: 1}, day, flowEvent(events.New, 3, 0))
	if got := rec.c.Unknown(realmDefault); !slices.Equal(got, []string{"fw-a"}) {
		t.Errorf("unknown: %q", got)
	}
	rec.live(events.Header{Seq: 2, Epoch: 1, Phase: end, After: 2}, day, flowEvent(events.Existing, 2, 0))
	is(1, 1)
	is(2, 2)
	is(3, 1)
	is(4, 0)
	if a := rec.account(); a.Active != 4 || !a.ActiveKnown || a.Approximate || a.Epoch != 1 || a.Pending {
		t.Errorf("account is %+v", a)
	}
	if got := rec.c.Unknown(realmDefault); got != nil {
		t.Errorf("unknown: %q", got)
	}
	rec.live(events.Header{Seq: 3, Epoch: 1}, day,
		flowEvent(events.Destroy, 2, 0), flowEvent(events.Destroy, 9, events.Unheld|events.UnheldBefore), flowEvent(events.Existing, 5, 0))
	is(2, 1)
	is(9, 0)
	is(5, 1)
	if n, _ := rec.c.Value(Set{Metric: Opened}, Firewall, onFirewallA, source(5), time.Second); n != 0 {
		t.Errorf("an entry inserted by another program counts as %d new", n)
	}
	top := rec.c.Top(activeBySrc, realmDefault, 0, 10)
	if want := []Entry{{source(1), 1}, {source(2), 1}, {source(3), 1}, {source(5), 1}}; !slices.Equal(top, want) {
		t.Errorf("top is %v, want %v", top, want)
	}
}

// TestEpochAnyOrder delivers a resync in every order of its messages: what is
// shown at the end is the same.
func TestEpochAnyOrder(t *testing.T) {
	type delivery struct {
		h   events.Header
		evs []events.Event
	}
	// Flow 1 lives on; 2 ended unseen; 3 ends during the dump, before its row;
	// 4 begins during it and is announced by the dump; 5 begins and ends.
	first := []delivery{
		{events.Header{Seq: 1, Epoch: 1, Phase: whole}, []events.Event{flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 2, 0), flowEvent(events.Existing, 3, 0)}},
		{events.Header{Seq: 1, Epoch: 1}, nil},
	}
	resync := []delivery{
		{events.Header{Seq: 2, Epoch: 2, Phase: begin, After: 1}, []events.Event{flowEvent(events.Existing, 1, 0)}},
		{events.Header{Seq: 3, Epoch: 2, Phase: part, After: 2}, []events.Event{flowEvent(events.Existing, 4, 0)}},
		{events.Header{Seq: 4, Epoch: 2, Phase: end, After: 3}, nil},
		{events.Header{Seq: 2, Epoch: 2}, []events.Event{flowEvent(events.Destroy, 3, events.Unheld), flowEvent(events.New, 5, 0)}},
		{events.Header{Seq: 3, Epoch: 2}, []events.Event{flowEvent(events.New, 4, events.Unheld), flowEvent(events.Destroy, 5, 0)}},
		{events.Header{Seq: 4, Epoch: 2}, []events.Event{flowEvent(events.New, 6, 0)}},
	}
	order := []int{0, 1, 2, 3, 4, 5}
	n := 0
	for permute(order, func() {
		n++
		rec := newReceiver(t, Config{})
		for _, d := range first {
			rec.live(d.h, day, d.evs...)
		}
		seen2 := false
		for _, i := range order {
			rec.live(resync[i].h, day, resync[i].evs...)
			a := rec.account()
			if a.Epoch == 1 {
				rec.active(2, 1) // the old epoch is shown to the end, without a gap
			} else {
				seen2 = true
				rec.active(2, 0)
			}
		}
		if a := rec.account(); !seen2 || a.Epoch != 2 || a.Active != 3 || a.Approximate {
			t.Errorf("order %v: account is %+v", order, a)
		}
		for src, want := range []int{0, 1, 0, 0, 1, 0, 1} {
			rec.active(byte(src), want)
		}
	}) {
	}
	if n != 720 {
		t.Errorf("%d orders tried", n)
	}
}

// permute calls fn and moves order to its next permutation; false after the last.
func permute(order []int, fn func()) bool {
	fn()
	i := len(order) - 2
	for i >= 0 && order[i] > order[i+1] {
		i--
	}
	if i < 0 {
		return false
	}
	j := len(order) - 1
	for order[j] < order[i] {
		j--
	}
	order[i], order[j] = order[j], order[i]
	slices.Reverse(order[i+1:])
	return true
}

func TestEpochBetween(t *testing.T) {
	rec := newReceiver(t, Config{})
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: whole}, day, flowEvent(events.Existing, 1, 0))
	// While epoch 2 is on its way, its events change what is shown as well.
	rec.live(events.Header{Seq: 1, Epoch: 2}, day, flowEvent(events.New, 2, 0), flowEvent(events.Destroy, 1, events.Unheld), flowEvent(events.New, 3, events.UnheldBefore))
	rec.active(1, 0)
	rec.active(2, 1)
	rec.active(3, 0)
	if a := rec.account(); a.Epoch != 1 || !a.Pending || a.PendingSince != day || a.Active != 1 {
		t.Errorf("account is %+v", a)
	}
	// It is given up: the one before goes on.
	rec.live(events.Header{Seq: 2, Epoch: 2, Phase: begin}, day, flowEvent(events.Existing, 7, 0))
	rec.live(events.Header{Seq: 3, Epoch: 2, Phase: abort}, day)
	rec.live(events.Header{Seq: 2, Epoch: 2}, day, flowEvent(events.New, 4, 0))
	rec.active(2, 1)
	rec.active(4, 1)
	rec.active(7, 0)
	if a := rec.account(); a.Epoch != 1 || a.Approximate || a.Active != 2 {
		t.Errorf("account is %+v", a)
	}
	// The next is complete.
	rec.live(events.Header{Seq: 4, Epoch: 3, Phase: whole, After: 2}, day, flowEvent(events.Existing, 2, 0), flowEvent(events.Existing, 4, 0), flowEvent(events.Existing, 3, 0))
	rec.active(3, 1)
	if a := rec.account(); a.Epoch != 3 || a.Approximate || a.Active != 3 || a.Pending {
		t.Errorf("account is %+v", a)
	}
	// An old epoch's straggler is too late to matter, to active.
	rec.live(events.Header{Seq: 3, Epoch: 1}, day, flowEvent(events.New, 9, 0))
	rec.active(9, 0)
	if n, _ := rec.c.Value(Set{Metric: Opened}, Firewall, onFirewallA, source(9), time.Second); n != 1 {
		t.Errorf("it counts as %d new, want 1", n)
	}
}

func TestEpochWaitsForLiveBatches(t *testing.T) {
	rec := newReceiver(t, Config{})
	at := func(s float64) int64 { return day + int64(s*1e9) }
	rec.live(events.Header{Seq: 1}, at(0))
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: begin, After: 1}, at(0), flowEvent(events.Existing, 1, 0))
	rec.live(events.Header{Seq: 2, Epoch: 1, Phase: end, After: 3}, at(0))
	rec.active(1, -1)
	rec.live(events.Header{Seq: 3, Epoch: 1}, at(0.1)) // 2 does not come
	rec.active(1, -1)
	rec.c.Advance(at(4.9))
	rec.active(1, -1)
	rec.c.Advance(at(5.1))
	rec.active(1, 1)
	if a := rec.account(); !a.Approximate {
		t.Errorf("it is not marked approximate: %+v", a)
	}
	rec.live(events.Header{Seq: 2, Epoch: 1}, at(6), flowEvent(events.Destroy, 1, 0)) // or late
	rec.active(1, 0)
	if a := rec.account(); a.Approximate {
		t.Errorf("it is still marked approximate: %+v", a)
	}
}

func TestEpochOverdue(t *testing.T) {
	rec := newReceiver(t, Config{})
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: whole}, day, flowEvent(events.Existing, 1, 0))
	rec.live(events.Header{Seq: 2, Epoch: 2, Phase: begin}, day, flowEvent(events.Existing, 1, 0)) // its end does not come
	rec.c.Advance(day + int64(29*time.Second))
	if a := rec.account(); a.Approximate || !a.Pending {
		t.Errorf("account is %+v", a)
	}
	rec.c.Advance(day + int64(31*time.Second))
	if a := rec.account(); !a.Approximate {
		t.Errorf("account is %+v", a)
	}
	rec.live(events.Header{Seq: 4, Epoch: 2, Phase: abort}, day)
	if a := rec.account(); a.Approximate {
		t.Errorf("account is %+v", a)
	}
}

func TestEpochOfLateListener(t *testing.T) {
	rec := newReceiver(t, Config{})
	// The stream has been trimmed: the dump is there, its live batches are not.
	rec.live(events.Header{Seq: 40, Epoch: 1}, day, flowEvent(events.Destroy, 1, 0))
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: begin, After: 10}, day, flowEvent(events.Existing, 1, 0))
	rec.live(events.Header{Seq: 2, Epoch: 1, Phase: end, After: 20}, day, flowEvent(events.Existing, 2, 0))
	rec.c.Advance(day + int64(time.Minute))
	rec.active(2, -1)
	rec.live(events.Header{Seq: 3, Epoch: 2, Phase: whole, After: 40}, day, flowEvent(events.Existing, 2, 0))
	rec.active(2, 1)
	if a := rec.account(); a.Approximate {
		t.Errorf("account is %+v", a)
	}
}

func TestEpochLoss(t *testing.T) {
	rec := newReceiver(t, Config{})
	rec.live(events.Header{Seq: 1, Lost: 5}, day)
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: whole, After: 1, Lost: 5}, day)
	if a := rec.account(); !a.ActiveKnown || a.Approximate {
		t.Errorf("what was lost before the dump does not matter: %+v", a)
	}
	rec.live(events.Header{Seq: 2, Epoch: 1, Lost: 6}, day)
	if a := rec.account(); !a.Approximate {
		t.Errorf("what was lost since matters: %+v", a)
	}
	rec.live(events.Header{Seq: 2, Epoch: 2, Phase: whole, After: 2, Lost: 6}, day)
	if a := rec.account(); a.Approximate {
		t.Errorf("a dump mends it: %+v", a)
	}
	rec.live(events.Header{Seq: 4, Epoch: 2, Lost: 6}, day)
	if a := rec.account(); !a.Approximate {
		t.Errorf("a missing batch matters: %+v", a)
	}
}

func TestEpochOfNewBoot(t *testing.T) {
	rec := newReceiver(t, Config{})
	a, b := events.Boot{1}, events.Boot{2}
	rec.live(events.Header{Boot: a, Seq: 1, Epoch: 7, Phase: whole}, day, flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 2, 0))
	rec.live(events.Header{Boot: b, Seq: 1}, day, flowEvent(events.New, 3, 0))
	rec.active(1, 1)
	rec.active(3, 0)
	if acc := rec.account(); !acc.Approximate || acc.Epoch != 7 {
		t.Errorf("account is %+v", acc)
	}
	rec.live(events.Header{Boot: a, Seq: 1, Epoch: 7}, day, flowEvent(events.Destroy, 2, 0)) // a late one of the old run
	rec.active(2, 0)
	rec.live(events.Header{Boot: b, Seq: 1, Epoch: 1, Phase: whole, After: 1}, day, flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 3, 0))
	rec.active(3, 1)
	if acc := rec.account(); acc.Approximate || acc.Epoch != 1 || acc.Active != 2 {
		t.Errorf("account is %+v", acc)
	}
	rec.live(events.Header{Boot: a, Seq: 2, Epoch: 7}, day, flowEvent(events.Destroy, 1, 0)) // now it is of no use
	rec.active(1, 1)
}

func TestForget(t *testing.T) {
	rec := newReceiver(t, Config{})
	rec.live(events.Header{Seq: 1, Epoch: 1, Phase: whole}, day, flowEvent(events.Existing, 1, 0))
	rec.live(events.Header{Seq: 1, Epoch: 1}, day, flowEvent(events.New, 1, 0))
	b := events.Batch{}
	var d events.Decoder
	if err := d.Decode(rec.encode(events.Header{Seq: 1, Epoch: 1, Phase: whole}, flowEvent(events.Existing, 1, 0)), &b); err != nil {
		t.Fatal(err)
	}
	if _, err := rec.c.ApplySnapshot("fw-b", &b, day); err != nil {
		t.Fatal(err)
	}
	total := func() uint64 { n, _ := rec.c.Value(activeBySrc, Fleet, realmDefault, source(1), 0); return n }
	if n := total(); n != 3 {
		t.Errorf("%d active, want 3", n)
	}
	rec.c.Forget("fw-a")
	rec.c.Forget("fw-nobody")
	if n := total(); n != 1 {
		t.Errorf("%d active without fw-a, want 1", n)
	}
	if got := rec.c.Shares(activeBySrc, "default", source(1), 0); len(got) != 1 || got["fw-b"] != 1 {
		t.Errorf("shares are %v", got)
	}
	if _, ok := rec.c.Account("fw-a"); ok || len(rec.c.Firewalls()) != 1 {
		t.Error("fw-a still has an account")
	}
	if n, ok := rec.c.Value(Set{Metric: Opened}, Fleet, realmDefault, source(1), time.Second); n != 1 || !ok {
		t.Errorf("its events leave the fleet's window as they expire, not before: %d, %v", n, ok)
	}
}

// TestShort: addresses that had to go with what they held make the count short,
// and not approximate: another resync would not mend it before there is room.
func TestShort(t *testing.T) {
	const most = 100
	rec := newReceiver(t, Config{MaxKeys: most})
	dump := func(seq uint64, epoch uint32, n int) {
		var rows []events.Event
		for i := range n {
			e := flowEvent(events.Existing, 0, 0)
			e.Orig.Src.Lo += uint64(i) << 8
			rows = append(rows, e)
		}
		rec.live(events.Header{Seq: uint64(epoch), Epoch: epoch, Phase: whole, After: seq}, day, rows...)
		rec.live(events.Header{Seq: seq + 1, Epoch: epoch}, day)
	}
	is := func(short, room bool) {
		t.Helper()
		if a := rec.account(); !a.ActiveKnown || a.Approximate || a.Short != short || rec.c.Room() != room {
			t.Errorf("account is %+v, room %v, want short %v, room %v", a, rec.c.Room(), short, room)
		}
	}
	rec.live(events.Header{Seq: 1, Epoch: 0}, day)
	dump(1, 1, most/2)
	is(false, true)
	dump(2, 2, 2*most)
	is(true, false)
	// The last dump begins when the table has emptied.
	rec.live(events.Header{Seq: 3, Epoch: 3, Phase: whole, After: 3}, day)
	rec.live(events.Header{Seq: 4, Epoch: 3}, day)
	for i := range 100 {
		rec.c.Advance(day + int64(i)*int64(time.Second))
	}
	is(false, true)
}

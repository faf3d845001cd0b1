package count

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestSequence(t *testing.T) {
	for _, c := range []struct {
		name string
		in   []uint64
		want []verdict
	}{
		{"in order", []uint64{1, 2, 3}, []verdict{fresh, fresh, fresh}},
		{"twice", []uint64{1, 1, 2, 1, 2}, []verdict{fresh, duplicate, fresh, duplicate, duplicate}},
		{"late", []uint64{1, 3, 2, 2}, []verdict{fresh, fresh, fresh, duplicate}},
		{"joined late", []uint64{100, 99, 99, 101}, []verdict{fresh, fresh, duplicate, fresh}},
		{"far ahead", []uint64{1, 1 << 40, 1, 1<<40 - 4095, 1<<40 - 4096}, []verdict{fresh, fresh, tooOld, fresh, tooOld}},
		{"around the ring", []uint64{1, 4096, 4097, 1, 2, 2, 4096}, []verdict{fresh, fresh, fresh, tooOld, fresh, duplicate, duplicate}},
		{"a place used again", []uint64{5, 5 + 4096, 5 + 4096}, []verdict{fresh, fresh, duplicate}},
	} {
		var s sequence
		for i, seq := range c.in {
			if got := s.hear(seq); got != c.want[i] {
				t.Errorf("%s: %v: verdict %d is %d, want %d", c.name, c.in, i+1, got, c.want[i])
			}
		}
	}
}

// TestSequenceComplete compares with a set of all that was heard.
func TestSequenceComplete(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 30 {
		var s sequence
		heard := map[uint64]bool{}
		head := 1 + r.Uint64N(50)
		for range 2 + r.IntN(9000) {
			seq := head + r.Uint64N(8)
			if r.IntN(50) == 0 {
				seq = head - min(head-1, r.Uint64N(300))
			}
			if s.hear(seq) == fresh {
				heard[seq] = true
			}
			if r.IntN(3) > 0 {
				head++
			}
		}
		for range 300 {
			to := s.highest - min(s.highest, r.Uint64N(3000))
			from := to - min(to, r.Uint64N(60))
			want := true
			for n := from + 1; n <= to; n++ {
				want = want && heard[n]
			}
			got := s.complete(from, to)
			if got && !want {
				t.Fatalf("seed %d: (%d, %d] is called complete", seed, from, to)
			}
			if want && !got && s.gaveUp <= from {
				t.Fatalf("seed %d: (%d, %d] is called incomplete", seed, from, to)
			}
		}
	}
}

// one makes a receiver and a way to hand it live batches of n NEW events.
func one(t *testing.T) (*receiver, func(boot byte, seq, total uint64, n int, lost uint64, stream time.Duration)) {
	rec := newReceiver(t, Config{})
	return rec, func(boot byte, seq, total uint64, n int, lost uint64, stream time.Duration) {
		t.Helper()
		evs := make([]events.Event, n)
		for i := range evs {
			evs[i] = events.Event{Type: events.New, Time: int64(stream), Orig: events.Tuple{Src: events.Addr{Lo: 1}}}
		}
		rec.live(events.Header{Boot: events.Boot{boot}, Seq: seq, Total: total, Lost: lost, Sent: int64(stream), Clean: true}, day+int64(stream), evs...)
	}
}

// live hands a live batch of fw-a to the counter.
func (r *receiver) live(h events.Header, stream int64, evs ...events.Event) []Crossing {
	r.t.Helper()
	return r.deliver(message{"fw-a", h.Phase != events.Live, r.encode(h, evs...), stream})
}

func (r *receiver) encode(h events.Header, evs ...events.Event) []byte {
	r.t.Helper()
	h.Firewall = "fw-a"
	if h.Realm == "" {
		h.Realm = "default"
	}
	var w events.BatchWriter
	for i := range evs {
		if err := w.Append(&evs[i]); err != nil {
			r.t.Fatal(err)
		}
	}
	data, err := w.Encode(&h)
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

func (r *receiver) account() Account {
	r.t.Helper()
	a, ok := r.c.Account("fw-a")
	if !ok {
		r.t.Fatal("fw-a has no account")
	}
	return a
}

// TestOpened: of what a batch has, the new flows, once.
func TestOpened(t *testing.T) {
	rec := newReceiver(t, Config{})
	evs := make([]events.Event, 6)
	for i := range evs {
		evs[i] = events.Event{Type: []events.Type{events.New, events.New, events.Existing, events.Destroy, events.Destroy, events.New}[i], Zone: uint16(i / 5), Orig: events.Tuple{Src: events.Addr{Lo: 1}}}
	}
	for range 2 { // the second time it is a duplicate
		rec.live(events.Header{Boot: events.Boot{1}, Seq: 1, Total: 6, Clean: true}, day, evs...)
	}
	if a := rec.account(); a.Opened != 3 || a.Events != 6 || a.Duplicates != 1 {
		t.Errorf("account is %+v", a)
	}
}

func TestMissing(t *testing.T) {
	rec, send := one(t)
	want := func(missing, events, duplicates uint64) {
		t.Helper()
		if a := rec.account(); a.Missing != missing || a.Events != events || a.Duplicates != duplicates {
			t.Errorf("%d missing, %d events, %d duplicates, want %d, %d, %d", a.Missing, a.Events, a.Duplicates, missing, events, duplicates)
		}
	}
	send(1, 5, 100, 10, 0, 1*time.Second) // joined late: no loss
	want(0, 10, 0)
	send(1, 7, 117, 3, 0, 2*time.Second) // 6, with 7 events, is not here
	want(7, 13, 0)
	if !rec.c.Lossy(Place{Realm: "default"}, 10*time.Second) {
		t.Error("not lossy with a gap")
	}
	send(1, 7, 117, 3, 0, 2*time.Second)
	want(7, 13, 1)
	send(1, 6, 110, 7, 0, 3*time.Second) // it was late
	want(0, 20, 1)
	if rec.c.Lossy(Place{Realm: "default"}, 10*time.Second) {
		t.Error("lossy although the gap has closed")
	}
	send(1, 4, 90, 10, 0, 3*time.Second) // from before it joined
	want(0, 30, 1)
	send(2, 1, 0, 5, 0, 4*time.Second) // another boot numbers anew
	want(0, 35, 1)
	send(2, 3, 9, 1, 0, 5*time.Second)
	want(4, 36, 1)
	send(1, 9, 125, 1, 0, 5*time.Second) // and the old one has a gap too
	want(4+5, 37, 1)
	if a := rec.account(); a.Boots != 2 || a.Boot != (events.Boot{2}) || a.Seq != 3 {
		t.Errorf("account is %+v", a)
	}
}

func TestLost(t *testing.T) {
	rec, send := one(t)
	send(1, 1, 0, 1, 0, 1*time.Second)
	send(1, 3, 2, 1, 40, 3*time.Second)
	send(1, 2, 1, 1, 25, 4*time.Second) // late, so it knows less
	if a := rec.account(); a.Lost != 40 || a.LastLoss != day+3e9 {
		t.Errorf("lost %d at %d, want 40 at 3 s", a.Lost, a.LastLoss-day)
	}
	send(2, 1, 0, 1, 2, 5*time.Second)
	if a := rec.account(); a.Lost != 42 {
		t.Errorf("lost %d over two boots, want 42", a.Lost)
	}
	lossy := func(w time.Duration) bool { return rec.c.Lossy(Place{Realm: "default", Firewall: "fw-a"}, w) }
	rec.c.Advance(day + int64(14*time.Second))
	if !lossy(10*time.Second) || lossy(8*time.Second) {
		t.Errorf("9 s after a loss: lossy within 10 s %v, within 8 s %v", lossy(10*time.Second), lossy(8*time.Second))
	}
	if rec.c.Lossy(Place{Realm: "elsewhere"}, time.Hour) {
		t.Error("another realm is lossy too")
	}
}

func TestRivals(t *testing.T) {
	type step struct {
		boot   byte
		sent   time.Duration // true time
		stored time.Duration
	}
	for name, c := range map[string]struct {
		steps []step
		want  bool
	}{
		"one producer":                  {[]step{{1, 0, 0}, {1, time.Second, time.Second}, {1, 9 * time.Second, 9 * time.Second}}, false},
		"a restart":                     {[]step{{1, 0, 0}, {1, 4 * time.Second, 4 * time.Second}, {2, 5 * time.Second, 5 * time.Second}, {2, 9 * time.Second, 9 * time.Second}}, false},
		"a late batch of the old run":   {[]step{{1, 0, 0}, {2, 5 * time.Second, 5 * time.Second}, {2, 8 * time.Second, 8 * time.Second}, {1, 4 * time.Second, 9 * time.Second}}, false},
		"a restart that overlaps a bit": {[]step{{1, 0, 0}, {2, 4 * time.Second, 4 * time.Second}, {1, 4500 * time.Millisecond, 4500 * time.Millisecond}, {2, 9 * time.Second, 9 * time.Second}}, false},
		"two producers":                 {[]step{{1, 0, 0}, {2, 1 * time.Second, 1 * time.Second}, {1, 3 * time.Second, 3 * time.Second}, {2, 4 * time.Second, 4 * time.Second}}, true},
		"long ago":                      {[]step{{1, 0, 0}, {2, 1 * time.Second, 1 * time.Second}, {1, 3 * time.Second, 3 * time.Second}, {2, 90 * time.Second, 90 * time.Second}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			rec := newReceiver(t, Config{})
			seq := map[byte]uint64{}
			for _, s := range c.steps {
				seq[s.boot]++
				clock := int64(s.sent) + int64(s.boot)*1e12
				rec.live(events.Header{Boot: events.Boot{s.boot}, Seq: seq[s.boot], Sent: clock, Clean: s.sent == s.stored}, day+int64(s.stored))
			}
			if got := rec.account().Rivals; got != c.want {
				t.Errorf("rivals: %v, want %v", got, c.want)
			}
		})
	}
}

func TestBootsAreBounded(t *testing.T) {
	rec, send := one(t)
	for i := range 50 {
		at := time.Duration(i) * time.Second
		send(byte(i+1), 1, 0, 2, 1, at)
		send(byte(i+1), 3, 3, 2, 1, at)
	}
	f := rec.c.firewalls["fw-a"]
	if len(f.boots) > maxBoots {
		t.Errorf("%d boots are kept", len(f.boots))
	}
	if a := rec.account(); a.Boots != 50 || a.Lost != 50 || a.Missing != 50 || a.Events != 200 {
		t.Errorf("account is %+v", a)
	}
}

func TestRefused(t *testing.T) {
	rec := newReceiver(t, Config{MaxFirewalls: 2})
	b := &events.Batch{Header: events.Header{Realm: "default", Seq: 1}}
	apply := func(firewall string, change func(*events.Batch), snapshot bool) error {
		c := *b
		change(&c)
		if snapshot {
			_, err := rec.c.ApplySnapshot(firewall, &c, day)
			return err
		}
		_, err := rec.c.Apply(firewall, &c, day)
		return err
	}
	for name, c := range map[string]struct {
		change   func(*events.Batch)
		snapshot bool
		want     string
	}{
		"a snapshot among live batches": {func(b *events.Batch) { b.Phase = events.SnapshotPart }, false, "wrong subject"},
		"a live batch among snapshots":  {func(*events.Batch) {}, true, "wrong subject"},
		"no sequence":                   {func(b *events.Batch) { b.Seq = 0 }, false, "without a sequence"},
		"totals without end":            {func(b *events.Batch) { b.Total, b.Count = 1<<64-1, 1 }, false, "a total of"},
	} {
		if err := apply("fw-a", c.change, c.snapshot); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
	if a := rec.account(); a.Refused != 4 || a.Batches != 0 {
		t.Errorf("account is %+v", a)
	}
	rec.c.Refuse("fw-a")
	if a := rec.account(); a.Refused != 5 {
		t.Errorf("%d refused, want 5", a.Refused)
	}
	if err := apply("fw.b", func(*events.Batch) {}, false); err == nil || !strings.Contains(err.Error(), "firewall name") {
		t.Errorf("a bad name: %v", err)
	}
	if err := apply("fw-b", func(*events.Batch) {}, false); err != nil {
		t.Error(err)
	}
	if err := apply("fw-c", func(*events.Batch) {}, false); err == nil || !strings.Contains(err.Error(), "2 are known already") {
		t.Errorf("a third firewall: %v", err)
	}
	rec.c.Forget("fw-b")
	if err := apply("fw-c", func(*events.Batch) {}, false); err != nil {
		t.Errorf("after one was forgotten: %v", err)
	}
}

func TestZonesAreBounded(t *testing.T) {
	rec := newReceiver(t, Config{})
	var evs []events.Event
	for zone := range uint16(300) {
		evs = append(evs, events.Event{Type: events.New, Zone: zone, Orig: events.Tuple{Src: events.Addr{Lo: 7}}})
	}
	rec.live(events.Header{Seq: 1, Clean: true}, day, evs...)
	if a := rec.account(); a.ZoneEvents != 300-MaxZones-1 {
		t.Errorf("%d events refused, want %d", a.ZoneEvents, 300-MaxZones-1)
	}
	if n := len(rec.c.Places()); n != 2*(MaxZones+1) {
		t.Errorf("%d places, want %d realms with one firewall each", n, MaxZones+1)
	}
	set := Set{Metric: Opened}
	key := prefixOf(maskKey(events.Addr{Lo: 7}, false, 32, 0), &set)
	for _, realm := range []string{"default", "default_z1", "default_z255"} {
		if n, ok := rec.c.Value(set, Fleet, Place{Realm: realm}, key, time.Second); n != 1 || !ok {
			t.Errorf("realm %s: %d, %v", realm, n, ok)
		}
	}
	// A zone that has fallen silent makes room for another.
	rec.c.Advance(day + int64(time.Minute))
	for i := range 100 {
		rec.c.Advance(day + int64(time.Minute) + int64(i)*11e9)
	}
	if n := len(rec.c.Places()); n != 2 {
		t.Errorf("%d places are left, want the realm and its firewall", n)
	}
}

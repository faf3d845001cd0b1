package synth

import (
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestLoad: every flow that ends has begun, as many are open as asked for, and
// addresses stay within their part.
func TestLoad(t *testing.T) {
	for _, ipv6 := range []bool{false, true} {
		l := NewLoad(Config{Firewall: "fw-a", Realm: "default", Sources: Zipf(1000, 1), Destinations: Even(10, 2), First: 50, Count: 100, IPv6: ipv6, Open: 300})
		l.Insert(events.Event{Type: events.New, Proto: 17, IPv6: ipv6, Orig: events.Tuple{Src: events.Addr{Lo: source4 + 50}, Dst: events.Addr{Lo: destination4}}})
		open := map[uint32]bool{}
		var d events.Decoder
		var b events.Batch
		total := 0
		for i := range 20 {
			from := int64(i) * 1e9
			data, n, err := l.Batch(100, from, from+1e9)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Decode(data, &b); err != nil {
				t.Fatal(err)
			}
			want := 100
			if i == 0 {
				want++
			}
			if b.Count != n || n != want {
				t.Fatalf("batch %d has %d events, says %d, want %d", i, b.Count, n, want)
			}
			total += n
			var e events.Event
			for r := b.Events(); r.Next(&e); {
				if source := e.Orig.Src.Lo - source4; source < 50 || source >= 150 || e.IPv6 != ipv6 || e.Time < from || e.Time > from+1e9 {
					t.Fatalf("batch %d: %+v", i, e)
				}
				switch {
				case e.Proto == 17: // inserted
				case e.Type == events.New:
					open[e.ID] = true
				case !open[e.ID]:
					t.Fatalf("batch %d: flow %d ends and has not begun", i, e.ID)
				default:
					delete(open, e.ID)
				}
			}
		}
		if len(open) != 300 && len(open) != 299 {
			t.Errorf("%d flows are open after %d events, want 300, or one less", len(open), total)
		}
	}
}

// TestLoop: what is sent again is a new batch each time, with the times, numbers
// and totals of its load.
func TestLoop(t *testing.T) {
	var loads []*Load
	for _, name := range []string{"fw-a", "fw-b"} {
		loads = append(loads, NewLoad(Config{Firewall: name, Realm: "default", Sources: Even(10, 1), Destinations: Even(10, 2)}))
	}
	loop, err := NewLoop(loads, 5, 7, 1e12, 1e6)
	if err != nil {
		t.Fatal(err)
	}
	if loop.Len() != 6 {
		t.Errorf("%d batches, want those of both firewalls three times", loop.Len())
	}
	var d events.Decoder
	var b events.Batch
	for i := range 20 {
		data, load, at := loop.Next(500)
		if err := d.Decode(data, &b); err != nil {
			t.Fatal(err)
		}
		turn := uint64(i / 2)
		if load != i%2 || b.Firewall != loads[load].cfg.Firewall || b.Seq != turn+1 || b.Total != 7*turn || b.Sent != at || at != 1e12+500*int64(i+1) || b.Base != at-1e6 || !b.Clean {
			t.Errorf("batch %d: of %d at %d: %+v", i, load, at, b.Header)
		}
	}
}

func TestDraw(t *testing.T) {
	count := func(d *Draw) (most int) {
		seen := map[uint32]int{}
		for range 100_000 {
			seen[d.Next()]++
		}
		for n := range seen {
			if n >= 1000 {
				t.Fatalf("%d is not below 1000", n)
			}
			most = max(most, seen[n])
		}
		return most
	}
	if even, zipf := count(Even(1000, 1)), count(Zipf(1000, 1)); even > 200 || zipf < 10_000 {
		t.Errorf("the most frequent came %d and %d times of 100,000", even, zipf)
	}
	d := Even(1000, 1)
	if a, b := d.Share(1), d.Share(2); a.next == b.next || a.next >= drawn || b.next >= drawn {
		t.Errorf("two shares begin at %d and %d", a.next, b.next)
	}
}

package count

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// FuzzApply hands the counter batches that no sane producer sends: every number
// of the header and of the events comes from outside. It must not panic, keep
// what it holds within bounds, and keep its accounts consistent.
func FuzzApply(f *testing.F) {
	step := func(flags byte, n ...uint64) []byte {
		out := []byte{flags}
		for i := range 6 {
			v := uint64(0)
			if i < len(n) {
				v = n[i]
			}
			out = binary.BigEndian.AppendUint64(out, v)
		}
		return out
	}
	const size = 1 + 6*8
	f.Add(step(0x13, 1, 1, 0, 0, 5, 5))
	f.Add(append(step(0x8f, 1, 1, 0, 0, 5, 5), step(0x13, 1, 1, 1<<63, 1<<63, 1<<62, 7)...))
	f.Add(append(step(0x02, 1<<64-1, 3, 1<<64-1, 0, 1<<63, 1<<63-1), step(0xff, 5000, 1<<32-1, 1, 1, 1, 1)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := New(Config{
			Windows: []time.Duration{time.Second, 10 * time.Second}, MaxKeys: 64, MaxFirewalls: 2,
			Levels: []Level{{Set{}, Fleet, time.Second, 2}, {activeBySrc, Firewall, 0, 2}, {Set{Metric: Unreplied, IPv4Bits: 24, Match: MatchPorts(22)}, FleetMax, time.Second, 1}},
		})
		if err != nil {
			t.Fatal(err)
		}
		var w events.BatchWriter
		var d events.Decoder
		var b events.Batch
		for ; len(data) >= size; data = data[size:] {
			number := func(i int) uint64 { return binary.BigEndian.Uint64(data[1+8*i:]) }
			flags := data[0]
			h := events.Header{
				Firewall: "fw", Realm: "default", Boot: events.Boot{flags >> 6}, Seq: number(0), Epoch: uint32(number(1)), Total: number(2),
				Lost: number(3), Sent: int64(number(4)), Clean: flags&1 != 0, After: number(1) >> 32,
			}
			snapshot := flags&2 != 0
			if snapshot {
				h.Phase = events.SnapshotPart | events.Phase(flags>>2&0xe)
			}
			for i := range flags >> 2 & 7 {
				e := events.Event{
					Type: events.Type(1 + (number(5)>>i)%3), Flags: events.Flags(number(5)>>8) & (events.Unheld | events.UnheldBefore), Time: int64(number(5)),
					Zone: uint16(number(5) >> 16), IPv6: number(5)&4 != 0, Orig: events.Tuple{Src: events.Addr{Lo: number(5) >> 60}, DstPort: 22},
				}
				if err := w.Append(&e); err != nil {
					t.Fatal(err)
				}
			}
			out, err := w.Encode(&h)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.Decode(out, &b); err != nil {
				t.Fatal(err)
			}
			name := []string{"fw-a", "fw-b", "fw-c", "no name"}[flags>>4&3]
			apply := c.Apply
			if snapshot {
				apply = c.ApplySnapshot
			}
			_, _ = apply(name, &b, int64(number(4)^number(5))>>1&(1<<62-1))
			if flags&0x20 != 0 {
				c.Advance(c.Now() + int64(number(3)>>34))
			}
			if flags&0xf0 == 0xf0 {
				c.Forget("fw-a")
			}
		}
		for _, a := range c.Firewalls() {
			if a.Active > 0 && !a.ActiveKnown || a.Approximate && !a.ActiveKnown {
				t.Errorf("account is %+v", a)
			}
		}
		s := c.Stats()
		if s.Firewalls > 2 || s.Keys > 3*2*64 {
			t.Errorf("stats are %+v", s)
		}
		for _, p := range c.Places() {
			for m := range metrics {
				set := Set{Metric: m}
				for _, e := range c.Top(set, p, time.Second, 10) {
					if v, ok := c.Value(set, scopeOf(p), p, e.Key, time.Second); v != e.Value || !ok && m != Active {
						t.Errorf("%v %v %v: Value is %d, %v, Top says %d", p, set, e.Key, v, ok, e.Value)
					}
				}
			}
		}
	})
}

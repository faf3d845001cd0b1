package count

import (
	"math/rand/v2"
	"net/netip"
	"testing"
)

// TestSlots: they are the parts of the value, whatever the scope, and end in the slot
// that holds now. (internal/window compares each with its oracle.)
func TestSlots(t *testing.T) {
	compared := 0
	for seed := range uint64(10) {
		s := newOracleScene(t, rand.New(rand.NewPCG(seed, 3)))
		for range 6 {
			s.round(false, false)
		}
		c := s.rec.c
		for _, set := range s.sets {
			for _, place := range c.Places() {
				for _, scope := range []Scope{Fleet, FleetMax} {
					for _, w := range c.windows {
						for _, e := range c.Top(set, place, w, 5) {
							slots, end := c.Slots(set, scope, place, e.Key, w)
							if set.Metric == Active {
								if slots != nil {
									t.Fatalf("seed %d: %+v has slots: %d", seed, set, slots)
								}
								continue
							}
							var sum uint64
							for _, n := range slots {
								sum += n
							}
							want, _ := c.Value(set, scope, place, e.Key, w)
							if slot := int64(w) / 20; sum != want || len(slots) != 20 || end%slot != 0 || end <= c.now || end-slot > c.now {
								t.Fatalf("seed %d: %+v, %v of %v within %v: %d until %d, value %d at %d", seed, set, place, e.Key, w, slots, end, want, c.now)
							}
							compared++
						}
					}
				}
			}
		}
		if slots, _ := c.Slots(s.sets[0], Fleet, Place{Realm: "nowhere"}, netip.MustParsePrefix("198.18.0.7/32"), c.windows[0]); slots != nil {
			t.Errorf("a realm that is none has slots: %d", slots)
		}
	}
	if compared < 1000 {
		t.Errorf("only %d were compared", compared)
	}
}

package count

import (
	"math/rand/v2"
	"testing"

	"github.com/ctfleet/ctfleet/internal/window"
)

func TestGauge(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	g := &gauge{seed: &[2]uint64{r.Uint64(), r.Uint64()}}
	want := map[window.Key][2]int32{}
	peak := 0
	for step := range 200_000 {
		k := window.Key{Lo: r.Uint64N(3000), Tag: uint32(r.IntN(2))}
		d := [2]int32{int32(r.IntN(3) - 1), int32(r.IntN(3) - 1)}
		if step > 150_000 { // in the end everything leaves
			d = [2]int32{-want[k][0], -want[k][1]}
		}
		v := want[k]
		v[0] += d[0]
		v[1] += d[1]
		if want[k] = v; v == ([2]int32{}) {
			delete(want, k)
		}
		if got, ok := g.add(k, d); got != v || !ok {
			t.Fatalf("seed %d, step %d: add gives %v, %v, want %v", seed, step, got, ok, v)
		}
		if step == 100_000 {
			which := r.IntN(2)
			g.clear(which)
			for k, v := range want {
				if v[which] = 0; v == ([2]int32{}) {
					delete(want, k)
				} else {
					want[k] = v
				}
			}
		}
		peak = max(peak, len(g.slots))
		if step%5000 == 0 || step == 199_999 {
			n := 0
			g.each(func(k window.Key, v [2]int32) {
				n++
				if want[k] != v || g.get(k) != v {
					t.Fatalf("seed %d, step %d: %v is %v, want %v", seed, step, k, v, want[k])
				}
			})
			if n != len(want) || n != g.n {
				t.Fatalf("seed %d, step %d: %d keys, it says %d, want %d", seed, step, n, g.n, len(want))
			}
		}
	}
	if len(g.slots) > peak/4 {
		t.Errorf("%d slots for %d keys: memory is not given back (peak %d)", len(g.slots), g.n, peak)
	}
}

func TestGaugeLimit(t *testing.T) {
	g := &gauge{seed: &[2]uint64{1, 2}, limit: 100}
	for i := range uint64(150) {
		if _, ok := g.add(window.Key{Lo: i}, [2]int32{1}); ok != (i < 100) {
			t.Fatalf("key %d: %v", i, ok)
		}
	}
	if v, ok := g.add(window.Key{Lo: 5}, [2]int32{1}); !ok || v[0] != 2 {
		t.Errorf("a key that is known: %v, %v", v, ok)
	}
	if _, ok := g.add(window.Key{Lo: 149}, [2]int32{-1}); ok {
		t.Error("a key that was refused is taken out")
	}
	if g.n != 100 || g.over != 51 {
		t.Errorf("%d keys, %d refused", g.n, g.over)
	}
	g.add(window.Key{Lo: 6}, [2]int32{-1})
	if _, ok := g.add(window.Key{Lo: 149}, [2]int32{1}); !ok {
		t.Error("there is room again, and it is not taken")
	}
}

func TestGaugeTop(t *testing.T) {
	g := &gauge{seed: &[2]uint64{1, 2}}
	for i := range uint64(1000) {
		g.add(window.Key{Lo: i}, [2]int32{int32(i%100) - 10, 1})
	}
	top := g.top(0, 25)
	if len(top) != 25 {
		t.Fatalf("%d rows", len(top))
	}
	for i, e := range top {
		want := window.Entry{Key: window.Key{Lo: uint64(i%10)*100 + 99 - uint64(i/10)}, Count: 89 - uint64(i/10)}
		if e != want {
			t.Errorf("row %d is %v, want %v", i, e, want)
		}
	}
	if n := len(g.top(0, 5000)); n != 890 {
		t.Errorf("%d rows above zero, want 890", n)
	}
}

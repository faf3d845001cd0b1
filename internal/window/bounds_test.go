package window

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"
)

// TestFlood: a flood of sources seen once each, far more than MaxKeys. Heavy keys keep their counts, whenever they came; memory is bounded, and given back.
func TestFlood(t *testing.T) {
	const (
		maxKeys = 20_000
		flood   = 600_000
		heavies = 300
	)
	w := 10 * time.Second
	table := newTable(t, Config{Windows: []time.Duration{w}, Levels: []Level{{w, 400}}, MaxKeys: maxKeys})
	r := rand.New(rand.NewPCG(1, 1))
	now := int64(1e18)
	heavy := func(i int) Key { return Key{Hi: 1, Lo: uint64(i)} }
	counts := make([]uint64, heavies)
	hits := make([]bool, heavies)
	peak := 0
	for i := range flood {
		now += int64(8*time.Second) / flood
		if i%64 == 0 {
			table.Advance(now)
		}
		table.Add(Key{Hi: r.Uint64() | 2, Lo: r.Uint64()}, now, 1)
		// A third is there from the start, another third comes in the middle of the flood, the rest near its end; they reach 400.
		h := i % heavies
		if i >= h%3*flood/3 && counts[h] < 500 {
			counts[h]++
			if table.Add(heavy(h), now, 1) {
				hits[h] = true
			}
		}
		peak = max(peak, table.Stats().Bytes)
	}
	for h, want := range counts {
		if got := table.Count(heavy(h), w, now); got != want || want < 400 {
			t.Fatalf("heavy key %d: count %d, want %d (at least 400)", h, got, want)
		}
		if !hits[h] {
			t.Fatalf("heavy key %d reached its level and was not hot", h)
		}
	}
	s := table.Stats()
	if s.Keys != maxKeys || s.Evicted < flood-2*maxKeys {
		t.Fatalf("after the flood: %+v, want %d keys and the rest evicted", s, maxKeys)
	}
	if most := maxKeys * 100; peak > most {
		t.Errorf("peak %d bytes, want at most %d", peak, most)
	}
	for range 100 {
		now += int64(time.Second)
		table.Advance(now)
	}
	s = table.Stats()
	if s.Keys != 0 || s.Bytes > peak/100 {
		t.Errorf("when all has expired: %+v, want no keys and a hundredth of %d bytes at most", s, peak)
	}
}

// TestEvictSmallest: when no key is small, the lightest go.
func TestEvictSmallest(t *testing.T) {
	const maxKeys = 4000
	w := time.Minute
	table := newTable(t, Config{Windows: []time.Duration{w}, MaxKeys: maxKeys})
	now := int64(1e18)
	table.Advance(now)
	for i := range maxKeys {
		table.Add(Key{Lo: uint64(i)}, now, uint32(10+i))
	}
	for i := range 400 {
		table.Add(Key{Hi: 1, Lo: uint64(i)}, now, 5)
	}
	gone := 0
	for i := range maxKeys {
		if table.Count(Key{Lo: uint64(i)}, w, now) == 0 {
			gone++
			if i > maxKeys/lightShare+maxKeys/100 {
				t.Errorf("key with %d events evicted", 10+i)
			}
		}
	}
	if got := table.Stats().Evicted; int(got) < gone || got != 400 {
		t.Errorf("%d evicted, %d of the first gone, want 400 evicted", got, gone)
	}
}

// TestMemory: what a live key costs, for one window and for eight, when each has an event in most slots.
func TestMemory(t *testing.T) {
	const keys = 5000
	for _, windows := range [][]time.Duration{oneWindow, eightWindows} {
		table := newTable(t, Config{Windows: windows, Levels: levels(windows, 350), MaxKeys: keys})
		r := rand.New(rand.NewPCG(1, 1))
		now := int64(1e18)
		longest := windows[len(windows)-1]
		// The last two minutes at 4 events a second and key; before that so sparsely that it takes no time, yet fills the old slots.
		for now < int64(1e18)+int64(longest) {
			gap := longest / 200
			if left := int64(1e18) + int64(longest) - now; left < int64(2*time.Minute) && len(windows) > 1 || len(windows) == 1 {
				gap = 250 * time.Millisecond
			}
			for range 4 {
				now += int64(gap) / 4
				table.Advance(now)
			}
			for k := range keys {
				table.Add(Key{Lo: uint64(k)}, now-r.Int64N(int64(gap)), 1+uint32(gap/time.Second)*4)
			}
		}
		s := table.Stats()
		perKey := float64(s.Bytes) / float64(s.Keys)
		most := 100 + 40*float64(len(windows)-1)
		t.Logf("%d windows: %.0f bytes per key", len(windows), perKey)
		if s.Keys != keys || perKey > most {
			t.Errorf("%d windows: %d keys, %.0f bytes each, want %d and at most %.0f", len(windows), s.Keys, perKey, keys, most)
		}
	}
}

// TestShrink: memory follows the number of keys down also where keys remain, and histories when keys fall quiet.
func TestShrink(t *testing.T) {
	table := newTable(t, Config{Windows: []time.Duration{time.Second, time.Minute}, MaxKeys: 20_000})
	now := int64(1e18)
	busy := func(keys int) {
		for range 50 {
			now += int64(400 * time.Millisecond)
			table.Advance(now)
			for k := range keys {
				table.Add(Key{Lo: uint64(k)}, now, 20)
			}
		}
	}
	busy(20_000)
	large := table.Stats()
	for range 20 { // two minutes
		busy(1000)
	}
	small := table.Stats()
	if small.Keys != 1000 || small.Bytes > large.Bytes/8 {
		t.Errorf("%+v with 1000 keys, want an eighth of %+v at most", small, large)
	}
}

// TestSmall: a fleet has thousands of tables with a few keys each.
func TestSmall(t *testing.T) {
	const n = 500
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	tables := make([]*Table, n)
	for i := range tables {
		tables[i] = newTable(t, Config{Windows: eightWindows, Levels: levels(eightWindows, 350), MaxKeys: 1 << 20})
		for k := range 5 {
			tables[i].Add(key(k), int64(k), 1)
		}
	}
	each := (heap() - before) / n
	t.Logf("%d bytes", each)
	if each > 8<<10 {
		t.Errorf("a table with 5 keys takes %d bytes, want at most 8 KiB", each)
	}
	runtime.KeepAlive(tables)
}

package window

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestFlood: a flood of keys seen once each, far more than MaxKeys, through one
// member. Heavy keys keep their counts, whenever they came, and so do the keys of
// another member, heavy or not; memory is bounded, and given back.
func TestFlood(t *testing.T) {
	const (
		maxKeys = 20_000
		flood   = 600_000
		heavies = 300
		quiet   = 5000 // keys of the other member: less than his share
	)
	w := 10 * time.Second
	table := newTable(t, Config{Windows: []time.Duration{w}, Levels: []Level{{Window: w, Count: 400}}, MaxKeys: maxKeys})
	table.Join(1)
	r := rand.New(rand.NewPCG(1, 1))
	now := int64(1e18)
	heavy := func(i int) Key { return Key{Hi: 1, Lo: uint64(i)} }
	other := func(i int) Key { return Key{Hi: 3, Lo: uint64(i), Tag: 1} }
	counts := make([]uint64, heavies)
	hits := make([]bool, heavies)
	peak := 0
	for i := range flood {
		now += int64(8*time.Second) / flood
		if i%64 == 0 {
			table.Advance(now)
		}
		table.AddBatch([]Event{{Key: Key{Hi: r.Uint64() | 4, Lo: r.Uint64()}, At: now, N: 1, Series: 1, Gauge: [2]int8{1, 0}}}, nil)
		if i%(flood/quiet) == 0 {
			table.AddBatch([]Event{{Key: other(i / (flood / quiet)), At: now, N: 1, Series: 1, Member: 1, Gauge: [2]int8{1, 0}}}, nil)
		}
		// A third is there from the start, another third comes in the middle of the
		// flood, the rest near its end; they reach 400.
		h := i % heavies
		if i >= h%3*flood/3 && counts[h] < 500 {
			counts[h]++
			if table.plain(heavy(h), now, 1) {
				hits[h] = true
			}
		}
		peak = max(peak, table.Stats().Bytes)
	}
	for h, want := range counts {
		if got := table.Count(heavy(h), 0, table.At(w, now)); got != want || want < 400 {
			t.Fatalf("heavy key %d: count %d, want %d (at least 400)", h, got, want)
		}
		if !hits[h] {
			t.Fatalf("heavy key %d reached its level and was not hot", h)
		}
	}
	for i := range quiet {
		if n := table.Count(other(i), 0, table.At(w, now)); n != 1 {
			t.Fatalf("key %d of the other member counts %d, want 1", i, n)
		}
	}
	if !table.Short(0) || table.Short(1) {
		t.Errorf("short of what they hold: %v and %v, want true and false", table.Short(0), table.Short(1))
	}
	s := table.Stats()
	if s.Keys != maxKeys || s.Evicted < flood-2*maxKeys {
		t.Fatalf("after the flood: %+v, want %d keys and the rest evicted", s, maxKeys)
	}
	if most := maxKeys * 110; peak > most {
		t.Errorf("peak %d bytes, want at most %d", peak, most)
	}
	for m := range Member(2) {
		table.Clear(m, 0)
	}
	if table.Short(0) {
		t.Error("still short after a new census")
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

// TestFloodAfterOthers: the keys of members that were there before a flood, all in
// one place, stay, although no key that may go is near.
func TestFloodAfterOthers(t *testing.T) {
	const maxKeys, others, each = 20_000, 9, 1900 // each less than a tenth
	w := 10 * time.Second
	table := newTable(t, Config{Windows: []time.Duration{w}, MaxKeys: maxKeys})
	table.Join(others)
	now := int64(1e18)
	table.Advance(now)
	for m := range Member(others) {
		for i := range each {
			table.AddBatch([]Event{{Key: Key{Hi: uint64(m), Lo: uint64(i)}, At: now, N: 1, Series: 1, Member: m}}, nil)
		}
	}
	for i := range 100_000 {
		table.AddBatch([]Event{{Key: Key{Hi: others, Lo: uint64(i)}, At: now, N: 1, Series: 1, Member: others}}, nil)
	}
	for m := range Member(others) {
		for i := range each {
			if n := table.Count(Key{Hi: uint64(m), Lo: uint64(i)}, 0, table.At(w, now)); n != 1 {
				t.Fatalf("key %d of member %d counts %d, want 1", i, m, n)
			}
		}
	}
	if s := table.Stats(); s.Keys != maxKeys || s.Evicted != 100_000-(maxKeys-others*each) {
		t.Errorf("%+v", s)
	}
}

// TestEvictSmallest: when no key is small, the lightest go. What a key holds is
// weight too, and so are the events of the second series.
func TestEvictSmallest(t *testing.T) {
	const maxKeys = 4000
	weight := func(i int) int { return 10 + i*7919%maxKeys } // in an order that is not the lines'
	w := time.Minute
	for name, weigh := range map[string]func(*Table, Key, int64, int){
		"first series": func(t *Table, k Key, now int64, n int) { t.plain(k, now, uint32(n)) },
		"second series": func(t *Table, k Key, now int64, n int) {
			t.AddBatch([]Event{{Key: k, At: now, N: uint32(n), Series: 2}}, nil)
		},
		"gauge": func(t *Table, k Key, now int64, n int) {
			for ; n > 0; n -= 100 {
				t.AddBatch([]Event{{Key: k, At: now, Gauge: [2]int8{int8(min(n, 100)), 0}}}, nil)
			}
		},
	} {
		table := newTable(t, Config{Windows: []time.Duration{w}, MaxKeys: maxKeys})
		now := int64(1e18)
		table.Advance(now)
		for i := range maxKeys {
			weigh(table, Key{Lo: uint64(i)}, now, weight(i))
		}
		for i := range 400 {
			table.plain(Key{Hi: 1, Lo: uint64(i)}, now, 5)
		}
		gone, q := 0, table.At(w, now)
		for i := range maxKeys {
			k := Key{Lo: uint64(i)}
			if table.Count(k, 0, q)+table.Count(k, 1, q) == 0 && table.Gauge(k) == 0 {
				gone++
				if weight(i) > maxKeys/lightShare+maxKeys/100 {
					t.Errorf("%s: key of weight %d evicted", name, weight(i))
				}
			}
		}
		if got := table.Stats().Evicted; int(got) < gone || got != 400 {
			t.Errorf("%s: %d evicted, %d of the first gone, want 400 evicted", name, got, gone)
		}
	}
}

// TestEvictShared: keys with several members go with all their shares, and shares
// that go leave their key's total right.
func TestEvictShared(t *testing.T) {
	const maxKeys, members = 500, 7
	w := 10 * time.Second
	table := newTable(t, Config{Windows: []time.Duration{w}, MaxKeys: maxKeys})
	table.Join(members - 1)
	r := rand.New(rand.NewPCG(1, 1))
	now := int64(1e18)
	for range 60_000 {
		now += 20_000
		table.Advance(now)
		k := Key{Lo: uint64(r.IntN(1 + r.IntN(3000)))}
		table.AddBatch([]Event{{Key: k, At: now, N: 1, Series: 1, Member: Member(r.IntN(members)), Gauge: [2]int8{int8(r.IntN(3) - 1), 0}}}, nil)
		if s := table.Stats(); s.Keys > maxKeys || s.Shares > maxKeys {
			t.Fatalf("%+v, want at most %d of either", s, maxKeys)
		}
	}
	shares, lines := 0, 0
	for number := range uint32(table.keys.n) {
		p := table.keys.at(number)
		if p.line().owner != several {
			lines++
			continue
		}
		shares += int(p.gauge().shares)
		sum := int32(0)
		table.GaugeShares(p.line().key(), func(_ Member, v int32) { sum += v })
		if sum != p.gauge().v[0] {
			t.Fatalf("%v: %d held, its shares hold %d", p.line().key(), p.gauge().v[0], sum)
		}
	}
	if shares != table.shares.n || shares == 0 {
		t.Errorf("keys have %d shares, there are %d", shares, table.shares.n)
	}
	for m := range Member(members) {
		lines -= table.Lines(m)
	}
	if lines += table.shares.n; lines != 0 {
		t.Errorf("%d lines more than members have", lines)
	}
}

// TestMemory: what a live key costs, for one window and for eight, when each has an
// event in most slots.
func TestMemory(t *testing.T) {
	const keys = 5000
	for _, windows := range [][]time.Duration{oneWindow, eightWindows} {
		table := newTable(t, Config{Windows: windows, Levels: levels(windows, 350), MaxKeys: keys})
		r := rand.New(rand.NewPCG(1, 1))
		now := int64(1e18)
		longest := windows[len(windows)-1]
		// The last two minutes at 4 events a second and key; before that so
		// sparsely that it takes no time, yet fills the old slots.
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
				table.plain(Key{Lo: uint64(k)}, now-r.Int64N(int64(gap)), 1+uint32(gap/time.Second)*4)
			}
		}
		s := table.Stats()
		perKey := float64(s.Bytes) / float64(s.Keys)
		// The gauge is another count, of 16 bytes, which every key has.
		most := 100 + 16 + 40*float64(len(windows)-1)
		t.Logf("%d windows: %.0f bytes per key", len(windows), perKey)
		if s.Keys != keys || perKey > most {
			t.Errorf("%d windows: %d keys, %.0f bytes each, want %d and at most %.0f", len(windows), s.Keys, perKey, keys, most)
		}
	}
}

// TestShrink: memory follows the number of keys down also where keys remain, and
// histories when keys fall quiet.
func TestShrink(t *testing.T) {
	table := newTable(t, Config{Windows: []time.Duration{time.Second, time.Minute}, MaxKeys: 20_000})
	now := int64(1e18)
	busy := func(keys int) {
		for range 50 {
			now += int64(400 * time.Millisecond)
			table.Advance(now)
			for k := range keys {
				table.plain(Key{Lo: uint64(k)}, now, 20)
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

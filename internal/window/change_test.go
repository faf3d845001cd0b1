package window

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// TestChange gives random tables other windows and levels in the midst of a random
// stream. Windows that stay count as if nothing had happened; new ones never too much,
// and exactly when they have passed; and levels are reported by the new ones at once.
func TestChange(t *testing.T) {
	for range 60 {
		seed := rand.Uint64N(1 << 40)
		if !t.Run(fmt.Sprint(seed), func(t *testing.T) { testChange(t, seed) }) {
			t.Fatalf("failed with seed %d", seed)
		}
	}
}

func testChange(t *testing.T, seed uint64) {
	s := newScene(seed)
	s.advance = true
	table := newTable(t, s.config)
	table.Join(Member(s.members - 1))
	truth := newOracle()
	since := map[time.Duration]int64{} // when windows that came later began
	for round := range 4 {
		for range 400 {
			s.now += s.Int64N(s.step)
			table.Advance(s.now)
			e := s.event()
			longest := slices.Max(s.config.Windows)
			// What is counted is what a window that stays can still see.
			truth.add(e, true)
			hot := table.AddBatch([]Event{e}, nil)
			if round == 0 || len(since) == 0 {
				if s.now-e.At < int64(longest)/2 {
					s.checkHot(t, truth, e, hot)
				}
			}
			if s.IntN(60) == 0 {
				s.census(t, table, truth)
			}
			s.checkChanged(t, table, truth, since)
		}
		for w, began := range since {
			if s.now-began > int64(w)+int64(w)/NumSlots {
				delete(since, w)
			}
		}
		was := s.config
		next := newScene(seed + uint64(round) + 1).config
		if s.IntN(4) == 0 {
			next.Windows = slices.Clone(was.Windows) // other levels only
			next.Levels = nil
		}
		for _, w := range was.Windows {
			if s.IntN(2) == 0 && !slices.Contains(next.Windows, w) && len(next.Windows) < 20 {
				next.Windows = append(next.Windows, w)
				next.Levels = append(next.Levels, Level{Window: w, Count: uint64(1 + s.IntN(50))})
			}
		}
		if err := table.Change(next); err != nil {
			t.Fatal(err)
		}
		s.config = next
		for _, w := range next.Windows {
			if !slices.Contains(was.Windows, w) {
				since[w] = s.now
			}
		}
		for w := range since {
			if !slices.Contains(next.Windows, w) {
				delete(since, w)
			}
		}
	}
}

// checkChanged compares the counts of all keys in all windows.
func (s *scene) checkChanged(t *testing.T, table *Table, truth *oracle, since map[time.Duration]int64) {
	t.Helper()
	k, series := key(s.IntN(s.keys)), Series(s.IntN(int(NumSeries)))
	for _, w := range s.config.Windows {
		got, want := table.Count(k, series, table.At(w, s.now)), truth.count(k, anyone, series, w, s.now)
		began, fresh := since[w]
		fresh = fresh && s.now-began <= int64(w)+int64(w)/NumSlots
		if got > want || got < want && !fresh {
			t.Fatalf("%v in %v (new: %t): %d, want %d", k, w, fresh, got, want)
		}
	}
	if got, want := table.Gauge(k), truth.gauge(k, anyone); got != want {
		t.Fatalf("gauge of %v: %d, want %d", k, got, want)
	}
}

// TestChangeReportsNewLevels: what was over a level before it was one is reported by
// its next event, and what is no level any more is not.
func TestChangeReportsNewLevels(t *testing.T) {
	windows := []time.Duration{sec, 10 * sec}
	table := newTable(t, Config{Windows: windows})
	now := int64(1e18)
	table.Advance(now)
	if table.plain(key(1), now, 50) {
		t.Fatal("hot without a level")
	}
	if err := table.Change(Config{Windows: windows, Levels: []Level{{Window: 10 * sec, Count: 51}}}); err != nil {
		t.Fatal(err)
	}
	if !table.plain(key(1), now, 1) {
		t.Error("51 of 51 are not hot")
	}
	if err := table.Change(Config{Windows: []time.Duration{10 * sec}, Levels: []Level{{Window: 10 * sec, Count: 100}}}); err != nil {
		t.Fatal(err)
	}
	if table.plain(key(1), now, 1) {
		t.Error("52 of 100 are hot")
	}
	if !table.plain(key(1), now, 48) {
		t.Error("100 of 100 are not hot")
	}
	if err := table.Change(Config{Windows: []time.Duration{2 * time.Hour}}); err == nil {
		t.Error("a window of 2 h was taken")
	}
	if n := table.Count(key(1), 0, table.At(10*sec, now)); n != 100 {
		t.Errorf("%d after a change that was refused, want 100", n)
	}
}

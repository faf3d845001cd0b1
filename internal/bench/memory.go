//go:build linux

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
)

// resident is a memory size of a process out of its status, in bytes: VmRSS is what it
// has, VmHWM the most that it had. It is 0 when the process is gone.
func resident(pid int, field string) (bytes int64) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	if _, rest, ok := strings.Cut(string(text), field+":"); ok {
		_, _ = fmt.Sscan(rest, &bytes) // 0 when it is no number
	}
	return bytes << 10
}

// megabytes writes a size for people.
func megabytes(bytes int64) string { return fmt.Sprintf("%.0f MB", float64(bytes)/1e6) }

// benchMemory measures what an address costs that has events in every slot of its windows: four a
// second, for as long as the longest of them reaches.
func benchMemory(ctx context.Context) ([]figure, error) {
	perKey := func(windows ...time.Duration) (float64, error) {
		const keys = 5000
		t, err := window.New(window.Config{Windows: windows, MaxKeys: keys})
		if err != nil {
			return 0, err
		}
		t.Join(0)
		r := rand.New(rand.NewPCG(1, 1))
		const gap = 250 * time.Millisecond
		now := int64(1_800_000_000e9)
		events := make([]window.Event, keys)
		for end := now + int64(windows[len(windows)-1]); now < end && ctx.Err() == nil; now += int64(gap) {
			for k := range events {
				events[k] = window.Event{Key: window.Key{Lo: uint64(k)}, At: now - r.Int64N(int64(gap)), N: 1, Series: 1}
			}
			t.Advance(now)
			t.AddBatch(events, nil)
		}
		s := t.Stats()
		return float64(s.Bytes) / float64(s.Keys), ctx.Err()
	}
	one, err := perKey(countWindows[3])
	if err != nil {
		return nil, err
	}
	all, err := perKey(countWindows...)
	if err != nil {
		return nil, err
	}
	further := (all - one) / float64(len(countWindows)-1)
	const first, more = 100, 40
	return []figure{
		{what: "memory of an address, 4 events a second, first window of a counter set (10 s); its gauge of active flows and its place in the index included", ours: fmt.Sprintf("%.0f B", one), target: fmt.Sprintf("≤ %d B", first), met: one <= first},
		{what: fmt.Sprintf("the same, each further window (%d of them, 1 s to 5 min)", len(countWindows)-1), ours: fmt.Sprintf("%.1f B", further), target: fmt.Sprintf("≤ %d B", more), met: further <= more},
	}, nil
}

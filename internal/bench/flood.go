//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	floodSources = 16_000_000
	floodTime    = time.Minute
	floodOpen    = floodSources / 2 // flows that are open at a time: their timeout is 30 s
	floodEvery   = 400              // one flow in so many is the heavy source's
)

// floodMark is what a spoofed flood did to a counter.
type floodMark struct {
	Peak    int64   `json:"peak"`   // bytes of RSS
	After   int64   `json:"after"`  // when the flood has left every window
	Tables  int     `json:"tables"` // bytes of all counts at the end of the flood
	Heavy   uint64  `json:"heavy"`  // the heavy source's count within 10 s
	Truth   uint64  `json:"truth"`
	Top     bool    `json:"top"` // it is the first in the list
	Evicted uint64  `json:"evicted"`
	Rate    float64 `json:"rate"`  // events per second
	Quiet   int     `json:"quiet"` // addresses of another firewall that are still there
	QuietOf int     `json:"quiet_of"`
}

// floodCounter lets a flood of forged sources through one firewall, beside a quiet
// one, in virtual time.
func floodCounter() error {
	c, err := count.New(newRules(10*time.Second, time.Minute))
	if err != nil {
		return err
	}
	var (
		w, quiet events.BatchWriter
		d        events.Decoder
		b        events.Batch
		m        floodMark
		now      = int64(1_800_000_000e9)
		seqs     = map[string]uint64{}
	)
	apply := func(firewall string, w *events.BatchWriter) error {
		seqs[firewall]++
		data, err := w.Encode(&events.Header{Firewall: firewall, Realm: events.RealmDefault, Seq: seqs[firewall], Sent: now, Clean: true})
		if err != nil {
			return err
		}
		if err := d.Decode(data, &b); err != nil {
			return err
		}
		_, err = c.Apply(firewall, &b, now)
		return err
	}
	const heavy, others = 0x0a00_0001, 20_000
	flow := func(src uint32, at int64) events.Event {
		return events.Event{Type: events.New, Time: at, Proto: 6, Orig: events.Tuple{Src: events.Addr{Lo: uint64(src)}, Dst: events.Addr{Lo: 0xcb007101}, DstPort: 443}}
	}
	gap := int64(floodTime) / floodSources
	start := time.Now()
	// The heavy source is no flood's: so there are a few events more.
	var ours, theirs []int64
	forged := func(i int) uint32 { return 0x8000_0000 | uint32(i)*2654435761&0x7fff_ffff } // distinct: an odd factor permutes 31 bits
	for i := range floodSources {
		now += gap
		e := flow(forged(i), now)
		if err := w.Append(&e); err != nil {
			return err
		}
		if i >= floodOpen { // the flow of half a minute ago ends as it began: without an answer
			e = flow(forged(i-floodOpen), now)
			e.Type = events.Destroy
			if err := w.Append(&e); err != nil {
				return err
			}
		}
		if i%floodEvery == 0 {
			e = flow(heavy, now)
			ours = append(ours, now)
			if err := w.Append(&e); err != nil {
				return err
			}
		}
		if i%(floodSources/others) == 0 {
			e = flow(0x0b00_0000+uint32(i/(floodSources/others)), now)
			theirs = append(theirs, now)
			if err := quiet.Append(&e); err != nil {
				return err
			}
			if err := apply("fw-quiet", &quiet); err != nil {
				return err
			}
		}
		if w.Len() >= countEvents {
			if err := apply("fw-flooded", &w); err != nil {
				return err
			}
		}
	}
	if err := apply("fw-flooded", &w); err != nil {
		return err
	}
	m.Rate = float64(2*floodSources-floodOpen) / time.Since(start).Seconds()
	const window = 10 * time.Second
	// The definition: the slot that holds now and the 19 before it.
	within := func(times []int64, window time.Duration) (n int) {
		slot := int64(window) / 20
		for _, at := range times {
			if at/slot > now/slot-20 {
				n++
			}
		}
		return n
	}
	m.Truth = uint64(within(ours, window))
	key := netip.PrefixFrom(events.Addr{Lo: heavy}.Netip(false), 32)
	place := count.Place{Realm: events.RealmDefault}
	m.Heavy, _ = c.Value(count.Set{}, count.Fleet, place, key, window)
	top := c.Top(count.Set{}, place, window, 1)
	m.Top = len(top) == 1 && top[0].Key == key
	m.QuietOf = within(theirs, time.Minute)
	m.Quiet = len(c.Top(count.Set{}, count.Place{Realm: events.RealmDefault, Firewall: "fw-quiet"}, time.Minute, others))
	s := c.Stats()
	m.Tables, m.Evicted = s.Bytes, s.Evicted
	m.Peak = resident(os.Getpid(), "VmHWM")
	// Time goes on, as ticks of the aggregator.
	for range 1500 {
		now += int64(100 * time.Millisecond)
		c.Advance(now)
	}
	// What the collector finds goes back to the system after its next run. In an
	// aggregator every message makes it run sooner or later.
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		runtime.GC()
		if m.After = resident(os.Getpid(), "VmRSS"); m.After < m.Peak/4 {
			break
		}
	}
	text, err := json.Marshal(m)
	if err == nil {
		fmt.Printf("ready %s\n", text)
	}
	return err
}

// benchFlood has a process of its own count the flood.
func benchFlood(ctx context.Context) ([]figure, error) {
	c, text, err := startSelf(ctx, "-role", roleFlood)
	if err != nil {
		return nil, err
	}
	if err := c.stop(); err != nil {
		return nil, err
	}
	var m floodMark
	if err := json.Unmarshal([]byte(text), &m); err != nil {
		return nil, err
	}
	const most = 512 << 20
	what := fmt.Sprintf("flood of %d M forged sources in a minute through one firewall, each flow ends unanswered after 30 s, --max-keys as by default", floodSources/1_000_000)
	return []figure{
		{what: what + ": resident memory at its most", ours: megabytes(m.Peak), target: "≤ " + megabytes(most), met: m.Peak <= most},
		{what: "the same: of this, all counts", ours: megabytes(int64(m.Tables))},
		{what: "the same: count of a heavy source hidden in it, of the last 10 s; other: the truth, slot by slot", ours: fmt.Sprint(m.Heavy), others: fmt.Sprint(m.Truth), target: "equal, and first in the list", met: m.Heavy == m.Truth && m.Top},
		{what: "the same: addresses of another firewall still counted; other: the truth", ours: fmt.Sprint(m.Quiet), others: fmt.Sprint(m.QuietOf), target: "equal", met: m.Quiet == m.QuietOf},
		{what: "the same: resident memory once the flood has left all windows", ours: megabytes(m.After), target: "≤ a quarter", met: m.After <= m.Peak/4},
		{what: "the same: events counted per second, nearly each of an address that is not there", ours: million(m.Rate / 1e6)},
	}, nil
}

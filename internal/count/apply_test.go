package count

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestCrossings: whatever reaches a level is reported by the call that
// counted the event that reached it, for each scope, and never twice in one
// call.
func TestCrossings(t *testing.T) {
	opened, unreplied := Set{Metric: Opened}, Set{Track: ByDst, Metric: Unreplied}
	ssh := Set{Metric: Opened, Match: MatchProtocol(6, 22)}
	net24 := Set{Metric: Opened, IPv4Bits: 24}
	cfg := Config{Levels: []Level{
		{opened, Fleet, 3 * time.Second, 40}, {opened, Firewall, time.Second, 15}, {opened, FleetMax, 10 * time.Second, 60},
		{unreplied, Fleet, 3 * time.Second, 25}, {ssh, Fleet, time.Second, 9}, {net24, Firewall, 3 * time.Second, 50},
		{activeBySrc, Fleet, 0, 6}, {activeBySrc, Firewall, 0, 4}, {Set{Track: ByDst, Metric: Active}, FleetMax, 0, 10},
	}}
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	rec := newReceiver(t, cfg)
	fleet := []*simulated{newSimulated(t, r, "fw-a", "default", day), newSimulated(t, r, "fw-b", "default", day)}
	reached, quiet := map[Level]int{}, 0
	for round := range 60 {
		var sent []message
		for _, s := range fleet {
			s.round(round%20 == 0) // with a dump to its end
			sent = append(sent, s.take()...)
		}
		slices.SortStableFunc(sent, func(a, b message) int { return int(a.stream - b.stream) })
		for _, m := range sent {
			hot := slices.Clone(rec.deliver(m))
			if len(hot) == 0 {
				quiet++
			}
			type crossing struct {
				level int
				place Place
				key   netip.Prefix
			}
			unique := map[crossing]bool{}
			for _, h := range hot {
				is := crossing{h.Level, h.Place, h.Key}
				l := cfg.Levels[h.Level]
				if v, known := rec.c.Value(l.Set, l.Scope, h.Place, h.Key, l.Window); !known || v != h.Value || v < l.Count || h.At != m.stream || unique[is] {
					t.Fatalf("seed %d: %+v is reported (before: %v), it is %d, %v", seed, h, unique[is], v, known)
				}
				unique[is] = true
			}
			is := &rec.c.firewalls[m.firewall].epochs.shown
			shown := is.epoch != 0 && is.epoch.number() == rec.b.Epoch && is.boot.id == rec.b.Boot
			offset := fleet[slices.IndexFunc(fleet, func(s *simulated) bool { return s.name == m.firewall })].offsets[rec.b.Boot]
			// Which of the batch's keys are at a level now?
			for i, l := range cfg.Levels {
				if m.snapshot && l.Set.Metric != Active {
					continue
				}
				place := Place{Realm: "default"}
				if l.Scope == Firewall {
					place.Firewall = m.firewall
				}
				var e events.Event
				for reader := rec.b.Events(); reader.Next(&e); {
					k, ok := key(l.Set, &e)
					counts := map[Metric]bool{Opened: e.Type == events.New, Unreplied: e.Type == events.Destroy && !e.Replied(), Active: e.Type != events.Destroy && e.Flags == 0 && shown && !m.snapshot}
					if !ok || e.Zone != 0 || !counts[l.Set.Metric] {
						continue
					}
					if happened := e.Time + offset; l.Window > 0 && happened <= rec.c.Now()-int64(l.Window)*19/20 {
						continue // it came too late to raise this count
					}
					value, known := rec.c.Value(l.Set, l.Scope, place, k, l.Window)
					if l.Scope == FleetMax {
						// The event raised its own firewall's count, which need not be the largest.
						value, known = rec.c.Value(l.Set, Firewall, Place{"default", m.firewall}, k, l.Window)
					}
					if !known || value < l.Count {
						continue
					}
					reached[l]++
					if !unique[crossing{i, place, k}] {
						t.Fatalf("seed %d: %v at %v is at %d of %d, and not reported", seed, k, place, value, l.Count)
					}
				}
			}
		}
	}
	for _, l := range cfg.Levels {
		if reached[l] == 0 {
			t.Errorf("seed %d: level %+v was never reached: the test tests nothing of it", seed, l)
		}
	}
	if quiet == 0 {
		t.Errorf("seed %d: every batch was hot", seed)
	}
}

// TestCrossingsWhenShown: a snapshot makes keys hot when it is shown, not before.
func TestCrossingsWhenShown(t *testing.T) {
	rec := newReceiver(t, Config{Levels: []Level{{activeBySrc, Fleet, 0, 3}, {activeBySrc, Firewall, 0, 4}}})
	three := []events.Event{flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 1, 0), flowEvent(events.Existing, 1, 0)}
	if hot := rec.live(events.Header{Seq: 1, Epoch: 1, Phase: begin}, day, three...); len(hot) != 0 {
		t.Errorf("hot before it is shown: %v", hot)
	}
	hot := rec.live(events.Header{Seq: 2, Epoch: 1, Phase: end}, day)
	if want := []Crossing{{0, realmDefault, source(1), 3, day}}; !slices.Equal(hot, want) {
		t.Errorf("hot is %v, want %v", hot, want)
	}
	hot = rec.live(events.Header{Seq: 1, Epoch: 1}, day, flowEvent(events.New, 1, 0), flowEvent(events.New, 2, 0))
	want := []Crossing{{0, realmDefault, source(1), 4, day}, {1, onFirewallA, source(1), 4, day}}
	if !slices.Equal(hot, want) {
		t.Errorf("hot is %v, want %v", hot, want)
	}
	if hot = rec.live(events.Header{Seq: 2, Epoch: 1}, day, flowEvent(events.Destroy, 1, 0)); len(hot) != 0 {
		t.Errorf("hot by a flow's end: %v", hot)
	}
	// A resync that Advance shows, because a live batch did not come.
	rec.live(events.Header{Seq: 3, Epoch: 2, Phase: whole, After: 2}, day, three...)
	rec.live(events.Header{Seq: 4, Epoch: 3, Phase: begin, After: 2}, day, three...)
	rec.live(events.Header{Seq: 5, Epoch: 3, Phase: end, After: 4}, day)
	rec.live(events.Header{Seq: 4, Epoch: 3}, day)
	if hot = rec.c.Advance(day + int64(6*time.Second)); len(hot) != 1 || hot[0].Key != source(1) {
		t.Errorf("hot by Advance: %v", hot)
	}
}

func TestMatch(t *testing.T) {
	tcp22 := events.Event{Proto: 6, Orig: events.Tuple{DstPort: 22}}
	tcp443 := events.Event{Proto: 6, Orig: events.Tuple{DstPort: 443}}
	udp22 := events.Event{Proto: 17, Orig: events.Tuple{DstPort: 22}}
	icmp := events.Event{Proto: 1, Orig: events.Tuple{DstPort: 8 << 8}}
	for _, c := range []struct {
		name string
		m    Match
		want [4]bool
	}{
		{"all", Match{}, [4]bool{true, true, true, true}},
		{"tcp", MatchProtocol(6), [4]bool{true, true, false, false}},
		{"tcp/22", MatchProtocol(6, 22), [4]bool{true, false, false, false}},
		{"tcp/22,443", MatchProtocol(6, 443, 22), [4]bool{true, true, false, false}},
		{"port 22", MatchPorts(22), [4]bool{true, false, true, false}},
		{"port 2048, which is no echo request", MatchPorts(8 << 8), [4]bool{}},
		{"protocol 0", MatchProtocol(0), [4]bool{}},
		{"no ports", MatchPorts(), [4]bool{true, true, true, true}},
	} {
		for i, e := range []events.Event{tcp22, tcp443, udp22, icmp} {
			if got := c.m.takes(e.Proto, e.Orig.DstPort); got != c.want[i] {
				t.Errorf("%s: event %d: %v", c.name, i, got)
			}
		}
	}
	if MatchProtocol(6, 22, 443, 22) != MatchProtocol(6, 443, 22) {
		t.Error("equal conditions are two values")
	}
	if MatchPorts() != (Match{}) {
		t.Error("no condition is not the zero value")
	}
}

func TestMaskKey(t *testing.T) {
	for _, text := range []string{"203.0.113.77/32", "203.0.113.77/24", "203.0.113.77/9", "203.0.113.77/1", "2001:db8:1:2:3:4:5:6/128", "2001:db8:1:2:3:4:5:6/127",
		"2001:db8:1:2:3:4:5:6/65", "2001:db8:1:2:3:4:5:6/64", "2001:db8:1:2:3:4:5:6/48", "2001:db8:1:2:3:4:5:6/1"} {
		p := netip.MustParsePrefix(text)
		set := Set{IPv4Bits: uint8(p.Bits()), IPv6Bits: uint8(p.Bits())}
		if p.Addr().Is6() {
			set.IPv4Bits = 0
		}
		a, ipv6 := events.FromNetip(p.Addr())
		k := maskKey(a, ipv6, p.Bits(), 5)
		if got := prefixOf(k, &set); got != p.Masked() {
			t.Errorf("%s: key is %v, want %v", text, got, p.Masked())
		}
		if back, ok := keyFrom(p, &set, 5); !ok || back != k {
			t.Errorf("%s: from the prefix: %v, %v, want %v", text, back, ok, k)
		}
	}
	if _, ok := keyFrom(netip.MustParsePrefix("203.0.113.0/24"), &Set{}, 5); ok {
		t.Error("a /24 is a key among addresses")
	}
	if k, ok := keyFrom(netip.MustParsePrefix("::ffff:203.0.113.7/128"), &Set{}, 5); !ok || k.Tag != 5<<1 {
		t.Errorf("a mapped address: %v, %v", k, ok)
	}
	if _, ok := keyFrom(netip.Prefix{}, &Set{}, 5); ok {
		t.Error("the zero prefix is a key")
	}
}

func TestUnrepliedShare(t *testing.T) {
	rec := newReceiver(t, Config{})
	share := func(p Place) *float64 { return rec.c.UnrepliedShare(BySrc, p, source(1), time.Second) }
	answered := flowEvent(events.Destroy, 1, 0)
	answered.Status = events.StatusSeenReply
	rec.live(events.Header{Seq: 1, Clean: true}, day, flowEvent(events.New, 1, 0))
	if s := share(realmDefault); s != nil {
		t.Errorf("share is %v before a flow has ended", *s)
	}
	rec.live(events.Header{Seq: 2, Clean: true}, day, flowEvent(events.Destroy, 1, 0), answered, answered, answered)
	for _, p := range []Place{realmDefault, onFirewallA} {
		if s := share(p); s == nil || *s != 0.25 {
			t.Errorf("%v: share is %v, want 0.25", p, s)
		}
	}
	rec.c.Advance(day + int64(2*time.Second))
	if s := share(realmDefault); s != nil {
		t.Errorf("share is %v when none has ended within the window", *s)
	}
}

func TestSample(t *testing.T) {
	rec := newReceiver(t, Config{})
	flow := func(dst byte, proto uint8, port uint16) events.Event {
		e := flowEvent(events.New, 1, 0)
		e.Orig.Dst.Lo, e.Proto, e.Orig.DstPort = 0xcb007100|uint64(dst), proto, port
		return e
	}
	rec.live(events.Header{Seq: 1}, day, flow(1, 6, 443), flow(1, 6, 443), flow(2, 6, 22), flow(1, 17, 53), flow(3, 1, 8<<8), flow(3, 47, 0), flowEvent(events.New, 9, 0))
	peers, ports, size := rec.c.Sample(BySrc, realmDefault, source(1), 2)
	if want := []events.Share{{Value: "203.0.113.1", Count: 3}, {Value: "203.0.113.3", Count: 2}}; !slices.Equal(peers, want) {
		t.Errorf("peers are %v, want %v", peers, want)
	}
	if want := []events.Share{{Value: "tcp/443", Count: 2}, {Value: "icmp/8", Count: 1}}; !slices.Equal(ports, want) {
		t.Errorf("ports are %v, want %v", ports, want)
	}
	if size != 6 {
		t.Errorf("the sample holds %d events of it, want 6", size)
	}
	peers, _, size = rec.c.Sample(ByDst, onFirewallA, netip.MustParsePrefix("203.0.113.0/24"), 9)
	if want := []events.Share{{Value: "192.0.2.1", Count: 6}}; !slices.Equal(peers, want) || size != 6 {
		t.Errorf("peers of the prefix are %v, want %v", peers, want)
	}
	if peers, ports, size = rec.c.Sample(BySrc, Place{"default", "fw-b"}, source(1), 9); peers != nil || ports != nil || size != 0 {
		t.Errorf("another firewall: %v, %v", peers, ports)
	}
	for range 100 {
		rec.live(events.Header{Seq: rec.account().Seq + 1}, day, slices.Repeat([]events.Event{flowEvent(events.New, 2, 0)}, 100)...)
	}
	if n := len(rec.c.realms["default"].recent.flows); n != sampleSize {
		t.Errorf("%d events are kept, want %d", n, sampleSize)
	}
	if peers, _, _ = rec.c.Sample(BySrc, realmDefault, source(1), 9); peers != nil {
		t.Errorf("what was long ago is still there: %v", peers)
	}
}

func TestConfig(t *testing.T) {
	good := Config{Windows: windows, Levels: []Level{{Set{}, Fleet, time.Second, 1}}}
	if _, err := New(good); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"no window":           {func(c *Config) { c.Windows = nil; c.Levels = nil }, "no windows"},
		"a negative window":   {func(c *Config) { c.Windows = []time.Duration{-time.Second}; c.Levels = nil }, "window -1s"},
		"an unknown window":   {func(c *Config) { c.Levels[0].Window = time.Minute }, "level 1: window 1m0s is not kept"},
		"a level of 0":        {func(c *Config) { c.Levels[0].Count = 0 }, "level 1: a count of 0"},
		"an unknown scope":    {func(c *Config) { c.Levels[0].Scope = 9 }, "level 1: unknown scope 9"},
		"an unknown track":    {func(c *Config) { c.Levels[0].Set.Track = 2 }, "unknown track 2"},
		"an unknown metric":   {func(c *Config) { c.Sets = []Set{{Metric: 9}} }, "unknown metric 9"},
		"a long prefix":       {func(c *Config) { c.Sets = []Set{{IPv4Bits: 33}} }, "prefix lengths 33 and 0"},
		"negative keys":       {func(c *Config) { c.MaxKeys = -1 }, "max keys"},
		"negative firewalls":  {func(c *Config) { c.MaxFirewalls = -1 }, "max firewalls -1"},
		"a long IPv6 prefix":  {func(c *Config) { c.Sets = []Set{{IPv6Bits: 129}} }, "129 are beyond"},
		"a level's long mask": {func(c *Config) { c.Levels[0].Set.IPv4Bits = 40 }, "level 1: count: set: prefix"},
	} {
		cfg := good
		cfg.Levels = slices.Clone(good.Levels)
		c.change(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", name, err, c.want)
		}
	}
}

func TestNotKept(t *testing.T) {
	rec := newReceiver(t, Config{})
	rec.live(events.Header{Seq: 1}, day, flowEvent(events.New, 1, 0))
	for name, f := range map[string]func() bool{
		"a set": func() bool {
			_, ok := rec.c.Value(Set{IPv4Bits: 24}, Fleet, realmDefault, source(1), time.Second)
			return ok
		},
		"a window": func() bool { _, ok := rec.c.Value(Set{}, Fleet, realmDefault, source(1), time.Minute); return ok },
		"a metric": func() bool {
			_, ok := rec.c.Value(Set{Metric: 77}, Fleet, realmDefault, source(1), time.Second)
			return ok
		},
		"a prefix": func() bool {
			_, ok := rec.c.Value(Set{}, Fleet, realmDefault, netip.MustParsePrefix("192.0.2.0/24"), time.Second)
			return ok
		},
		"its rows":   func() bool { return rec.c.Top(Set{IPv4Bits: 24}, realmDefault, time.Second, 9) != nil },
		"its shares": func() bool { return rec.c.Shares(Set{IPv4Bits: 24}, "default", source(1), time.Second) != nil },
		"no rows":    func() bool { return rec.c.Top(Set{}, realmDefault, time.Second, 0) != nil },
		"no realm":   func() bool { return rec.c.Top(Set{}, Place{Realm: "x"}, time.Second, 9) != nil },
		"no active": func() bool {
			_, ok := rec.c.Value(activeBySrc, Firewall, Place{"default", "fw-x"}, source(1), 0)
			return ok
		},
		"partial not": func() bool { return !rec.c.Partial(time.Second) },
	} {
		if f() {
			t.Errorf("%s: it is known", name)
		}
	}
	if n, ok := rec.c.Value(Set{}, Firewall, Place{"default", "fw-x"}, source(1), time.Second); n != 0 || !ok {
		t.Errorf("a firewall that has sent nothing: %d, %v, want 0", n, ok)
	}
	rec.c.Advance(day + int64(time.Second))
	if rec.c.Partial(time.Second) || !rec.c.Partial(3*time.Second) {
		t.Error("after a second the window of a second is full, and no other")
	}
	if s := rec.c.Stats(); s.Firewalls != 1 || s.Places != 2 || s.Keys != 2 || s.Bytes == 0 {
		t.Errorf("stats are %+v", s)
	}
}

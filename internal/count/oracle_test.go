package count

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestOracle drives a small fleet through everything at once: duplicates,
// batches late, out of order and lost, outages of the bus, producers restarted, firewalls
// rebooted, guests paused, a stream whose clock jumps, dumps
// under churn, given up and begun anew, two epochs and two subjects out of step.
//
// Windowed
// counts must equal those of an oracle that keeps every event, and, but for a while after a clock was
// disturbed, never be above the truth and at most one slot below; active must
// equal the tables whenever it is not marked approximate, and must be known and
// exact after a last undisturbed dump. A counter that joins late must come to the same
// counts, and one that replays it all, many batches at a time and on two goroutines, to the same
// crossings too, in the same order.
//
// CTFLEET_SEED repeats a run.
func TestOracle(t *testing.T) {
	if s := os.Getenv("CTFLEET_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		runOracle(t, seed)
		return
	}
	runs := 2
	if raceEnabled {
		runs = 1
	}
	for range runs {
		seed := rand.Uint64()
		if !t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { runOracle(t, seed) }) {
			return
		}
	}
}

// scene is one run of it.
type scene struct {
	t     *testing.T
	r     *rand.Rand
	cfg   Config
	sets  []Set
	fleet []*simulated
	rec   *receiver
	truth *oracle

	skew      int64 // of the stream's clock, ns
	now       int64
	disturbed int64               // when a clock last was, or was not known again yet
	cleans    map[events.Boot]int // clean batches of a boot by then
	again     bool                // in this round

	exact, known int
	bounded      int    // comparisons with the truth
	reviewed     int    // keys at a level that a review found
	steps        []step // all that rec went through
	crossed      []Crossing
}

// step is a message or, without one, an advance to now.
type step struct {
	message
	now int64
}

const (
	oracleRounds = 110
	joinRound    = 20 // when a second counter joins
	calmRound    = 35 // from here on clocks are left alone
)

func runOracle(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 0))
	s := newOracleScene(t, r)
	var late *receiver
	for round := range oracleRounds {
		s.changeWindows(round)
		if round < calmRound {
			s.disturbClocks()
		}
		s.round(round == oracleRounds-1, round%5 == 4)
		if t.Failed() {
			t.Fatalf("seed %d, round %d", seed, round)
		}
		if round == joinRound {
			late = newReceiver(t, s.cfg)
			s.steps = append(s.steps, step{})
		}
	}
	if s.exact*5 < s.known || s.bounded == 0 || s.reviewed == 0 {
		t.Errorf("seed %d: active was exact in %d of %d places, %d times counts were compared with the truth, %d keys were at a level: the test tests little", seed, s.exact, s.known, s.bounded, s.reviewed)
	}
	from := slices.IndexFunc(s.steps, func(st step) bool { return st.now == 0 && st.data == nil })
	joined := s.steps[from-1].now
	if s.now-joined < 11e9 {
		t.Fatalf("seed %d: the late counter had %v only", seed, time.Duration(s.now-joined))
	}
	replay(r, late, s.steps[from+1:])
	s.same("joined late", late)
	again := newReceiver(t, s.cfg)
	crossed := replay(r, again, slices.Concat(s.steps[:from], s.steps[from+1:]))
	s.same("replayed", again)
	if !slices.Equal(again.c.Firewalls(), s.rec.c.Firewalls()) {
		t.Errorf("replayed: accounts are\n%+v, were\n%+v", again.c.Firewalls(), s.rec.c.Firewalls())
	}
	if !slices.Equal(crossed, s.crossed) || len(crossed) == 0 {
		t.Errorf("replayed: %d crossings, were %d, or not the same", len(crossed), len(s.crossed))
	}
	if t.Failed() {
		t.Fatalf("seed %d", seed)
	}
}

func newOracleScene(t *testing.T, r *rand.Rand) *scene {
	ssh := Set{Track: BySrc, Metric: Opened, Match: MatchProtocol(6, 22)}
	sshActive := ssh
	sshActive.Metric = Active
	net24 := Set{Track: BySrc, Metric: Opened, IPv4Bits: 24, IPv6Bits: 64}
	net24Active := net24
	net24Active.Metric = Active
	s := &scene{t: t, r: r, sets: []Set{ssh, sshActive, net24, net24Active}, truth: &oracle{seen: map[string]bool{}, clocks: map[events.Boot]*naiveClock{}, all: map[Place][]witnessed{}}}
	s.cfg = Config{Sets: s.sets[:4], Levels: []Level{
		{Set{}, Fleet, 3 * time.Second, 30}, {Set{Track: ByDst}, Firewall, time.Second, 15}, {net24, FleetMax, 10 * time.Second, 100}, {activeBySrc, Fleet, 0, 9},
	}}
	for _, track := range []Track{BySrc, ByDst} {
		for m := range metrics {
			s.sets = append(s.sets, Set{Track: track, Metric: m})
		}
	}
	s.rec = newReceiver(t, s.cfg)
	s.now = time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC).UnixNano()
	for _, f := range []struct{ name, realm string }{{"fw-a", "default"}, {"fw-b", "default"}, {"fw-c", "lab"}} {
		s.fleet = append(s.fleet, newSimulated(t, r, f.name, f.realm, s.now))
	}
	return s
}

// changeWindows adds windows and takes them away again: of the others that must change
// nothing.
func (s *scene) changeWindows(round int) {
	cfg := s.cfg
	cfg.Windows = windows
	switch round % 8 {
	case 3:
		cfg.Windows = append(slices.Clone(windows), 7*time.Second, 61*time.Second)
	case 6: // as they are
	default:
		return
	}
	s.rec.become(cfg)
}

func (s *scene) firewall(name string) *simulated {
	return s.fleet[slices.IndexFunc(s.fleet, func(f *simulated) bool { return f.name == name })]
}

// round is a stretch of time at whose end everything that was sent has
// arrived, in an order of its own.
func (s *scene) round(last, check bool) {
	var sent []message
	for _, f := range s.fleet {
		f.round(last)
		sent = append(sent, f.take()...)
	}
	disturb(s.r, &sent, last, s.fleet)
	for _, m := range sent {
		m.stream += s.skew
		s.crossed = append(s.crossed, s.rec.deliver(m)...)
		s.steps = append(s.steps, step{message: m})
		s.truth.take(m, &s.rec.b, s.firewall(m.firewall), s.skew)
	}
	s.now = max(s.now, s.rec.c.Now())
	for _, f := range s.fleet {
		s.now = max(s.now, f.now+s.skew)
	}
	s.crossed = append(s.crossed, s.rec.c.Advance(s.now)...)
	s.steps = append(s.steps, step{now: s.now})
	if s.again || s.settling() {
		s.disturbed, s.again = s.now, false
	}
	if check || last {
		s.check(last)
	}
	// The oracle's memory is its whole cost.
	for p := range s.truth.all {
		s.truth.all[p] = slices.DeleteFunc(s.truth.all[p], func(w witnessed) bool { return max(w.at, w.really) < s.now-11e9 })
	}
}

// disturbClocks lets one do now and then what clocks do.
func (s *scene) disturbClocks() {
	switch s.r.IntN(15) {
	case 0:
		s.fleet[s.r.IntN(len(s.fleet))].pause(1 + s.r.Int64N(4e9))
	case 1:
		s.skew += s.r.Int64N(2e9) - 5e8
	case 2:
		s.fleet[s.r.IntN(len(s.fleet))].reboot()
		return // the clock of another boot
	default:
		return
	}
	s.again, s.cleans = true, map[events.Boot]int{}
	for _, f := range s.fleet {
		s.cleans[f.boot] = 0
		if k := s.truth.clocks[f.boot]; k != nil {
			s.cleans[f.boot] = len(k.clean)
		}
	}
}

// settling reports whether a clock that was disturbed may still be taken for what
// it was: that takes eight batches.
func (s *scene) settling() bool {
	return slices.ContainsFunc(s.fleet, func(f *simulated) bool {
		before, was := s.cleans[f.boot]
		k := s.truth.clocks[f.boot]
		return was && (k == nil || len(k.clean) < before+8)
	})
}

// check compares everything with the oracle.
func (s *scene) check(last bool) {
	s.review()
	for _, set := range s.sets {
		for _, p := range s.rec.c.Places() {
			if set.Metric == Active {
				if active(s.t, s.rec.c, set, p, s.fleet, last) {
					s.exact++
				}
				s.known++
				continue
			}
			for _, w := range windows {
				slot := int64(w / 20)
				from := floorTo(s.now, slot) - 19*slot - 1
				want := s.truth.since(set, p, from, s.now, false)
				compare(s.t, s.rec.c, set, p, w, want, want)
				if s.now-s.disturbed > 11e9 {
					s.bounded++
					compare(s.t, s.rec.c, set, p, w, s.truth.since(set, p, from, s.now, true), s.truth.since(set, p, s.now-int64(w), s.now, true))
				}
			}
		}
	}
}

// replay lets a counter go through steps, many at a time and on two goroutines.
func replay(r *rand.Rand, rec *receiver, steps []step) (crossed []Crossing) {
	commit := func() {
		var wg sync.WaitGroup
		for lane := range rec.c.Lanes() {
			wg.Go(func() { rec.c.Run(lane) })
		}
		wg.Wait()
		crossed = append(crossed, rec.c.Commit()...)
	}
	left := 1
	for _, st := range steps {
		if st.data == nil {
			commit()
			crossed = append(crossed, rec.c.Advance(st.now)...)
			continue
		}
		rec.admit(st.message)
		if left--; left == 0 {
			commit()
			left = 1 + r.IntN(12)
		}
	}
	commit()
	return crossed
}

// same expects another counter to have the same counts.
func (s *scene) same(what string, other *receiver) {
	s.t.Helper()
	if !slices.Equal(s.rec.c.Places(), other.c.Places()) {
		s.t.Errorf("%s: places are %v, not %v", what, other.c.Places(), s.rec.c.Places())
	}
	for _, set := range s.sets {
		for _, p := range s.rec.c.Places() {
			for _, w := range windows {
				if got, want := other.c.Top(set, p, w, 1<<20), s.rec.c.Top(set, p, w, 1<<20); !slices.Equal(got, want) {
					s.t.Errorf("%s: %v %v in %v: %v, want %v", what, p, set, w, got, want)
				}
			}
		}
	}
}

// review expects a look at every key to find what is at a level, and nothing else.
func (s *scene) review() {
	s.t.Helper()
	c := s.rec.c
	want := map[Crossing]bool{}
	for i, l := range c.levels {
		for _, p := range c.Places() {
			if (p.Firewall == "") == (l.Scope == Firewall) {
				continue
			}
			for _, e := range c.Top(l.Set, p, l.Window, 1<<20) {
				if v, _ := c.Value(l.Set, l.Scope, p, e.Key, l.Window); v >= l.Count {
					want[Crossing{i, p, e.Key, v, c.Now()}] = true
				}
			}
		}
	}
	got := c.Review()
	for _, g := range got {
		if !want[g] {
			s.t.Errorf("review: %+v is not at its level, or comes twice", g)
		}
		delete(want, g)
	}
	for g := range want {
		s.t.Errorf("review: %+v is left out", g)
	}
	s.reviewed += len(got)
}

// round lets a firewall live for a while.
func (s *simulated) round(last bool) {
	r := s.r
	if !last && r.IntN(20) == 0 {
		s.restart()
	}
	if !last {
		s.stalled = s.seq > 2 && r.IntN(5) == 0
	}
	lossy := !last && r.IntN(15) == 0
	for range 1 + r.IntN(30) {
		s.now += r.Int64N(30e6)
		for range r.IntN(12) {
			zone := uint16(0)
			if r.IntN(8) == 0 {
				zone = 7
			}
			typ := events.New
			if r.IntN(20) == 0 {
				typ = events.Existing
			}
			src := netip.AddrFrom4([4]byte{198, 18, byte(r.IntN(3)), byte(r.IntN(6))})
			dst := netip.AddrFrom4([4]byte{203, 0, 113, byte(r.IntN(4))})
			if r.IntN(4) == 0 {
				src = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: byte(r.IntN(2)), 15: byte(r.IntN(4))})
				dst = netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: 0x53})
			}
			s.open(src, dst, []uint16{22, 443}[r.IntN(2)], zone, typ)
		}
		for range r.IntN(12) {
			s.end()
		}
		s.read(r.IntN(20))
		if lossy && r.IntN(4) == 0 {
			s.drop(r.IntN(5))
		}
		if r.IntN(3) == 0 {
			s.send()
		}
		switch {
		case !s.begun && r.IntN(10) == 0, s.begun && r.IntN(80) == 0:
			s.begin()
		case s.begun && r.IntN(3) == 0:
			s.row(r.IntN(40))
		case s.begun && len(s.rows) == 0:
			s.finish()
		}
	}
	s.read(len(s.queue))
	s.send()
	if last {
		s.stalled = false
		s.begin()
		s.finish()
	}
}

// disturb lets messages arrive late, twice, out of order, or not at all.
func disturb(r *rand.Rand, sent *[]message, last bool, fleet []*simulated) {
	var out []message
	for i, m := range *sent {
		s := fleet[slices.IndexFunc(fleet, func(s *simulated) bool { return s.name == m.firewall })]
		if s.stalled {
			m.stream = max(m.stream, s.now+s.delay) // all of a stall arrives at its end
		}
		// A loss is known by what follows it.
		followed := slices.ContainsFunc((*sent)[i+1:], func(n message) bool { return n.firewall == m.firewall && !n.snapshot })
		if !last && followed && r.IntN(200) == 0 {
			continue
		}
		out = append(out, m)
		if r.IntN(10) == 0 {
			out = append(out, m)
		}
	}
	if !last || r.IntN(2) == 0 {
		r.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	}
	*sent = out
}

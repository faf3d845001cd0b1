package rule_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/rule"
)

const epoch = int64(1_750_000_000_000_000_000)

// A life drives an engine by hand: values stand until they are changed, and time is
// seconds since epoch.
type life struct {
	*testing.T
	*rule.Engine
	values map[rule.Subject]float64 // missing: not known
}

func newLife(t *testing.T, maxFiring int, rules ...rule.Rule) *life {
	t.Helper()
	for _, r := range rules {
		if err := r.Validate(); err != nil {
			t.Fatal(err)
		}
	}
	e, err := rule.NewEngine(rules, maxFiring)
	if err != nil {
		t.Fatal(err)
	}
	return &life{T: t, Engine: e, values: map[rule.Subject]float64{}}
}

func newFlows(count float64, change func(*rule.Rule)) rule.Rule {
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds = "new-flows", rule.BySrc, rule.New, count, 10
	if change != nil {
		change(&r)
	}
	return r
}

func source(last int) rule.Subject {
	return rule.Subject{Realm: "default", Key: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(last >> 8), byte(last)}), 32)}
}

func at(seconds float64) int64 { return epoch + int64(seconds*1e9) }

func (l *life) lookup(_ int, s rule.Subject) (float64, bool) {
	v, ok := l.values[s]
	return v, ok
}

// observe sets a value and observes it.
func (l *life) observe(seconds float64, s rule.Subject, value float64, want ...string) {
	l.Helper()
	l.values[s] = value
	l.expect(seconds, l.Observe(0, s, value, at(seconds)), want)
}

func (l *life) tick(seconds float64, want ...string) {
	l.Helper()
	l.expect(seconds, l.Tick(at(seconds), l.lookup), want)
}

func (l *life) expect(seconds float64, got []rule.Transition, want []string) {
	l.Helper()
	var said []string
	for _, tr := range got {
		said = append(said, fmt.Sprintf("%v %s %s %v", tr.Kind, tr.Rule.Name, tr.Subject.Key, tr.Value))
		if tr.Updated != at(seconds) || tr.ID == "" || tr.Peak < tr.Value || tr.Started > tr.Updated {
			l.Errorf("at %v s: inconsistent transition %+v", seconds, tr)
		}
	}
	if !slices.Equal(said, want) {
		l.Fatalf("at %v s:\n got %s\nwant %s", seconds, strings.Join(said, "; "), strings.Join(want, "; "))
	}
}

func TestLife(t *testing.T) {
	l := newLife(t, 10, newFlows(100, nil)) // for 0s, recover 30s, clear below 80
	a := source(7)
	l.observe(0, a, 99)
	l.tick(1)
	l.observe(2, a, 100, "fired new-flows 198.18.0.7/32 100")
	l.observe(2.5, a, 190) // a lot more, but said half a second ago
	l.observe(3, a, 200, "updated new-flows 198.18.0.7/32 200")
	l.tick(3.5)
	l.observe(4, a, 210)
	l.observe(5, a, 80, "updated new-flows 198.18.0.7/32 80")
	l.tick(60) // not below 80 % of 100: fires on
	l.observe(61, a, 79.9)
	l.tick(90.9)
	l.observe(90.95, a, 85) // up again: recovering starts over
	l.observe(91, a, 79)
	l.tick(120.9)
	l.tick(121, "resolved new-flows 198.18.0.7/32 79")
	l.tick(200)
	if s := l.Stats(); s != (rule.Stats{}) {
		t.Errorf("after all is over: %+v", s)
	}
}

func TestFor(t *testing.T) {
	l := newLife(t, 10, newFlows(100, func(r *rule.Rule) { r.For, r.Recover = 5*time.Second, 0 }))
	a, b := source(1), source(2)
	l.observe(0, a, 100)
	l.observe(1, b, 500)
	l.tick(4.9)
	l.observe(4.95, a, 99) // below: starts over
	l.observe(5, a, 100)
	l.tick(6, "fired new-flows 198.18.0.2/32 500")
	l.tick(9.9)
	l.observe(10, a, 101, "fired new-flows 198.18.0.1/32 101") // no tick is needed
	l.observe(11, a, 10, "resolved new-flows 198.18.0.1/32 10")
	l.tick(12)
}

// TestUnknown: a value that is not known neither fires nor resolves, and breaks what must last.
func TestUnknown(t *testing.T) {
	l := newLife(t, 10, newFlows(100, func(r *rule.Rule) { r.For, r.Recover = 5*time.Second, 10*time.Second }))
	a := source(1)
	l.observe(0, a, 100)
	delete(l.values, a)
	l.tick(10)
	l.values[a] = 100
	l.tick(11)
	l.tick(15.9)
	l.tick(16, "fired new-flows 198.18.0.1/32 100")
	l.values[a] = 1
	l.tick(20, "updated new-flows 198.18.0.1/32 1")
	delete(l.values, a)
	l.tick(1000)
	l.values[a] = 1
	l.tick(1001)
	l.tick(1010.9)
	l.tick(1011, "resolved new-flows 198.18.0.1/32 1")
}

func TestExcept(t *testing.T) {
	l := newLife(t, 10, newFlows(100, func(r *rule.Rule) {
		r.Except = rule.Prefixes{netip.MustParsePrefix("198.18.0.0/24"), netip.MustParsePrefix("198.18.1.1/32")}
	}))
	l.observe(0, source(7), 1000)
	l.observe(0, source(257), 1000)
	l.observe(0, source(258), 1000, "fired new-flows 198.18.1.2/32 1000")
	// A prefix is not excepted because one of its addresses is.
	wide := rule.Subject{Realm: "default", Key: netip.MustParsePrefix("198.18.1.0/24")}
	l.observe(0, wide, 1000, "fired new-flows 198.18.1.0/24 1000")
}

func TestMaxFiring(t *testing.T) {
	l := newLife(t, 2, newFlows(100, func(r *rule.Rule) { r.Recover = 0 }))
	l.observe(0, source(1), 100, "fired new-flows 198.18.0.1/32 100")
	l.observe(1, source(2), 100, "fired new-flows 198.18.0.2/32 100")
	l.observe(2, source(5), 100, "fired max-firing invalid Prefix 1")
	l.observe(2.1, source(4), 100)
	l.observe(2.2, source(3), 100)
	l.observe(2.3, source(6), 100)
	l.tick(3, "updated max-firing invalid Prefix 4")
	if s := l.Stats(); s != (rule.Stats{Firing: 2, Held: 4}) {
		t.Errorf("%+v, want 2 firing and 4 held", s)
	}
	l.values[source(4)] = 0 // held and over: nobody heard of it
	l.tick(4, "updated max-firing invalid Prefix 3")
	l.values[source(1)] = 0 // the oldest takes its place, with its own start
	l.values[source(6)] = 0
	l.tick(5, "resolved new-flows 198.18.0.1/32 0", "fired new-flows 198.18.0.5/32 100", "updated max-firing invalid Prefix 1")
	for _, f := range l.Firing() {
		if f.Subject == source(5) && f.Started != at(2) {
			t.Errorf("held at 2 s, fired at 5 s, started at %v s", float64(f.Started-epoch)/1e9)
		}
	}
	l.values[source(2)], l.values[source(5)] = 0, 0
	l.tick(6, "resolved new-flows 198.18.0.2/32 0", "resolved new-flows 198.18.0.5/32 0", "fired new-flows 198.18.0.3/32 100", "updated max-firing invalid Prefix 0")
	l.tick(7)
	l.tick(35.9, "updated new-flows 198.18.0.3/32 100") // it is over all the while
	l.tick(36, "resolved max-firing invalid Prefix 0")
	l.values[source(3)] = 0
	l.tick(37, "resolved new-flows 198.18.0.3/32 0")
	if s := l.Stats(); s != (rule.Stats{}) {
		t.Errorf("after all is over: %+v", s)
	}
}

// TestID: an id depends on the rule, the subject and the start, and on nothing else.
func TestID(t *testing.T) {
	fire := func(name string, s rule.Subject, seconds, value float64) string {
		t.Helper()
		e, err := rule.NewEngine([]rule.Rule{newFlows(1e6, func(r *rule.Rule) { r.Name = "other" }), newFlows(100, func(r *rule.Rule) { r.Name = name })}, 5)
		if err != nil {
			t.Fatal(err)
		}
		out := e.Observe(1, s, value, at(seconds))
		if len(out) != 1 || out[0].Kind != rule.Fired {
			t.Fatalf("%+v, want one that fires", out)
		}
		return out[0].ID
	}
	first := fire("a", source(1), 1, 100)
	if again := fire("a", source(1), 1, 170); again != first {
		t.Errorf("the same alert has ids %s and %s", first, again)
	}
	ids := []string{
		first, fire("b", source(1), 1, 100), fire("a", source(2), 1, 100), fire("a", source(1), 2, 100),
		fire("a", rule.Subject{Realm: "lab", Key: source(1).Key}, 1, 100),
		fire("a", rule.Subject{Realm: "default", Firewall: "fw-a", Key: source(1).Key}, 1, 100),
		fire("a", rule.Subject{Realm: "default", Firewall: "fw-a"}, 1, 100),
	}
	slices.Sort(ids)
	if n := len(slices.Compact(ids)); n != 7 {
		t.Errorf("%d different ids, want 7: %v", n, ids)
	}
}

// TestLastingBreachIsRepeated: whoever acts on alerts hears again of an address
// that stays over the threshold, and no more once it is under it.
func TestLastingBreachIsRepeated(t *testing.T) {
	l := newLife(t, 3, newFlows(100, nil))
	l.observe(0, source(1), 100, "fired new-flows 198.18.0.1/32 100")
	l.tick(14.9)
	l.tick(15, "updated new-flows 198.18.0.1/32 100")
	l.tick(29.9)
	l.tick(30, "updated new-flows 198.18.0.1/32 100")
	l.values[source(1)] = 90 // under the threshold, over what clears it
	l.tick(46)
	l.values[source(1)] = 0
	l.tick(47, "updated new-flows 198.18.0.1/32 0")
	l.tick(77, "resolved new-flows 198.18.0.1/32 0")
}

// TestIDsDoNotDependOnTicks: two aggregators that count the same batches make
// the same alert, whatever their own clocks did in between.
func TestIDsDoNotDependOnTicks(t *testing.T) {
	fire := func(ticks ...float64) string {
		e, err := rule.NewEngine([]rule.Rule{newFlows(100, func(r *rule.Rule) { r.For = 2 * time.Second })}, 3)
		if err != nil {
			t.Fatal(err)
		}
		e.Tick(at(0.9), nil) // one was ahead of the batch
		e.Observe(0, source(1), 100, at(0.5))
		for _, s := range ticks {
			for _, tr := range e.Tick(at(s), func(int, rule.Subject) (float64, bool) { return 120, true }) {
				return tr.ID
			}
		}
		t.Fatal("it did not fire")
		return ""
	}
	if a, b := fire(1, 2, 2.6), fire(0.95, 1.7, 2.55, 3); a != b {
		t.Errorf("two engines made %s and %s of one breach", a, b)
	}
}

func TestAdopt(t *testing.T) {
	l := newLife(t, 3, newFlows(100, nil), newFlows(90, func(r *rule.Rule) {
		r.Name, r.Track, r.Metric, r.Scope, r.Seconds = "full", rule.Table, rule.TablePercent, rule.Firewall, 0
	}))
	a := rule.Adopted{ID: "0a", Rule: "new-flows", Subject: source(1), Value: 150, Peak: 400, Started: at(-100), Updated: at(-50)}
	if err := l.Adopt(a); err != nil {
		t.Fatal(err)
	}
	l.observe(0, source(1), 160, "updated new-flows 198.18.0.1/32 160") // known already, and over for long
	got := l.Firing()
	if len(got) != 1 || got[0].ID != "0a" || got[0].Started != at(-100) || got[0].Peak != 400 || got[0].Value != 160 {
		t.Errorf("firing: %+v, want the adopted one", got)
	}
	// What this engine has fired, in a replay say, gives way to what was published.
	l.observe(1, source(2), 100, "fired new-flows 198.18.0.2/32 100")
	a.Subject, a.ID = source(2), "0b"
	if err := l.Adopt(a); err != nil {
		t.Fatal(err)
	}
	if err := l.Adopt(rule.Adopted{ID: "0c", Rule: "full", Subject: rule.Subject{Realm: "default", Firewall: "fw-a"}, Value: 95}); err != nil {
		t.Fatal(err)
	}
	if s := l.Stats(); s.Firing != 3 {
		t.Errorf("%+v, want 3 firing", s)
	}
	refused := func(change func(*rule.Adopted), want string) {
		t.Helper()
		bad := a
		change(&bad)
		if err := l.Adopt(bad); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
	refused(func(a *rule.Adopted) { a.ID = "" }, "adopt alert: no id")
	refused(func(a *rule.Adopted) { a.Rule = "gone" }, "adopt alert 0b: no rule is named gone")
	refused(func(a *rule.Adopted) { a.Subject.Firewall = "fw-a" }, "adopt alert 0b: rule new-flows no longer fits 198.18.0.2/32 of fw-a")
	refused(func(a *rule.Adopted) { a.Subject.Key = netip.MustParsePrefix("198.18.0.0/24") }, "adopt alert 0b: rule new-flows no longer fits 198.18.0.0/24 of fleet")

	// The adopted summary of a full house is resolved in its time.
	if err := l.Adopt(rule.Adopted{ID: "0d", Rule: rule.Summary, Value: 4, Peak: 9, Started: at(-100)}); err != nil {
		t.Fatal(err)
	}
	l.tick(10, "updated new-flows 198.18.0.2/32 100", "updated max-firing invalid Prefix 0")
	l.tick(40, "updated new-flows 198.18.0.1/32 160", "updated new-flows 198.18.0.2/32 100", "resolved max-firing invalid Prefix 0")
	out := l.Forget(func(s rule.Subject) bool { return s.Firewall == "fw-a" }, at(41))
	l.expect(41, out, []string{"resolved full invalid Prefix 95"})
}

// TestCrossing: with for 0s, an alert fires on the call that reaches the threshold, and never below it.
func TestCrossing(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		rules := []rule.Rule{newFlows(float64(1+r.IntN(50)), nil), newFlows(float64(1+r.IntN(50)), nil)}
		for i := range rules {
			rules[i].Name = fmt.Sprint("r", i)
			rules[i].ClearRatio = 0.1 + 0.9*r.Float64()
			rules[i].Recover = time.Duration(r.IntN(3)) * time.Second
		}
		l := newLife(t, 1000, rules...)
		type alert struct {
			rule int
			of   rule.Subject
		}
		fires := map[alert]string{}
		values := map[rule.Subject]float64{}
		now := 0.0
		apply := func(out []rule.Transition) {
			for _, tr := range out {
				i := slices.IndexFunc(rules, func(r rule.Rule) bool { return r.Name == tr.Rule.Name })
				a := alert{i, tr.Subject}
				switch tr.Kind {
				case rule.Fired:
					if fires[a] != "" || tr.Value < rules[i].Count {
						t.Fatalf("seed %d: %+v fires: it fires already, or is below %v", seed, tr, rules[i].Count)
					}
					fires[a] = tr.ID
				case rule.Resolved:
					if fires[a] != tr.ID || tr.Value >= rules[i].Count*rules[i].ClearRatio {
						t.Fatalf("seed %d: %+v is resolved: it did not fire, or is not below %v", seed, tr, rules[i].Count*rules[i].ClearRatio)
					}
					delete(fires, a)
				case rule.Updated:
					if fires[a] != tr.ID {
						t.Fatalf("seed %d: %+v: fires as %q", seed, tr, fires[a])
					}
				}
			}
		}
		for range 300 {
			now += r.Float64()
			s := source(r.IntN(4))
			values[s] = float64(r.IntN(60))
			for i := range rules {
				apply(l.Observe(i, s, values[s], at(now)))
				if a := (alert{i, s}); values[s] >= rules[i].Count && fires[a] == "" {
					t.Fatalf("seed %d: %v reached %v of %v and does not fire", seed, s.Key, values[s], rules[i].Count)
				}
			}
			if r.IntN(3) == 0 {
				apply(l.Tick(at(now), func(_ int, s rule.Subject) (float64, bool) { v, ok := values[s]; return v, ok }))
			}
		}
		if got := l.Stats().Firing; got != len(fires) || len(l.Firing()) != got {
			t.Fatalf("seed %d: %d firing, want %d", seed, got, len(fires))
		}
	}
}

// TestBounded: tens of thousands over a threshold are followed, not more; the rest
// is counted, and followed when there is room.
func TestBounded(t *testing.T) {
	l := newLife(t, 5, newFlows(10, func(r *rule.Rule) { r.For = time.Second }))
	for i := range 70_000 {
		key := netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)})
		l.Observe(0, rule.Subject{Realm: "default", Key: netip.PrefixFrom(key, 32)}, 10, at(0))
	}
	if s := l.Stats(); s.Pending != 1<<16 || s.Refused != 70_000-1<<16 {
		t.Errorf("%+v, want %d pending and the rest refused", s, 1<<16)
	}
	l.tick(0.5) // all are unknown to lookup, so nothing fires
	out := l.Tick(at(1), func(int, rule.Subject) (float64, bool) { return 0, true })
	if s := l.Stats(); s.Pending != 0 || len(out) != 0 {
		t.Errorf("%+v and %d transitions after all fell to 0", s, len(out))
	}
}

func TestObserveDoesNotAllocate(t *testing.T) {
	l := newLife(t, 5, newFlows(100, nil))
	l.Observe(0, source(1), 100, at(0))
	if n := testing.AllocsPerRun(1000, func() {
		l.Observe(0, source(1), 101, at(1))
		l.Observe(0, source(2), 99, at(1))
	}); n != 0 {
		t.Errorf("%v allocations in two observations that change nothing, want none", n)
	}
}

func BenchmarkObserve(b *testing.B) {
	e, err := rule.NewEngine([]rule.Rule{newFlows(100, nil)}, 5)
	if err != nil {
		b.Fatal(err)
	}
	e.Observe(0, source(1), 100, at(0))
	b.ReportAllocs()
	for b.Loop() {
		e.Observe(0, source(1), 101, at(1))
	}
}

// TestHear: of two engines that judge the same, what one makes known counts for the other.
func TestHear(t *testing.T) {
	l := newLife(t, 2, newFlows(100, nil))
	hear := func(resolved bool, id string, of rule.Subject, value, updated float64) {
		t.Helper()
		a := rule.Adopted{ID: id, Rule: "new-flows", Subject: of, Value: value, Peak: value, Started: at(0), Updated: at(updated)}
		if err := l.Hear(a, resolved); err != nil {
			t.Fatal(err)
		}
	}
	id := func() (ids []string) {
		for _, tr := range l.Firing() {
			ids = append(ids, tr.ID)
		}
		return ids
	}
	firing := func(seconds float64, want ...string) {
		t.Helper()
		if got := id(); !slices.Equal(got, want) || l.Stats().Firing != len(want) {
			t.Fatalf("at %v s: %v fire, %+v, want %v", seconds, got, l.Stats(), want)
		}
	}
	// The other was first to say that it fires on: we are not due before 15 s after that.
	l.observe(0, source(1), 100, "fired new-flows 198.18.0.1/32 100")
	own := id()[0]
	hear(false, own, source(1), 100, 14)
	l.tick(15)
	l.tick(28.9)
	out := l.Tick(at(29), l.lookup)
	l.expect(29, out, []string{"updated new-flows 198.18.0.1/32 100"})
	if out[0].Before != at(14) {
		t.Errorf("it was last reported at %d, want what was heard, %d", out[0].Before, at(14))
	}
	hear(false, own, source(1), 300, 20) // from before our own: nothing new
	l.tick(30)
	// It gave the alert another id.
	hear(false, "0a", source(1), 100, 31)
	firing(31, "0a")
	hear(true, own, source(1), 0, 31) // one that we no longer have
	firing(31, "0a")
	// It says that it is over. Here it is not: it fires anew, and is another one.
	hear(true, "0a", source(1), 0, 32)
	firing(32)
	l.tick(33) // not at once: the other would end it again
	l.tick(59)
	l.tick(63, "fired new-flows 198.18.0.1/32 100")
	if again := id()[0]; again == "0a" || again == own {
		t.Errorf("it fires anew as %s", again)
	}
	// Here it is over too, not long enough: nothing more is to be said.
	l.observe(64, source(1), 10, "updated new-flows 198.18.0.1/32 10")
	hear(true, id()[0], source(1), 10, 65)
	firing(65)
	l.tick(100)
	// One that we do not have, and whose end we see to; and one that we held back.
	hear(false, "0b", source(2), 150, 100)
	l.values[source(2)] = 0
	l.tick(101, "updated new-flows 198.18.0.2/32 0")
	l.observe(102, source(3), 100, "fired new-flows 198.18.0.3/32 100")
	l.observe(103, source(4), 100, "fired max-firing invalid Prefix 1")
	hear(false, "0c", source(4), 100, 103)
	if s := l.Stats(); s.Firing != 3 || s.Held != 0 {
		t.Errorf("%+v, want 3 firing, since another let it fire", s)
	}
	if err := l.Hear(rule.Adopted{ID: "0d", Rule: "gone"}, false); err == nil {
		t.Error("an alert of a rule that is not here is taken over")
	}
	if err := l.Hear(rule.Adopted{ID: "0d", Rule: "gone"}, true); err != nil {
		t.Error(err)
	}
	summary := l.Firing()[len(l.Firing())-1].ID
	if err := l.Hear(rule.Adopted{ID: summary, Rule: rule.Summary}, true); err != nil {
		t.Error(err)
	}
	if got := l.Firing(); len(got) != 3 {
		t.Errorf("%+v fire, want no summary any more", got)
	}
	l.values[source(4)] = 100
	l.tick(131, "resolved new-flows 198.18.0.2/32 0", "updated new-flows 198.18.0.3/32 100", "updated new-flows 198.18.0.4/32 100")
}

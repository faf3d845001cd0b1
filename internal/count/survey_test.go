package count

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/synth"
)

// largest are a place's values by one metric, as many as Top would return.
func (p *Surveyed) largest(metric Metric, limit int) (out []uint64) {
	for _, r := range p.Rows {
		if v := map[Metric]uint64{Opened: r.Opened, Active: r.Active}[metric]; v > 0 {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b uint64) int { return cmp.Compare(b, a) })
	return out[:min(limit, len(out))]
}

// TestSurvey compares it with Top and Shares, which look place by place.
func TestSurvey(t *testing.T) {
	const w = 10 * time.Second
	limits := map[Metric]int{Opened: 6, Active: 3}
	found := 0
	for seed := range uint64(10) {
		s := newOracleScene(t, rand.New(rand.NewPCG(seed, 2)))
		for range 6 {
			s.round(false, false)
			for _, track := range []Track{BySrc, ByDst} {
				survey := s.rec.c.Survey(track, w, limits[Opened], limits[Active])
				for survey.Step(5) {
				}
				places := survey.Places()
				byPlace := map[Place]*Surveyed{}
				for i := range places {
					byPlace[places[i].Place] = &places[i]
				}
				for _, place := range s.rec.c.Places() {
					got := byPlace[place]
					if got == nil {
						got = &Surveyed{Place: place}
					}
					for metric, limit := range limits {
						var want []uint64
						for _, e := range s.rec.c.Top(Set{Track: track, Metric: metric}, place, w, limit) {
							want = append(want, e.Value)
						}
						if values := got.largest(metric, limit); !slices.Equal(values, want) {
							t.Fatalf("seed %d: %v by %v, %v: %v, Top says %v", seed, place, track, metric, values, want)
						}
					}
					keys := map[netip.Prefix]bool{}
					for _, r := range got.Rows {
						found++
						opened, _ := s.rec.c.Value(Set{Track: track}, Fleet, place, r.Key, w)
						active, known := s.rec.c.Value(Set{Track: track, Metric: Active}, Fleet, place, r.Key, w)
						if keys[r.Key] || r.Opened != opened || known && r.Active != active || known != got.ActiveKnown {
							t.Fatalf("seed %d: %v: %+v, they are %d and %d, known %v", seed, place, r, opened, active, known)
						}
						keys[r.Key] = true
						if place.Firewall != "" {
							continue
						}
						// Each firewall's share of it is among that firewall's rows.
						for fw, n := range s.rec.c.Shares(Set{Track: track}, place.Realm, r.Key, w) {
							part := byPlace[Place{place.Realm, fw}]
							if part == nil || !slices.ContainsFunc(part.Rows, func(o SurveyedRow) bool { return o.Key == r.Key && o.Opened == n }) {
								t.Fatalf("seed %d: %v: the share of %s in %v, %d, is missing", seed, place, fw, r.Key, n)
							}
						}
					}
				}
			}
		}
	}
	if found < 1000 {
		t.Errorf("only %d rows were compared", found)
	}
}

// TestTopOf finds the largest of those that are wanted: as Top would, had it been
// asked for all.
func TestTopOf(t *testing.T) {
	l := newLoad(t, 50, time.Millisecond, mix{sources: synth.Zipf(10_000, 5), ends: true})
	c, _ := loadedCounter(t, l, 2, true, Config{Windows: []time.Duration{time.Second}, MaxKeys: 100_000})
	wanted := func(p netip.Prefix) bool { return p.Addr().AsSlice()[3]%7 == 0 }
	for _, metric := range []Metric{Opened, Active} {
		for _, place := range []Place{{Realm: "default"}, c.Places()[1]} {
			set := Set{Metric: metric}
			var want []Entry
			for _, e := range c.Top(set, place, time.Second, 1<<20) {
				if wanted(e.Key) && len(want) < 20 {
					want = append(want, e)
				}
			}
			if got := c.TopOf(set, place, time.Second, 20, wanted); len(want) == 0 || !slices.Equal(got, want) {
				t.Errorf("%s of %v: %v, want %v", metric, place, got, want)
			}
		}
	}
}

// TestSurveyWhileCounting counts on between the steps, with keys that come, go and
// are pushed out: what is large all the time is found, and nothing twice.
func TestSurveyWhileCounting(t *testing.T) {
	l := newLoad(t, 400, time.Millisecond, mix{sources: synth.Zipf(1_000_000, 5), ends: true})
	c, step := loadedCounter(t, l, 5, true, Config{Windows: []time.Duration{time.Second}, MaxKeys: 3000})
	for range 30 {
		before := c.Top(Set{}, Place{Realm: "default"}, time.Second, 3)
		survey := c.Survey(BySrc, time.Second, 20, 20)
		for survey.Step(100) {
			step()
		}
		places := survey.Places()
		if len(places) != 6 || len(before) != 3 {
			t.Fatalf("%d places, %v", len(places), before)
		}
		for _, p := range places {
			keys := map[netip.Prefix]bool{}
			for _, r := range p.Rows {
				if keys[r.Key] {
					t.Errorf("%v: %v is there twice", p.Place, r.Key)
				}
				keys[r.Key] = true
			}
			for _, e := range before {
				if !keys[e.Key] {
					t.Errorf("%v: %v, which opened %d, is not there", p.Place, e.Key, e.Value)
				}
			}
		}
	}
	if c.Survey(BySrc, time.Minute, 1, 1) != nil || c.Survey(BySrc, time.Second, 0, 1) != nil {
		t.Error("a survey of nothing")
	}
}

// BenchmarkSurvey is what somebody who keeps a history takes each minute: one pass
// over a million addresses of 100 firewalls. A step is what counting waits for.
func BenchmarkSurvey(b *testing.B) {
	l := newLoad(b, 4000, time.Millisecond, mix{sources: synth.Even(1_000_000, 3), apart: 100})
	c, _ := loadedCounter(b, l, 100, false, Config{Windows: []time.Duration{time.Minute}})
	b.ReportMetric(float64(c.Stats().Keys)/2, "keys")
	var steps []time.Duration
	rows := 0
	for b.Loop() {
		s := c.Survey(BySrc, time.Minute, 100, 20)
		for more := true; more; {
			began := time.Now()
			more = s.Step(4096)
			steps = append(steps, time.Since(began))
		}
		rows = 0
		for _, p := range s.Places() {
			rows += len(p.Rows)
		}
	}
	slices.Sort(steps)
	b.ReportMetric(float64(steps[len(steps)/2].Microseconds()), "µs/step")
	b.ReportMetric(float64(steps[len(steps)*99/100].Microseconds()), "µs/step-p99")
	b.ReportMetric(float64(rows), "rows")
}

// TestTopOfAll compares it with Top, which looks realm by realm.
func TestTopOfAll(t *testing.T) {
	const w, limit = 10 * time.Second, 4
	realms := map[string]bool{}
	for seed := range uint64(10) {
		s := newOracleScene(t, rand.New(rand.NewPCG(seed, 4)))
		for range 4 {
			s.round(false, false)
		}
		c := s.rec.c
		for _, metric := range []Metric{Opened, Active} {
			set := Set{Track: BySrc, Metric: metric}
			var want []uint64
			for _, place := range c.Places() {
				if place.Firewall == "" {
					for _, e := range c.Top(set, place, w, limit) {
						want = append(want, e.Value)
					}
				}
			}
			slices.SortFunc(want, func(a, b uint64) int { return cmp.Compare(b, a) })
			want = want[:min(limit, len(want))]
			var got []uint64
			for _, e := range c.TopOfAll(set, w, limit) {
				got = append(got, e.Value)
				realms[e.Realm] = true
				// Without a complete snapshot active is not known, and shown as it is.
				if v, known := c.Value(set, Fleet, Place{Realm: e.Realm}, e.Key, w); known && v != e.Value {
					t.Fatalf("seed %d: %v of %s by %v is %d, want %d", seed, e.Key, e.Realm, metric, e.Value, v)
				}
			}
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: by %v: %v, Top says %v", seed, metric, got, want)
			}
		}
	}
	if len(realms) < 2 {
		t.Errorf("only of %v", realms)
	}
}

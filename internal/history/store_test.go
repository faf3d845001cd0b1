package history

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// quarter is a minute of two firewalls of the default realm, and one of another.
func quarter() *Minute {
	return &Minute{
		At: noon,
		BySrc: []Talkers{
			{Place: Place{"default", ""}, ActiveKnown: true, Rows: []Row{
				{addr("198.18.0.7"), 2002, 5}, {addr("2001:db8::7"), 300, 700}, {addr("198.18.0.9"), 300, 0},
			}},
			{Place: Place{"default", "fw-a"}, ActiveKnown: true, Rows: []Row{{addr("198.18.0.7"), 1001, 5}, {addr("2001:db8::7"), 300, 700}}},
			{Place: Place{"default", "fw-b"}, Rows: []Row{{addr("198.18.0.7"), 1001, 99}, {addr("198.18.0.9"), 300, 99}}},
			{Place: Place{"lisbon", "fw-l"}, ActiveKnown: true, Rows: []Row{{addr("198.18.0.7"), 4, 4}}},
		},
		ByDst: []Talkers{{Place: Place{"default", ""}, Rows: []Row{{addr("203.0.113.4"), 17, 0}}}},
		Fill: []Fill{
			{Place: Place{"default", "fw-a"}, Entries: 705, Peak: 900, Limit: 1000, Percent: 70.5, Lost: 3, State: "fresh", Active: 705, ActiveKnown: true},
			{Place: Place{"default", "fw-b"}, Entries: 1, Peak: 1, Limit: 1000, Percent: 0.1, State: "silent"},
			{Place: Place{"lisbon", "fw-l"}, Entries: 4, Peak: 4, Limit: 1000, Percent: 0.4, State: "fresh", Active: 4, ActiveKnown: true},
		},
	}
}

// TestTop asks in every way who was on top.
func TestTop(t *testing.T) {
	t.Parallel()
	s, _ := start(t, file(t), nil)
	s.Put(quarter())
	until(t, "the minute", func() bool { return s.Stats().Rows > 0 })
	f := func(q Question, want string) {
		t.Helper()
		q.At = time.Unix(noon+59, 0)
		if q.By == "" {
			q.By = "src"
		}
		if q.Limit == 0 {
			q.Limit = 20
		}
		a, err := s.Top(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		got := fmt.Sprint(a.Realm, " ", a.Minute.Unix()-noon)
		for _, r := range a.Rows {
			got += fmt.Sprint(" ", r.Address, "=", r.Value, r.Firewalls)
		}
		if got += fmt.Sprint(" ", a.Unknown, a.Stale); got != want {
			t.Errorf("%+v:\n%s\n%s", q, got, want)
		}
	}
	f(Question{Metric: "new"}, "default 0 198.18.0.7=2002 map[fw-a:1001 fw-b:1001] 198.18.0.9=300 map[fw-b:300] 2001:db8::7=300 map[fw-a:300] [fw-b] [fw-b]")
	f(Question{Metric: "new", Limit: 1}, "default 0 198.18.0.7=2002 map[fw-a:1001 fw-b:1001] [fw-b] [fw-b]")
	f(Question{Metric: "active"}, "default 0 2001:db8::7=700 map[fw-a:700] 198.18.0.7=5 map[fw-a:5] [fw-b] [fw-b]")
	f(Question{Metric: "new", Firewall: "fw-b"}, "default 0 198.18.0.7=1001 map[fw-b:1001] 198.18.0.9=300 map[fw-b:300] [fw-b] [fw-b]")
	f(Question{Metric: "active", Firewall: "fw-b"}, "default 0 [fw-b] [fw-b]")
	f(Question{Metric: "new", Firewall: "fw-l"}, "lisbon 0 198.18.0.7=4 map[fw-l:4] [] []")
	f(Question{Metric: "new", Firewall: "fw-l", Realm: "default"}, "default 0 [] []")
	f(Question{Metric: "new", Realm: "porto"}, "porto 0 [] []")
	f(Question{Metric: "new", By: "dst"}, "default 0 203.0.113.4=17 map[] [fw-b] [fw-b]")

	if got := one(t, s, "SELECT entries || ' ' || entries_peak || ' ' || percent || ' ' || lost || ' ' || state || ' ' || active FROM fill WHERE firewall = 'fw-a'"); got != "705 900 70.5 3 fresh 705" {
		t.Error(got)
	}
	wrong := func(q Question, want string) {
		t.Helper()
		if _, err := s.Top(t.Context(), q); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", q, err, want)
		}
	}
	wrong(Question{By: "src", Metric: "unreplied"}, "keeps new and active")
	wrong(Question{By: "src; DROP TABLE minutes", Metric: "new"}, "keeps src and dst")
	wrong(Question{By: "src", Metric: "new", At: time.Unix(noon-60, 0)}, "nothing of 2026-11-25 11:59 UTC: it goes from 2026-11-25 12:00 UTC to 2026-11-25 12:00 UTC")
	wrong(Question{By: "src", Metric: "new", At: time.Unix(-1, 0)}, "nothing of 1969-12-31 23:59 UTC")
	intact(t, s)
}

// TestMinutesStay: a minute that comes again changes nothing, and an empty history says so.
func TestMinutesStay(t *testing.T) {
	t.Parallel()
	s, _ := start(t, file(t), nil)
	if _, err := s.Top(t.Context(), Question{By: "src", Metric: "new", At: time.Unix(noon, 0)}); err == nil || !strings.Contains(err.Error(), "it is empty") {
		t.Error(err)
	}
	s.Put(quarter())
	again := quarter()
	again.BySrc[0].Rows[0].New = 1
	s.Put(again)
	s.Put(&Minute{At: noon + 120, Partial: true})
	until(t, "the minutes", func() bool { return one(t, s, "SELECT count(*) FROM minutes") == "2" })
	a, err := s.Top(t.Context(), Question{By: "src", Metric: "new", At: time.Unix(noon, 0), Limit: 1})
	if err != nil || a.Rows[0].Value != 2002 || a.Partial {
		t.Errorf("%+v, %v", a, err)
	}
	if a, err := s.Top(t.Context(), Question{By: "src", Metric: "new", At: time.Unix(noon+120, 0), Limit: 1}); err != nil || !a.Partial || len(a.Rows) != 0 {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := s.Top(t.Context(), Question{By: "src", Metric: "new", At: time.Unix(noon+60, 0)}); err == nil || !strings.Contains(err.Error(), "nobody counted then") {
		t.Error(err)
	}
	if got := s.Stats().Rows; got != uint64(quarter().rows()+1) {
		t.Errorf("%d rows were written", got)
	}
}

// TestRecords writes alerts and audit, some of them again.
func TestRecords(t *testing.T) {
	t.Parallel()
	name := file(t)
	s, stop := start(t, name, nil)
	at := func(seq uint64) Position { return Position{seq, time.Unix(noon, int64(seq)*1e6)} }
	alert := func(seq uint64, state string, updated int64, peak float64) Record {
		return Record{Stream: "CT_ALERTS", Position: at(seq), Alert: &events.Alert{
			ID: "a1", Rule: "new-flows", State: state, Severity: "critical", Scope: "fleet", Realm: "default", Key: "198.18.0.7", Track: "by_src", Metric: "new",
			Value: 10, Count: 5, Seconds: 10, Peak: peak, Started: noon * 1000, Updated: noon*1000 + updated, Text: "many",
		}}
	}
	records := []Record{
		alert(1, events.Firing, 0, 10), alert(2, events.Firing, 900, 40), alert(3, events.Resolved, 30_000, 40),
		{Stream: "CT_AUDIT", Position: at(7), Actor: "fw-a", Verb: "flush", Receipt: &events.Receipt{ID: "c1", Firewall: "fw-a", Verb: "flush", Actor: "responder", Rule: "new-flows", Alert: "a1", Addresses: []string{"198.18.0.7"}, Matched: 9, Deleted: 9}},
		{Stream: "CT_AUDIT", Position: at(8), Actor: "responder", Verb: "decision", Decision: &events.Decision{ID: "d1", Alert: "a1", Rule: "new-flows", Realm: "default", Key: "203.0.113.4", Address: "198.18.0.7", Outcome: "commanded"}},
		{Stream: "CT_AUDIT", Position: at(9), Actor: "operator", Verb: "allowlist", Act: &events.Act{Verb: "allowlist", What: "added 2001:db8::/32", Key: "2001:db8::/32"}},
		{Stream: "CT_AUDIT", Position: at(10)}, // nothing that could be read
	}
	for range 2 {
		if err := s.Record(t.Context(), records); err != nil {
			t.Fatal(err)
		}
	}
	// One of before comes once more, after the end.
	if err := s.Record(t.Context(), records[1:2]); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if got := query(t, s, "SELECT rule, key, lo, peak, started / 1000, resolved / 1000 FROM alerts"); len(got) != 1 || strings.Join(got[0], " ") != fmt.Sprint("new-flows 198.18.0.7 3323068423 40.0 ", noon, " ", noon+30) {
			t.Errorf("%v", got)
		}
		got := query(t, s, "SELECT seq, kind, verb, key, bits, outcome, ifnull(deleted, '-') FROM audit ORDER BY seq")
		want := "[[7 receipt flush 198.18.0.7 32 done 9] [8 decision decision 198.18.0.7 32 commanded -] [9 act allowlist 2001:db8::/32 32 added 2001:db8::/32 -]]"
		if fmt.Sprint(got) != want {
			t.Errorf("%v", got)
		}
		if got := one(t, s, "SELECT body ->> 'matched' FROM audit WHERE seq = 7"); got != "9" {
			t.Error(got)
		}
	}
	check()
	stop()
	s, _ = start(t, name, nil)
	check()
	if p, err := s.Position(t.Context(), "CT_AUDIT"); err != nil || p.Seq != 10 || !p.Time.Equal(at(10).Time) {
		t.Errorf("%v, %v", p, err)
	}
	if p, err := s.Position(t.Context(), "CT_OTHER"); err != nil || p != (Position{}) {
		t.Errorf("%v, %v", p, err)
	}
}

// TestStopWritesWhatWaits and says who cannot be served any more.
func TestStopWritesWhatWaits(t *testing.T) {
	t.Parallel()
	name := file(t)
	s := open(t, name, nil)
	for n := range int64(5) {
		s.Put(fleetMinute(noon+60*n, 3, 20))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Record(ctx, nil); err == nil {
		t.Error("a record was taken after the end")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = start(t, name, nil)
	if got := one(t, s, "SELECT count(*) FROM minutes"); got != "5" {
		t.Errorf("%s minutes", got)
	}
}

// TestQueueIsBounded: nobody writes, and Put returns all the same.
func TestQueueIsBounded(t *testing.T) {
	t.Parallel()
	s := open(t, file(t), nil)
	defer s.Close()
	began := time.Now()
	var put uint64
	for n := range int64(100) {
		m := fleetMinute(noon+60*n, 50, 100)
		put += uint64(m.rows())
		s.Put(m)
	}
	dropped := s.Stats().Dropped
	if kept := put - dropped; dropped == 0 || kept > queuedRows || kept < queuedRows*9/10 {
		t.Errorf("%d rows were put, %d dropped", put, dropped)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestSlowDisk holds the file's lock, as a disk that does not answer does: Put and
// reading go on, and nothing is lost that the queue could hold.
func TestSlowDisk(t *testing.T) {
	t.Parallel()
	name := file(t)
	s, _ := start(t, name, nil)
	s.Put(fleetMinute(noon, 2, 10))
	until(t, "the first minute", func() bool { return s.Stats().Rows > 0 })
	other := open(t, name, nil)
	defer other.Close()
	tx, err := other.write.Begin() // it is an immediate one
	if err != nil {
		t.Fatal(err)
	}
	for n := range int64(5) {
		m := fleetMinute(noon+60*(n+1), 2, 10)
		began := time.Now()
		if s.Put(m); time.Since(began) > time.Second {
			t.Errorf("Put took %s", time.Since(began))
		}
	}
	if got := one(t, s, "SELECT count(*) FROM minutes"); got != "1" {
		t.Errorf("%s minutes while nobody can write", got)
	}
	time.Sleep(300 * time.Millisecond)
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	until(t, "what waited", func() bool { return one(t, s, "SELECT count(*) FROM minutes") == "6" })
	if d := s.Stats().Dropped; d != 0 {
		t.Errorf("%d rows were dropped", d)
	}
}

// TestLongReader reads in one transaction for so long that the log grows to its
// bound: then minutes are dropped, until the reader has gone.
func TestLongReader(t *testing.T) {
	t.Parallel()
	name := file(t)
	s := open(t, name, nil)
	s.walBytes = 1 << 20
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		s.Close()
	}()
	s.Put(fleetMinute(noon, 2, 10))
	until(t, "the first minute", func() bool { return s.Stats().Rows > 0 })
	tx, err := s.read.Begin()
	if err != nil {
		t.Fatal(err)
	}
	var minutes int
	if err := tx.QueryRow("SELECT count(*) FROM minutes").Scan(&minutes); err != nil {
		t.Fatal(err)
	}
	n := int64(0)
	put := func() { n++; waitFor(t, s, 0); s.Put(fleetMinute(noon+60*n, 5, 40)) }
	until(t, "minutes to be dropped", func() bool { put(); return s.Stats().Dropped > 0 })
	if got := size(name + "-wal"); got > 2<<20 {
		t.Errorf("the log has %d bytes", got)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	before := s.Stats().Rows
	until(t, "it to go on", func() bool { put(); return s.Stats().Rows > before })
	intact(t, s)
}

// TestRetention keeps the file within its bounds, and the newest in it.
func TestRetention(t *testing.T) {
	t.Parallel()
	t.Run("age", func(t *testing.T) {
		t.Parallel()
		s, _ := start(t, file(t), func(o *Options) { o.Age = 10 * time.Minute })
		if err := s.Record(t.Context(), []Record{
			{Stream: "CT_AUDIT", Position: Position{1, time.Unix(noon-3600, 0)}, Act: &events.Act{Verb: "mode", What: "old"}},
			{Stream: "CT_AUDIT", Position: Position{2, time.Unix(noon+1700, 0)}, Act: &events.Act{Verb: "mode", What: "new"}},
		}); err != nil {
			t.Fatal(err)
		}
		for n := range int64(30) {
			s.Put(fleetMinute(noon+60*n, 2, 10))
		}
		until(t, "what is old to go", func() bool {
			return one(t, s, "SELECT count(*) || ' ' || min(minute) FROM minutes") == fmt.Sprint("11 ", noon+19*60) && one(t, s, "SELECT group_concat(outcome) FROM audit") == "new"
		})
		if got := one(t, s, "SELECT count(DISTINCT minute) FROM flowcount_by_src"); got != "11" {
			t.Errorf("rows of %s minutes", got)
		}
		intact(t, s)
	})
	t.Run("size", func(t *testing.T) {
		t.Parallel()
		const limit = 2 << 20
		name := file(t)
		s, stop := start(t, name, func(o *Options) { o.Bytes = limit })
		for n := range int64(150) {
			waitFor(t, s, 2)
			s.Put(fleetMinute(noon+60*n, 5, 40))
			if got := size(name); got > limit {
				t.Fatalf("the file has %d bytes", got)
			}
		}
		last := fmt.Sprint(noon + 60*149)
		until(t, "the last minute", func() bool { return one(t, s, "SELECT max(minute) FROM minutes") == last })
		if d := s.Stats().Dropped; d > 0 {
			t.Errorf("%d rows were dropped", d)
		}
		kept := one(t, s, "SELECT count(*) FROM minutes")
		if n := len(kept); n < 2 {
			t.Errorf("only %s minutes are kept", kept)
		}
		intact(t, s)
		stop()
		// With a lower limit than the file has now, it shrinks.
		s, _ = start(t, name, func(o *Options) { o.Bytes = limit / 2 })
		until(t, "the file to shrink", func() bool {
			_, pages, err := s.pages(t.Context())
			return err == nil && pages <= limit/2/pageBytes
		})
		intact(t, s)
	})
}

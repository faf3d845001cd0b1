package aggregator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// archive is a NATS server, an aggregator with a history, and firewalls that are
// only messages.
type archive struct {
	t    *testing.T
	conn *bus.Conn
	seq  map[string]uint64
	file string
	url  string
}

func newArchive(t *testing.T) *archive {
	t.Helper()
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	a := &archive{t: t, seq: map[string]uint64{}, file: filepath.Join(t.TempDir(), "history.db"), url: server.URL()}
	if a.conn, err = bus.Connect(bus.Config{Server: server, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.conn.Close)
	if _, err := a.conn.Bootstrap(t.Context(), bus.DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *archive) aggregator(file string) (agg *Aggregator, reg *prometheus.Registry, stop func()) {
	a.t.Helper()
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds, r.Severity = "new-flows", rule.BySrc, rule.New, 30, 10, rule.Critical
	reg = prometheus.NewRegistry()
	agg, err := New(Options{MaxKeys: 1 << 16, History: file, HistoryAge: time.Hour, HistoryBytes: 1 << 30}, rule.File{Rules: []rule.Rule{r}, MaxFiring: 100}, Dependencies{
		Bus: bus.Config{Flags: bus.Flags{NATSURL: a.url}}, Log: slog.New(slog.DiscardHandler), Registry: reg,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- agg.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			a.t.Error(err)
		}
	})
	a.t.Cleanup(stop)
	a.until("the aggregator", func() bool { return agg.Ready() == nil })
	return agg, reg, stop
}

func (a *archive) until(what string, ok func() bool) {
	a.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			a.t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (a *archive) send(subject string, m events.Message) {
	a.t.Helper()
	data, err := events.Marshal(m)
	if err == nil {
		_, err = a.conn.JS.Publish(a.t.Context(), subject, data)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// flows publishes so many new flows of a source through a firewall.
func (a *archive) flows(firewall, src string, n int) {
	a.t.Helper()
	var w events.BatchWriter
	for i := range n {
		e := events.Event{Time: 1e15, Type: events.New, Proto: 6, ID: uint32(i + 1), Status: events.StatusConfirmed}
		e.Orig.Src, e.IPv6 = events.FromNetip(netip.MustParseAddr(src))
		e.Orig.Dst, _ = events.FromNetip(netip.MustParseAddr(map[bool]string{false: "203.0.113.4", true: "2001:db8::4"}[e.IPv6]))
		e.Orig.DstPort = 443
		if err := w.Append(&e); err != nil {
			a.t.Fatal(err)
		}
	}
	a.seq[firewall]++
	boot := events.Boot{0: firewall[len(firewall)-1]}
	total := a.seq[firewall+" total"]
	a.seq[firewall+" total"] += uint64(n)
	data, err := w.Encode(&events.Header{Firewall: firewall, Realm: "default", Boot: boot, Seq: a.seq[firewall], Epoch: 1, Sent: 1e15, Clean: true, Total: total})
	if err == nil {
		_, err = a.conn.JS.Publish(a.t.Context(), events.EventsSubject(firewall), data)
	}
	if err != nil {
		a.t.Fatal(err)
	}
}

// TestHistory counts, keeps the minute, and asks for it; with alerts and audit from
// the streams, once, over a restart.
func TestHistory(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	act := func(what string) {
		a.send(events.AuditSubject(events.ActorOperator, events.VerbAllowlist), &events.Act{Head: events.Head{V: 1}, Verb: events.VerbAllowlist, What: what, Key: "198.18.0.9"})
	}
	act("before")
	agg, reg, stop := a.aggregator(a.file)
	for _, fw := range []string{"fw-a", "fw-b"} {
		a.send(events.HealthSubject(fw), &events.Health{Head: events.Head{V: 1}, Firewall: fw, Realm: "default", Boot: strings.Repeat("0", 32), Version: "t", Config: "t",
			Table: events.TableHealth{Count: 60, Limit: 100, Percent: 60}})
	}
	a.flows("fw-a", "198.18.0.7", 40)
	a.flows("fw-b", "198.18.0.7", 20)
	a.flows("fw-b", "2001:db8::7", 10)
	act("while it runs")
	if _, err := a.conn.JS.Publish(t.Context(), events.AuditSubject("fw-a", "flush"), []byte("no receipt")); err != nil {
		t.Fatal(err)
	}
	a.send(events.AuditSubject("fw-a", "flush"), &events.Receipt{Head: events.Head{V: 1}, ID: "forged", Firewall: "fw-b", Verb: "flush", Refused: []events.Refusal{}})
	a.until("the counts", func() bool {
		top, err := agg.Top(&events.TopQuery{WindowS: 60})
		return err == nil && len(top.Rows) == 2 && top.Rows[0].Value == 60 && len(agg.Firewalls().Firewalls) == 2
	})
	// As minuteLoop does it when the minute is over.
	minute := time.Date(2026, 11, 25, 14, 5, 0, 0, time.UTC)
	agg.past.Put(agg.minute(t.Context(), minute.UnixNano()))

	top := func(q events.TopQuery) string {
		t.Helper()
		q.At = minute.Add(59 * time.Second).UnixMilli()
		r, err := agg.Top(&q)
		if err != nil {
			return err.Error()
		}
		if r.At != minute.UnixMilli() || r.WindowS != 60 {
			t.Errorf("it is of %d, %d s", r.At, r.WindowS)
		}
		out := r.By + " " + r.Metric + " " + r.Scope
		for _, row := range r.Rows {
			out += fmt.Sprint(" ", row.Key, "=", row.Value, " ", map[string]uint64(row.Firewalls))
		}
		return out
	}
	a.until("the minute", func() bool { return !strings.Contains(top(events.TopQuery{}), "nothing") })
	for q, want := range map[events.TopQuery]string{
		{}: "src new fleet 198.18.0.7=60 map[fw-a:40 fw-b:20] 2001:db8::7=10 map[fw-b:10]",
		{Firewall: "fw-b", WindowS: 60, Limit: 1}: "src new fw-b 198.18.0.7=20 map[fw-b:20]",
		{By: "dst"}:           "dst new fleet 203.0.113.4=60 map[fw-a:40 fw-b:20] 2001:db8::4=10 map[fw-b:10]",
		{WindowS: 10}:         "window 10s is not kept in the history, which keeps minutes: 60s",
		{Metric: "unreplied"}: `metric "unreplied": the history keeps new and active`,
		{Realm: "lisbon"}:     "src new realm_lisbon",
	} {
		if got := top(q); got != want {
			t.Errorf("%+v:\n%s, want\n%s", q, got, want)
		}
	}
	// The same over the bus.
	var r events.TopReply
	if err := a.conn.Request(t.Context(), events.QuerySubject(events.QueryTop), &events.TopQuery{At: minute.UnixMilli()}, &r); err != nil || r.At != minute.UnixMilli() || len(r.Rows) != 2 {
		t.Errorf("%+v, %v", r, err)
	}
	err := a.conn.Request(t.Context(), events.QuerySubject(events.QueryTop), &events.TopQuery{At: 1000}, &r)
	if _, asked := errors.AsType[*bus.RequestError](err); !asked || !strings.Contains(err.Error(), "the history has nothing of 1970-01-01 00:00 UTC: it goes from 2026-11-25 14:05 UTC") {
		t.Errorf("%v", err)
	}
	records := func(alerts, audit uint64) func() bool {
		return func() bool {
			al, err1 := agg.past.Position(t.Context(), bus.StreamAlerts)
			au, err2 := agg.past.Position(t.Context(), bus.StreamAudit)
			return err1 == nil && err2 == nil && al.Seq >= alerts && au.Seq == audit
		}
	}
	a.until("the records", records(1, 4))
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		m := f.GetMetric()[0]
		values[f.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	if values["ctfleet_history_rows_total"] < 10 || values["ctfleet_history_dropped_total"] != 0 || values["ctfleet_history_bytes"] < 4096 {
		t.Errorf("metrics: %v", values)
	}
	before := agg.past.Stats().Rows
	stop()
	act("while it was away")
	agg, _, stop = a.aggregator(a.file)
	a.until("the records since", records(1, 5))
	if got := top(events.TopQuery{Limit: 1}); !strings.Contains(got, "198.18.0.7=60") {
		t.Errorf("after a restart: %s", got)
	}
	if again := agg.past.Stats().Rows; again != 1 || before < 10 {
		t.Errorf("%d rows were written, after a restart %d", before, again)
	}
	stop()
	agg, _, _ = a.aggregator("")
	if got := top(events.TopQuery{}); !strings.Contains(got, "keeps no history (aggregator --history FILE)") {
		t.Errorf("without a history: %s", got)
	}
}

// TestDueMinute goes through a few minutes as a clock does that is read now and then.
func TestDueMinute(t *testing.T) {
	t.Parallel()
	at := func(s float64) int64 { return int64(1_795_608_000e9 + s*1e9) }
	done := int64(0)
	for _, c := range []struct {
		now  float64
		want float64 // the minute that is read; -1: none
	}{
		{30, -1}, {59.6, -1}, {59.75, 0}, {59.9, -1}, {60.1, -1}, {119.8, 60}, {120, -1}, {184, 120},
		{260, -1}, {299.9, 240}, {100, -1}, {301, -1}, {360.2, 300},
	} {
		var due bool
		if done, due = dueMinute(at(c.now), done); due != (c.want >= 0) || due && done != at(c.want) {
			t.Errorf("at %v: %v, %v", c.now, due, (float64(done)-float64(at(0)))/1e9)
		}
	}
}

package aggregator

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// tape makes messages as two firewalls would send them, at times of its own.
type tape struct {
	t     *testing.T
	loads map[string]*synth.Load
	seq   map[string]uint64
	total map[string]uint64
}

func newTape(t *testing.T) *tape {
	tp := &tape{t: t, loads: map[string]*synth.Load{}, seq: map[string]uint64{}, total: map[string]uint64{}}
	for i, name := range []string{"fw-a", "fw-b"} {
		tp.loads[name] = synth.NewLoad(synth.Config{Firewall: name, Realm: events.RealmDefault, Boot: events.Boot{byte(i + 1)}, Sources: synth.Even(1, 1), Destinations: synth.Even(4, 2)})
	}
	return tp
}

// tapeStart is when tapes begin.
var tapeStart = time.Unix(1_790_000_000, 0)

// message is a batch of n events that is sent so long after the beginning.
func (tp *tape) message(name string, after time.Duration, n int) *recording.Message {
	tp.t.Helper()
	sent := int64(time.Hour + after)
	data, count, err := tp.loads[name].Batch(n, sent-int64(time.Millisecond), sent)
	if err != nil {
		tp.t.Fatal(err)
	}
	tp.seq[name]++
	events.Stamp{Sent: sent, Clean: true, Seq: tp.seq[name], Total: tp.total[name]}.Apply(data)
	tp.total[name] += uint64(count)
	return &recording.Message{Time: tapeStart.Add(after), Subject: events.EventsSubject(name), Data: append([]byte(nil), data...)}
}

func fleetRule() rule.File {
	f := rule.NewFile()
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds, r.Recover = "new-by-source", rule.BySrc, rule.New, 100, 10, 2*time.Second
	f.Rules = append(f.Rules, r)
	return f
}

// TestReplayFiresAndResolves: at the batch that crosses the threshold, and when the
// recording's own time has passed.
func TestReplayFiresAndResolves(t *testing.T) {
	tp := newTape(t)
	var told []string
	r, err := NewReplay(fleetRule(), 1000, func(k rule.Kind, a *events.Alert) {
		told = append(told, fmt.Sprintf("%s at %s: %s", k, time.UnixMilli(a.Updated).Sub(tapeStart), a.Text))
		if k == rule.Fired && (a.Firewalls["fw-a"] != 60 || a.Firewalls["fw-b"] != 50 || len(a.ID) != 24 ||
			len(a.Slots) != 20 || !slices.Equal(a.Slots[18:], []uint64{60, 50}) || a.SlotMS != 500 || a.SlotsEnd != tapeStart.UnixMilli()+500) {
			t.Errorf("%+v", a)
		}
		if k == rule.Resolved && a.Slots != nil {
			t.Errorf("a resolved alert has slots: %d", a.Slots)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []*recording.Message{
		tp.message("fw-a", 0, 60), tp.message("fw-b", 200*time.Millisecond, 30), tp.message("fw-b", 300*time.Millisecond, 20),
		tp.message("fw-a", time.Hour, 1), // an idle hour
	} {
		if err := r.Take(m); err != nil {
			t.Error(err)
		}
	}
	if len(told) < 2 || told[0] != "fired at 300ms: new-by-source: 198.18.0.0 opened 110 flows within 10 s in the fleet, threshold 100, through 2 firewalls" ||
		!strings.HasPrefix(told[len(told)-1], "resolved at 11.") {
		t.Errorf("told:\n%s", strings.Join(told, "\n"))
	}
	if err := r.Take(&recording.Message{Time: tapeStart, Subject: "ct.v1.events.fw-b", Data: []byte{1}}); err == nil {
		t.Error("a message that cannot be read was taken")
	}
	if s := r.Summary(); s.Batches != 5 || s.Events != 111 || s.Span != time.Hour || s.Firing != 0 || len(s.Firewalls) != 2 {
		t.Errorf("%+v", s)
	}
}

func BenchmarkReplay(b *testing.B) {
	load := synth.NewLoad(synth.Config{Firewall: "fw-a", Realm: events.RealmDefault, Sources: synth.Even(100_000, 1), Destinations: synth.Even(1000, 2), Open: 200_000})
	const n = 2048
	r, err := NewReplay(fleetRule(), 1<<20, func(rule.Kind, *events.Alert) {})
	if err != nil {
		b.Fatal(err)
	}
	var messages []*recording.Message
	for i := range 500 {
		sent := int64(i) * int64(20*time.Millisecond)
		data, _, err := load.Batch(n, sent, sent)
		if err != nil {
			b.Fatal(err)
		}
		messages = append(messages, &recording.Message{Subject: "ct.v1.events.fw-a", Data: append([]byte(nil), data...)})
	}
	i := 0
	for b.Loop() {
		m := messages[i%len(messages)]
		sent := int64(i) * int64(20*time.Millisecond)
		events.Stamp{Sent: sent + int64(time.Hour), Clean: true, Seq: uint64(i) + 1, Total: uint64(i) * n}.Apply(m.Data)
		m.Time = tapeStart.Add(time.Duration(sent))
		if err := r.Take(m); err != nil {
			b.Fatal(err)
		}
		i++
	}
	b.ReportMetric(float64(b.N)*n/b.Elapsed().Seconds(), "events/s")
}

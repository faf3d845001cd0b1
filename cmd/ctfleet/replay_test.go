package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const replayRules = `rules:
  - {name: new-by-source, track: by_src, metric: new, count: 100, seconds: 10, recover: 2s}
  - {name: one-table, track: by_dst, metric: active, scope: firewall, count: 40, match: {protocol: udp, dport: [53]}}
  - {name: full, track: table, metric: table_percent, count: 90}
`

// tapeOf is a recording of two firewalls, made up: one source opens flows through both.
func tapeOf(t *testing.T) string {
	t.Helper()
	begin := time.Unix(1_790_000_000, 0)
	var out bytes.Buffer
	w, err := recording.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	seq, total := map[string]uint64{}, map[string]uint64{}
	write := func(fw string, after time.Duration, n int, phase events.Phase) {
		var b events.BatchWriter
		for i := range n {
			e := events.Event{Type: events.New, Proto: 17, ID: uint32(i), Status: events.StatusConfirmed, Time: int64(time.Hour + after)}
			e.Orig = events.Tuple{Src: events.Addr{Lo: 0xc6120001}, Dst: events.Addr{Lo: 0xcb007107 + uint64(i%2)}, SrcPort: uint16(1024 + i), DstPort: 53}
			if err := b.Append(&e); err != nil {
				t.Fatal(err)
			}
		}
		h := events.Header{Firewall: fw, Realm: events.RealmDefault, Boot: events.Boot{fw[3]}, Epoch: 1, Phase: phase}
		data, err := b.Encode(&h)
		if err != nil {
			t.Fatal(err)
		}
		subject := events.EventsSubject(fw)
		if phase != events.Live {
			subject = events.SnapshotsSubject(fw)
		}
		seq[subject]++
		events.Stamp{Sent: int64(time.Hour + after), Clean: true, Seq: seq[subject], Total: total[subject]}.Apply(data)
		total[subject] += uint64(n)
		if err := w.Write(recording.Message{Time: begin.Add(after), Subject: subject, Data: data}); err != nil {
			t.Fatal(err)
		}
	}
	write("fw-a", 0, 0, events.SnapshotPart|events.SnapshotBegin|events.SnapshotEnd)
	write("fw-a", 100*time.Millisecond, 60, events.Live)
	write("fw-b", 200*time.Millisecond, 30, events.Live)
	write("fw-b", 300*time.Millisecond, 20, events.Live)
	write("fw-a", 400*time.Millisecond, 30, events.Live)
	write("fw-b", 20*time.Second, 1, events.Live)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return file(t, "tape.rec", out.String())
}

// TestReplay holds what a replay prints: ids and times are those of the recording.
func TestReplay(t *testing.T) {
	t.Parallel()
	tape, rules := tapeOf(t), file(t, "rules.yaml", replayRules)
	c := call{env: []string{"TZ=UTC"}}
	for format, name := range map[string]string{"human": "replay.txt", "json": "replay.json", "raw": "replay.raw"} {
		r := c.run(t, "ctfleet", "replay", tape, "--rules", rules, "-o", format)
		if r.code != 0 {
			t.Errorf("%+v", r)
		}
		golden(t, name, r.stdout)
		for _, want := range []string{
			"rule full is not judged", "fw-b: there is no complete dump", "3 fired, 2 still at the end; 6 batches, 141 events, 2 firewalls, 20s, in ",
		} {
			if !strings.Contains(r.stderr, want) {
				t.Errorf("%s: it does not say %q: %s", format, want, r.stderr)
			}
		}
	}
	whole, err := os.ReadFile(tape)
	if err != nil {
		t.Fatal(err)
	}
	c.stdin = whole[:len(whole)-5]
	if r := c.run(t, "ctfleet", "replay", "-", "--rules", rules); r.code != 1 || !strings.Contains(r.stderr, "cut off after message 5") || !strings.Contains(r.stdout, "new-by-source") {
		t.Errorf("cut off: %+v", r)
	}
	for _, bad := range [][]string{{tape}, {tape, "--rules", "/nowhere"}, {"--rules", rules}, {tape, "--rules", tape}} {
		if r := c.run(t, "ctfleet", append([]string{"replay"}, bad...)...); r.code != 2 {
			t.Errorf("%v: exit code %d, want 2: %s", bad, r.code, r.stderr)
		}
	}
	for _, bad := range []string{rules, "/nowhere"} {
		if r := c.run(t, "ctfleet", "replay", bad, "--rules", rules); r.code != 1 {
			t.Errorf("%v: exit code %d, want 1: %s", bad, r.code, r.stderr)
		}
	}
}

// TestReplayAgreesWithTheAggregator: what fires there fires in a replay of what was
// recorded beside it, under the same id, at the same time, with the same value. (The shares are those of when
// the alert is described, and an aggregator may have counted more by then.)
func TestReplayAgreesWithTheAggregator(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	rules := file(t, "rules.yaml", replayRules)
	p := c.start(t, "aggregator", "--rules", rules, "--listen", "127.0.0.1:0")
	p.says(&p.stderr, `msg=(counting)`)
	for i := range 8 {
		for fw := range 2 {
			send(t, conn, events.Header{Firewall: fmt.Sprintf("fw-%d", fw), Boot: events.Boot{1}, Seq: uint64(i + 1), Total: uint64(10 * i)}, 10)
		}
	}
	fired := map[string]events.Alert{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := conn.Follow(ctx, bus.StreamAlerts, bus.FollowFrom{All: true, Filter: events.SubjectAlerts + ".firing.>"}, func(m bus.Msg) {
		var a events.Alert
		if err := events.Unmarshal(m.Data, &a); err != nil {
			t.Error(err)
		}
		if _, again := fired[a.ID]; !again { // it is published again when it has grown
			fired[a.ID] = a
		}
		cancel()
	}); err != nil || len(fired) == 0 {
		t.Fatalf("%d alerts, %v", len(fired), err)
	}
	tape := filepath.Join(t.TempDir(), "tape.rec")
	r := c.run(t, "ctfleet", "observe", "--since", "1h", "-o", "raw")
	if r.code != 0 {
		t.Fatalf("%+v", r)
	}
	if err := os.WriteFile(tape, []byte(r.stdout), 0o600); err != nil {
		t.Fatal(err)
	}
	r = c.run(t, "ctfleet", "replay", tape, "--rules", rules, "-o", "json")
	found := map[string]bool{}
	for line := range strings.Lines(r.stdout) {
		again := parse[events.Alert](t, line)
		first, ok := fired[again.ID]
		if !ok || found[again.ID] {
			continue
		}
		found[again.ID] = true
		// When it was reported may differ: a tick may have moved the aggregator's clock on
		// between the crossing and the report, and a replay has no ticks.
		if again.Started != first.Started || again.Value != first.Value || again.Text != first.Text {
			t.Errorf("the aggregator said\n%+v\nthe replay says\n%+v", first, again)
		}
	}
	if r.code != 0 || len(found) != len(fired) {
		t.Errorf("%d of %d alerts are found again: %+v", len(found), len(fired), r)
	}
}

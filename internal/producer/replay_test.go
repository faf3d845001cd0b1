package producer

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// tape is a recording that is being made up.
type tape struct {
	t   *testing.T
	out bytes.Buffer
	w   *recording.Writer
}

func newTape(t *testing.T) *tape {
	tp := &tape{t: t}
	var err error
	if tp.w, err = recording.NewWriter(&tp.out); err != nil {
		t.Fatal(err)
	}
	return tp
}

// file writes it out, all but the last bytes.
func (tp *tape) file(cut int) string {
	tp.t.Helper()
	name := filepath.Join(tp.t.TempDir(), "tape.rec")
	if err := errors.Join(tp.w.Flush(), os.WriteFile(name, tp.out.Bytes()[:tp.out.Len()-cut], 0o600)); err != nil {
		tp.t.Fatal(err)
	}
	return name
}

// add records a batch of n flows from the first one on, that was sent so long after the
// beginning and waited before.
func (tp *tape) add(h events.Header, after, waited time.Duration, typ events.Type, first, n int) {
	tp.t.Helper()
	h.Realm, h.Boot, h.Sent = events.RealmDefault, events.Boot{7}, int64(time.Hour+after)
	var w events.BatchWriter
	for i := range n {
		e := events.Event{Type: typ, Proto: 17, ID: uint32(first + i), Time: h.Sent - int64(waited), Flags: events.UnheldBefore}
		e.Orig.Src.Lo = uint64(first + i)
		if err := w.Append(&e); err != nil {
			tp.t.Fatal(err)
		}
	}
	data, err := w.Encode(&h)
	if err != nil {
		tp.t.Fatal(err)
	}
	events.Stamp{Sent: h.Sent, Seq: h.Seq, Total: h.Total, Lost: h.Lost}.Apply(data)
	subject := events.EventsSubject(h.Firewall)
	if h.Phase != events.Live {
		subject = events.SnapshotsSubject(h.Firewall)
	}
	if err := tp.w.Write(recording.Message{Time: time.Unix(1_790_000_000, 0).Add(after), Subject: subject, Data: data}); err != nil {
		tp.t.Fatal(err)
	}
}

// TestReplaySource: one firewall's batches come again, as far apart as they were, under
// another name, with a new account of what is held and what is missing.
func TestReplaySource(t *testing.T) {
	t.Parallel()
	const whole = events.SnapshotPart | events.SnapshotBegin | events.SnapshotEnd
	tp := newTape(t)
	tp.add(events.Header{Firewall: "fw-x", Seq: 9, Epoch: 1, Phase: events.SnapshotPart | events.SnapshotEnd}, 0, 0, events.Existing, 500, 7) // its beginning is missing
	tp.add(events.Header{Firewall: "fw-x", Seq: 4, Epoch: 1, Total: 900, Lost: 50}, 0, 0, events.New, 0, 10)
	tp.add(events.Header{Firewall: "fw-y", Seq: 1}, 0, 0, events.New, 0, 99)
	tp.add(events.Header{Firewall: "fw-x", Seq: 5, Epoch: 2, Total: 910, Lost: 50}, 50*time.Millisecond, 0, events.New, 600, 4) // of the epoch whose dump is to come
	tp.add(events.Header{Firewall: "fw-x", Seq: 10, Epoch: 2, Phase: whole}, 100*time.Millisecond, 0, events.Existing, 5, 25)   // five more are held already
	tp.add(events.Header{Firewall: "fw-x", Seq: 4, Epoch: 1, Total: 900, Lost: 50}, 200*time.Millisecond, 0, events.New, 0, 10)
	tp.add(events.Header{Firewall: "fw-x", Seq: 7, Epoch: 2, Total: 917, Lost: 54}, time.Second, 900*time.Millisecond, events.Destroy, 0, 8)
	r := newInputRig(t, Options{Source: "replay", InputFirewall: "fw-x", Input: tp.file(0)})
	begin := time.Now()
	if err := r.read(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < time.Second {
		t.Errorf("a second was over after %s", took)
	}
	// Of the epoch that the dump began: its 25 rows, of which three end, and four flows
	// from before its first row. The five flows before it ended unheld.
	if r.new != 14 || r.gone != 8 || !r.complete[2] || r.active[2] != 22+4 {
		t.Errorf("%d new, %d gone, active %v, complete %v", r.new, r.gone, r.active, r.complete)
	}
	if s := r.p.Stream(); s.Events != 22 || s.LostSocket != 3+4 || s.Published != 22 {
		t.Errorf("its account: %+v", s)
	}
	var times []int64
	if err := r.conn.Read(t.Context(), bus.StreamEvents, bus.FollowFrom{All: true}, func(m bus.Msg) {
		var b events.Batch
		var e events.Event
		if err := new(events.Decoder).Decode(m.Data, &b); err != nil || m.Subject != "ct.v1.events.fw-a" || b.Boot == (events.Boot{7}) {
			t.Errorf("%s: boot %s, %v", m.Subject, b.Boot, err)
		}
		for it := b.Events(); it.Next(&e); {
			times = append(times, e.Time)
		}
	}); err != nil {
		t.Fatal(err)
	}
	// What had waited 900 ms when it was sent after a second happened after 100 ms.
	if d := time.Duration(times[len(times)-1] - times[0]); d < 99*time.Millisecond || d > 101*time.Millisecond {
		t.Errorf("the last event happened %s after the first, want 100ms", d)
	}
}

// TestReplaySourceRefuses what it cannot feed.
func TestReplaySourceRefuses(t *testing.T) {
	t.Parallel()
	two := func() *tape {
		tp := newTape(t)
		tp.add(events.Header{Firewall: "fw-x", Seq: 1}, 0, 0, events.New, 0, 10)
		tp.add(events.Header{Firewall: "fw-y", Seq: 1}, 0, 0, events.New, 0, 10)
		return tp
	}
	for _, c := range []struct {
		want string
		opt  Options
		new  int
	}{
		{"fw-x and fw-y among them: --input-firewall", Options{Input: two().file(0)}, 10},
		{"has no batch of fw-z", Options{Input: two().file(0), InputFirewall: "fw-z"}, 0},
		{"cut off after message 1", Options{Input: two().file(9), InputFirewall: "fw-x"}, 10},
		{"no recording", Options{Input: inputFile(t, xmlHead)}, 0},
	} {
		t.Run(c.want, func(t *testing.T) {
			t.Parallel()
			c.opt.Source = "replay"
			r := newInputRig(t, c.opt)
			if err := r.read(); err == nil || !strings.Contains(err.Error(), c.want) || r.new != c.new {
				t.Errorf("ended with %v and %d new, want %q and %d", err, r.new, c.want, c.new)
			}
		})
	}
}

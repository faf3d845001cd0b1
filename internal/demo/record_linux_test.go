package demo

import (
	"bytes"
	"compress/gzip"
	"context"
	"flag"
	"log/slog"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/recording"
)

var record = flag.Bool("record", false, "write recording.gz anew, from a show in the lab")

// unenforced is a lab in which nothing is flushed.
type unenforced struct{ stage }

func (unenforced) enforces() bool { return false }

// recordFor is long enough for the alert to be resolved again: the recording is
// played from its beginning when it has ended.
const recordFor = 26 * time.Second

// TestRecord makes the recording that is played where no lab can be built.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("writes recording.gz, with -record")
	}
	labtest.Require(t)
	cfg := testConfig(t)
	cfg.Duration = recordFor + time.Second
	s := newShow(cfg)
	lab, err := newLive(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.stage = unenforced{lab}
	ended := make(chan error, 1)
	go func() {
		_, err := s.run(t.Context())
		ended <- err
	}()
	time.Sleep(recordFor)
	conn, err := bus.Connect(bus.Config{Flags: bus.Flags{NATSURL: cfg.URL()}, Role: "recorder", Name: "recorder", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	var messages []recording.Message
	for _, stream := range []string{bus.StreamEvents, bus.StreamSnapshots} {
		err := conn.Read(context.Background(), stream, bus.FollowFrom{All: true}, func(m bus.Msg) {
			messages = append(messages, recording.Message{Time: m.Time, Subject: m.Subject, Data: slices.Clone(m.Data)})
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	conn.Close()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	slices.SortStableFunc(messages, func(a, b recording.Message) int { return a.Time.Compare(b.Time) })
	var b bytes.Buffer
	packer, _ := gzip.NewWriterLevel(&b, gzip.BestCompression) // a level that there is
	w, err := recording.NewWriter(packer)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if err := w.Write(m); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := packer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("recording.gz", b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d batches, %d KiB", len(messages), b.Len()>>10)
}

package demo

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/recording"
)

func testConfig(t *testing.T) Config {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
		return l
	}
	return Config{HTTP: listen(), NATS: listen(), Log: slog.New(slog.DiscardHandler)}
}

// beginning is a file with the first seconds of the recording.
func beginning(t *testing.T, d time.Duration) string {
	t.Helper()
	whole, err := newRecorded()
	if err != nil {
		t.Fatal(err)
	}
	defer whole.close()
	in, err := os.Open(whole.(*recorded).file)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.Create(filepath.Join(t.TempDir(), "beginning"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	r, err := recording.NewReader(in)
	if err != nil {
		t.Fatal(err)
	}
	w, err := recording.NewWriter(out)
	if err != nil {
		t.Fatal(err)
	}
	var m recording.Message
	var first time.Time
	for err = r.Next(&m); err == nil; err = r.Next(&m) {
		if first.IsZero() {
			first = m.Time
		}
		if m.Time.Sub(first) < d {
			if err := w.Write(m); err != nil {
				t.Fatal(err)
			}
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return out.Name()
}

// TestRecordingGoesOn: a recording that has ended begins again, and nothing is lost
// between.
func TestRecordingGoesOn(t *testing.T) {
	t.Parallel()
	cfg := testConfig(t)
	cfg.Duration = 5 * time.Second
	s := newShow(cfg)
	s.stage = &recorded{file: beginning(t, time.Second), begun: make(chan struct{}, 1)}
	res, err := s.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fleet := s.agg.Firewalls().Firewalls
	if len(fleet) != len(names) || res.Lost != 0 || res.Events == 0 {
		t.Errorf("%d firewalls, %d events, %d lost", len(fleet), res.Events, res.Lost)
	}
	for i := range fleet {
		if f := &fleet[i]; f.Boots < 3 || f.Source != "replay" {
			t.Errorf("%s: played %d times in %s, from %q; want 3 times at least, from replay", f.Firewall, f.Boots, cfg.Duration, f.Source)
		}
	}
}

package recording

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func recorded(t testing.TB, messages ...Message) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := NewWriter(&out)
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
	return out.Bytes()
}

// read returns the subjects of all messages, and how the recording ended.
func read(data []byte) (subjects []string, err error) {
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	for {
		var m Message
		if err := r.Next(&m); err != nil {
			return subjects, err
		}
		subjects = append(subjects, m.Subject+string(m.Data))
	}
}

var (
	at    = time.Unix(1_790_000_000, 123456789)
	three = []Message{{at, "ct.v1.events.fw-a", []byte("one")}, {at.Add(1), "ct.v1.snapshots.fw-b", nil}, {at, "ct.v1.events.fw-b", bytes.Repeat([]byte{0xc1}, events.MaxBatchBytes)}}
)

func TestWhatIsWrittenIsRead(t *testing.T) {
	data := recorded(t, three...)
	r, err := NewReader(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range three {
		var m Message
		if err := r.Next(&m); err != nil || !m.Time.Equal(want.Time) || m.Subject != want.Subject || !bytes.Equal(m.Data, want.Data) {
			t.Errorf("message %d: %v %s, %d bytes, %v", i, m.Time, m.Subject, len(m.Data), err)
		}
	}
	if err := r.Next(&Message{}); err != io.EOF || r.Offset() != int64(len(data)) { //nolint:errorlint // as it is
		t.Errorf("at the end: %v, %d of %d bytes", err, r.Offset(), len(data))
	}
}

// TestCutOff: wherever a recording ends, what was whole before is read.
func TestCutOff(t *testing.T) {
	data := recorded(t, three[:2]...)
	begin := len(recorded(t))
	first := len(recorded(t, three[0]))
	for n := range data {
		got, err := read(data[:n])
		want := 0
		if n >= first {
			want = 1
		}
		switch {
		case len(got) != want:
			t.Errorf("%d bytes: %d messages, want %d", n, len(got), want)
		case n < begin && !errors.Is(err, ErrNoRecording), n == begin && err != io.EOF, n == first && err != io.EOF, //nolint:errorlint // as it is
			n > begin && n != first && !errors.Is(err, ErrCutOff):
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}

func TestRefused(t *testing.T) {
	good := string(recorded(t, three[0]))
	f := func(want, text string) {
		t.Helper()
		if _, err := read([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f("no recording", "")
	f("no recording", "<?xml version=\"1.0\"?>")
	f("no recording", strings.Replace(good, "ctfleet-recording", "another-recording", 1))
	f("unknown version 2", strings.Replace(good, "\xa1v\x01", "\xa1v\x02", 1))
	f("no such field", strings.Replace(good, "subject", "subjekt", 1))
	f("a field is missing", strings.Replace(good, "\x83", "\x82", 1)[:strings.Index(good, "\xa4data")])
	f("bytes, at most", strings.Replace(good, "\xc4\x03one", "\xc6\x7f\xff\xff\xff", 1))
	f("a map of", strings.Replace(good, "\x83", "\xdf\x7f\xff\xff\xff", 1))
}

func FuzzReader(f *testing.F) {
	f.Add(recorded(f, three[:2]...))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := read(data)
		if err == nil || len(got) > len(data)/20 {
			t.Errorf("%d messages in %d bytes, %v", len(got), len(data), err)
		}
	})
}

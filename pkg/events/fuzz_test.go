package events_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"unicode"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// FuzzDecode: whatever comes, Decode does not panic; what it accepts walks to
// its end, and written again says the same.
func FuzzDecode(f *testing.F) {
	files, err := filepath.Glob("testdata/*.msgpack")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden batches: ", err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var d events.Decoder
		var b events.Batch
		if d.Decode(data, &b) != nil {
			return
		}
		evs := readAll(&b)
		if len(evs) != b.Count {
			t.Fatalf("%d events read of %d", len(evs), b.Count)
		}
		for i, brief := range b.AppendBriefs(nil) {
			e := &evs[i]
			want := events.Brief{
				Src: e.Orig.Src, Dst: e.Orig.Dst, Time: e.Time, DstPort: e.Orig.DstPort, Status: e.Status, Zone: e.Zone,
				Type: e.Type, Flags: e.Flags, Proto: e.Proto, IPv6: e.IPv6,
			}
			if brief != want {
				t.Fatalf("event %d in brief is %+v, it is %+v", i, brief, e)
			}
		}
		// Times are kept relative to the first event, which a foreign batch need not begin with.
		for i := range evs {
			if evs[i].Time -= b.Base; i > 0 && evs[i].Time < evs[0].Time || evs[i].Time-evs[0].Time < 0 {
				return
			}
		}
		var w events.BatchWriter
		for i := range evs {
			if w.Append(&evs[i]) != nil {
				return // fits one batch only without the fields that this one leaves out
			}
		}
		h := b.Header
		again, err := w.Encode(&h)
		if err != nil {
			t.Fatal(err)
		}
		var b2 events.Batch
		if err := d.Decode(again, &b2); err != nil {
			t.Fatalf("written again it is refused: %v", err)
		}
		if got := readAll(&b2); !slices.Equal(got, evs) {
			t.Fatalf("written again it says\n%+v\nnot\n%+v", got, evs)
		}
		h2 := b2.Header
		h.Base, h2.Base = 0, 0
		if h != h2 {
			t.Fatalf("header %+v, was %+v", h2, h)
		}
	})
}

// FuzzUnmarshal: no message panics; what is accepted is valid, shows no control
// character where names and texts stand, and survives a round trip.
func FuzzUnmarshal(f *testing.F) {
	kinds := messages()
	for i, m := range kinds {
		data, err := events.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), data)
	}
	f.Fuzz(func(t *testing.T, kind uint8, data []byte) {
		fresh := func() events.Message {
			return reflect.New(reflect.TypeOf(kinds[int(kind)%len(kinds)]).Elem()).Interface().(events.Message)
		}
		m := fresh()
		if events.Unmarshal(data, m) != nil {
			return
		}
		first, err := events.Marshal(m)
		if err != nil {
			t.Fatalf("%T: accepted, but not written again: %v", m, err)
		}
		again := fresh()
		if err := events.Unmarshal(first, again); err != nil {
			t.Fatalf("%T: written again it is refused: %v", m, err)
		}
		second, err := events.Marshal(again)
		if err != nil || !bytes.Equal(first, second) {
			t.Fatalf("%T: changes when written again: %v\n%x\n%x", m, err, first, second)
		}
		if a, ok := m.(*events.Alert); ok {
			for _, r := range a.Key + a.Text + a.Rule + a.Scope {
				if unicode.IsControl(r) {
					t.Fatalf("control character %q is let through", r)
				}
			}
		}
	})
}

// FuzzParse: names and prefixes have one spelling each.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"203-0-113-7", "203.0.113.0/24", "2001-0db8-0000-0000-0000-0000-0000-0000_64", "2001:db8::7", "::ffff:1.2.3.4", "a%b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if p, err := events.ParseSubjectKey(s); err == nil {
			if got := events.SubjectKey(p); got != s {
				t.Errorf("subject key %q becomes %q", s, got)
			}
			if p.Addr().Is4In6() || p.Masked() != p {
				t.Errorf("subject key %q gives %v", s, p)
			}
		}
		if p, err := events.ParsePrefix(s); err == nil {
			if back, err := events.ParsePrefix(events.FormatPrefix(p)); err != nil || back != p {
				t.Errorf("prefix %q: %v becomes %v, %v", s, p, back, err)
			}
			if back, err := events.ParseSubjectKey(events.SubjectKey(p)); err != nil || back != p {
				t.Errorf("prefix %q as a subject key: %v becomes %v, %v", s, p, back, err)
			}
		}
		if events.CheckName(s) == nil && (len(s) > 63 || bytes.ContainsAny([]byte(s), ".*> \t\r\n")) {
			t.Errorf("name %q is allowed", s)
		}
	})
}

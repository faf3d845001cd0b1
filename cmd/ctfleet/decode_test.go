package main

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"
	"unicode"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func packed(t testing.TB, v any) []byte {
	t.Helper()
	data, err := msgpack.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// decoded is what the command prints for a message.
func decoded(t testing.TB, data []byte) (string, error) {
	t.Helper()
	v, err := decode(data)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	if err := printJSON(&out, v); err != nil {
		t.Fatalf("decoded and then not printable: %v", err)
	}
	return out.String(), nil
}

// TestDecodeHidesControls: what a stranger put on the bus must not move the
// cursor, ring the bell or turn the reading direction of a terminal.
func TestDecodeHidesControls(t *testing.T) {
	nasty := "a\x1b[2Jb\x00c\x07d\x7fe\u0085f\u009b31mg\u202eh\u2066i\u200bj\ufeffk\U000e0041l\r\nm\xffn"
	out, err := decoded(t, packed(t, map[string]any{"reason": nasty, nasty: map[string]any{"deep": []any{nasty}}}))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range strings.TrimSuffix(out, "\n") {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			t.Errorf("%U reached the terminal", r)
		}
	}
	var back map[string]any
	if err := json.Unmarshal([]byte(out), &back); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, out)
	}
	// What can be kept is kept, as escapes.
	if got, want := back["reason"], strings.NewReplacer("\U000e0041", "\ufffd", "\xff", "\ufffd").Replace(nasty); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestPrintable(t *testing.T) {
	if got := printable("a\x1b]0;title\x07\u202eb\nc\td é 漢"); got != "a\ufffd]0;title\ufffd\ufffdb\nc\td é 漢" {
		t.Errorf("%q", got)
	}
}

func TestDecodeOddities(t *testing.T) {
	f := func(v any, want string) {
		t.Helper()
		if out, err := decoded(t, packed(t, v)); err != nil || strings.TrimSpace(out) != want {
			t.Errorf("%v: %s, %v, want %s", v, out, err, want)
		}
	}
	f(map[string]any{}, `{}`)
	f(map[string]any{"f": math.NaN(), "g": float32(math.Inf(-1)), "h": 1.5}, `{"f":"NaN","g":"-Inf","h":1.5}`)
	f(map[any]any{1: "a", true: nil, "z": []any{}}, `{"1":"a","true":null,"z":[]}`)
	f(map[string]any{"bin": []byte{0, 255}, "m": map[string]any{"deep": -5}}, `{"bin":"AP8=","m":{"deep":-5}}`)
	f(map[string]any{"big": uint64(math.MaxUint64), "small": int64(math.MinInt64)}, `{"big":18446744073709551615,"small":-9223372036854775808}`)
	if out, err := decoded(t, []byte{0x81, 0xa1, 'x', 0xd4, 0x05, 0x2a}); err != nil || strings.TrimSpace(out) != `{"x":{"data":"Kg==","ext":5}}` {
		t.Errorf("extension: %s, %v", out, err)
	}
}

func TestDecodeRefuses(t *testing.T) {
	batch := func() []byte {
		var w events.BatchWriter
		e := events.Event{Type: events.New, Proto: 6}
		if err := w.Append(&e); err != nil {
			t.Fatal(err)
		}
		data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: "default"})
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Clone(data)
	}()
	if out, err := decoded(t, batch); err != nil || !strings.Contains(out, `"firewall":"fw-a"`) {
		t.Fatalf("a good batch: %s, %v", out, err)
	}
	newer := bytes.Replace(batch, []byte("\xa1v\x01"), []byte("\xa1v\x02"), 1)
	short := bytes.Replace(batch, []byte("\xa1n\x01"), []byte("\xa1n\x02"), 1)
	if bytes.Equal(newer, batch) || bytes.Equal(short, batch) {
		t.Fatal("the batch is not spelt as this test thinks")
	}
	nest := func(b byte, n int) []byte { return append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{b}, n)...) }
	for _, c := range []struct {
		name string
		data []byte
		want string
	}{
		{"empty", nil, "standard input is empty"},
		{"too long", make([]byte, events.MaxBatchBytes+1), "more than"},
		{"text", []byte("hello"), "no msgpack"},
		{"a number", []byte{0x05}, "no msgpack map"},
		{"truncated", batch[:len(batch)-3], "ends too early"},
		{"followed", append(bytes.Clone(batch), 0), "1 bytes follow its end"},
		{"newer", newer, "unknown version"},
		{"columns", short, "a batch that cannot be read"},
		{"key twice", []byte{0x82, 0xa1, 'x', 1, 0xa1, 'x', 2}, `key "x" appears twice`},
		{"deep arrays", nest(0x91, 200_000), "nests deeper than 32"},
		{"deep maps", append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x81, 0xa1, 'x'}, 80_000)...), "nests deeper than 32"},
		{"map in a key", []byte{0x81, 0x81, 0xa1, 'x', 1, 1}, "nests deeper than 32"},
		{"long array", append(nest(0xdd, 1), 0xff, 0xff, 0xff, 0xfe), "ends too early"},
		{"long arrays", bytes.Repeat([]byte{0xdd, 0x00, 0x01, 0x00, 0x00}, 50_000), "nests deeper than 32"},
		{"long map", append(nest(0xdf, 1), 0x7f, 0xff, 0xff, 0xff), "ends too early"},
		{"long string", append(nest(0xdb, 1), 0x7f, 0xff, 0xff, 0xff), "ends too early"},
		{"long extension", append(nest(0xc9, 1), 0x7f, 0xff, 0xff, 0xff, 1), "ends too early"},
		{"reserved byte", nest(0xc1, 1), "no msgpack message"},
	} {
		out, err := decoded(t, c.data)
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %.100s, %v, want %q in one line", c.name, out, err, c.want)
		}
	}
}

// TestDecodeProcess is the command as nats sub --translate runs it.
func TestDecodeProcess(t *testing.T) {
	t.Parallel()
	r := call{stdin: packed(t, map[string]any{"text": "\u202eevil\x7f"})}.run(t, "ctfleet", "decode")
	if r.code != 0 || r.stdout != `{"text":"\u202eevil\u007f"}`+"\n" || r.stderr != "" {
		t.Errorf("%+v", r)
	}
	r = call{stdin: []byte("hello")}.run(t, "ctfleet", "decode")
	if r.code != 1 || r.stdout != "" || strings.Count(r.stderr, "\n") != 1 {
		t.Errorf("%+v", r)
	}
}

// FuzzDecode: any bytes are printed safely or refused in one line.
func FuzzDecode(f *testing.F) {
	f.Add(packed(f, map[string]any{"v": 1, "text": "\u202e", "list": []any{nil, 1.5, true}}))
	f.Add([]byte{0x81, 0xa1, 'x', 0xd4, 0x05, 0x2a})
	f.Add([]byte("\x81\xa1x\xc6\xdb\xdb\xdb\xdb0")) // 3.7 GB, it says
	f.Add(bytes.Repeat([]byte{0xdd, 0x00, 0x01, 0x00, 0x00}, 50))
	f.Fuzz(func(t *testing.T, data []byte) {
		out, err := decoded(t, data)
		if err != nil {
			return
		}
		if !json.Valid([]byte(out)) {
			t.Fatalf("not JSON: %s", out)
		}
		if i := strings.IndexFunc(strings.TrimSuffix(out, "\n"), hidden); i >= 0 {
			t.Fatalf("a control character is left at %d: %q", i, out)
		}
	})
}

// TestDecodeCounters: each event of a batch has its own.
func TestDecodeCounters(t *testing.T) {
	var w events.BatchWriter
	for n := range uint64(2) {
		e := events.Event{Type: events.Destroy, Proto: 6, HasCounters: true, Counters: events.Counters{OrigPackets: n + 1}}
		if err := w.Append(&e); err != nil {
			t.Fatal(err)
		}
	}
	data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: events.RealmDefault, Seq: 1})
	if err != nil {
		t.Fatal(err)
	}
	if text, err := decoded(t, data); err != nil || !strings.Contains(text, `"OrigPackets":1,`) || !strings.Contains(text, `"OrigPackets":2,`) {
		t.Errorf("%s, %v", text, err)
	}
}

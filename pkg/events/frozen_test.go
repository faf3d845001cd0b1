package events_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// goldenMessages are a map message of each kind, as version 1 wrote it with every field
// that it had then.
const goldenMessages = "testdata/messages-v1"

// writeOnce writes a golden file, unless there is one: what a version has written is
// never written again.
func writeOnce(t *testing.T, file string, content []byte) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if os.IsExist(err) {
		return
	}
	if err == nil {
		_, err = io.Copy(f, bytes.NewReader(content))
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestGoldenMessages reads the map messages that version 1 wrote. What each of its keys
// says must be read for as long as the version is; keys may have come since.
func TestGoldenMessages(t *testing.T) {
	for _, m := range messages() {
		name := reflect.TypeOf(m).Elem().Name()
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(goldenMessages, name)
			if *update {
				data, err := events.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				words, err := json.MarshalIndent(m, "", "  ")
				if err != nil {
					t.Fatal(err)
				}
				writeOnce(t, file+".msgpack", data)
				writeOnce(t, file+".json", append(words, '\n'))
			}
			data, want := read(t, file+".msgpack"), map[string]any{}
			if err := json.Unmarshal(read(t, file+".json"), &want); err != nil {
				t.Fatal(err)
			}
			reads := func(data []byte) {
				t.Helper()
				m := reflect.New(reflect.TypeOf(m).Elem()).Interface().(events.Message)
				if err := events.Unmarshal(data, m); err != nil {
					t.Fatal(err)
				}
				words, err := json.Marshal(m)
				if err != nil {
					t.Fatal(err)
				}
				var got map[string]any
				if err := json.Unmarshal(words, &got); err != nil {
					t.Fatal(err)
				}
				within(t, name, got, want)
			}
			reads(data)
			reads(withKey(t, data)) // as a later program may write it
		})
	}
}

// within fails unless got says all that want does.
func within(t *testing.T, at string, got, want any) {
	t.Helper()
	switch want := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			t.Errorf("%s: %v, want %v", at, got, want)
			return
		}
		for k, v := range want {
			within(t, at+"."+k, g[k], v)
		}
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(want) {
			t.Errorf("%s: %v, want %v", at, got, want)
			return
		}
		for i := range want {
			within(t, fmt.Sprintf("%s[%d]", at, i), g[i], want[i])
		}
	default:
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", at, got, want)
		}
	}
}

// withKey adds a key to a map that no version of today knows.
func withKey(t *testing.T, data []byte) []byte {
	t.Helper()
	r := bytes.NewReader(data)
	n, err := msgpack.NewDecoder(r).DecodeMapLen()
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	enc := msgpack.NewEncoder(&out)
	if err := enc.EncodeMapLen(n + 1); err != nil {
		t.Fatal(err)
	}
	if err := enc.EncodeMulti("of_a_later_program", map[string]any{"nested": []any{1, "two", nil}}); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), rest...)
}

// TestGoldenBatchesWithUnknownKeys: a key that a later program adds is skipped.
func TestGoldenBatchesWithUnknownKeys(t *testing.T) {
	for _, g := range goldens() {
		data := read(t, filepath.Join("testdata", g.name+".msgpack"))
		sameLines(t, describe(t, withKey(t, data)), describe(t, data))
	}
}

// TestFrozen holds the bytes of the golden files of version 1: what a version once
// wrote is what the firewalls that still run it write. Whoever changes one of these
// files has changed nothing out there. New files are added here, with a new version or a new
// shape; none is ever changed or taken away.
func TestFrozen(t *testing.T) {
	got := map[string]string{}
	for _, pattern := range []string{"testdata/*.msgpack", goldenMessages + "/*.msgpack"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			sum := sha256.Sum256(read(t, file))
			got[strings.TrimPrefix(filepath.ToSlash(file), "testdata/")] = hex.EncodeToString(sum[:8])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(frozen)) {
		if got[name] != frozen[name] {
			t.Errorf("%s is %q, and was frozen as %q: version 1 wrote it so, and every program that reads version 1 must read it so", name, got[name], frozen[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if frozen[name] == "" {
			t.Errorf("%q: %q, is a golden file that is not frozen yet", name, got[name])
		}
	}
}

// frozen are the first eight bytes of each file's SHA-256.
var frozen = map[string]string{
	"counters.msgpack":                   "ac3f767a974585af",
	"empty.msgpack":                      "a6834823e597e475",
	"ipv4.msgpack":                       "a408e657f0d0865d",
	"ipv6.msgpack":                       "c18496c8c7a1da19",
	"messages-v1/Act.msgpack":            "472a9f87f4a303f5",
	"messages-v1/AddressQuery.msgpack":   "39a3f40d69a562ab",
	"messages-v1/AddressReply.msgpack":   "5303f94b5de58c5e",
	"messages-v1/Alert.msgpack":          "4783b51940697f49",
	"messages-v1/AlertsQuery.msgpack":    "9092c2158c8e2ab9",
	"messages-v1/AlertsReply.msgpack":    "82919234d8f3730b",
	"messages-v1/AllowEntry.msgpack":     "c1e67fa3cd8972fa",
	"messages-v1/Answer.msgpack":         "acbf6d71971b3638",
	"messages-v1/CircuitOrder.msgpack":   "df60382c3eb07201",
	"messages-v1/Command.msgpack":        "18bab7e7b09bbe94",
	"messages-v1/Decision.msgpack":       "aad4d84282122900",
	"messages-v1/Dismissal.msgpack":      "486e8af0d0d15170",
	"messages-v1/FirewallsQuery.msgpack": "48da60cb929ddb15",
	"messages-v1/FirewallsReply.msgpack": "c4966dbbddab3df9",
	"messages-v1/Health.msgpack":         "e3e4f3040851a869",
	"messages-v1/Ledger.msgpack":         "acf87d644d975723",
	"messages-v1/Mute.msgpack":           "b86364d472c20905",
	"messages-v1/Outcome.msgpack":        "d964bd5d441f7053",
	"messages-v1/Pace.msgpack":           "cc7d1dc782e4fc35",
	"messages-v1/Proposal.msgpack":       "170ae22f0583ae8d",
	"messages-v1/Receipt.msgpack":        "8ddc5d4523400311",
	"messages-v1/ResyncReply.msgpack":    "99e1ca9b24bfcc1f",
	"messages-v1/TopQuery.msgpack":       "c02913a0f30f4aee",
	"messages-v1/TopReply.msgpack":       "f1ebbd9f274983ef",
	"mixed.msgpack":                      "7550b9d7a17048d5",
	"nat.msgpack":                        "189de5c851dcff75",
	"snapshot-abort.msgpack":             "428db6afaae9adac",
	"snapshot-begin.msgpack":             "bc04fb1088adcb0e",
	"snapshot-end.msgpack":               "bbb1cb4275a864fc",
	"zones.msgpack":                      "aa02308be12b8a4b",
}

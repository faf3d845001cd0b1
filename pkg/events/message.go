package events

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"unicode"
	"unicode/utf8"

	"github.com/vmihailenco/msgpack/v5"
)

// MaxMessageBytes is the largest map message that is read, but for answers.
const MaxMessageBytes = 256 << 10

// MaxAnswerBytes is the largest answer of the centre that is read, in which a fleet
// of 1,000 firewalls has room. It is what a NATS server passes on unless it is told
// otherwise.
const MaxAnswerBytes = 1 << 20

// Message is a map message: everything on the bus but the batch.
type Message interface {
	// Validate reports what is wrong with the content: a bad name, a text with
	// control characters, a field that must not be empty.
	Validate() error
	version() *int
}

// Marshal encodes m as a msgpack map, keys of nested maps sorted, so that equal
// messages are equal bytes (signatures and deterministic ids need that).
func Marshal(m Message) ([]byte, error) {
	if v := m.version(); *v == 0 {
		*v = MessageVersion
	}
	var buf bytes.Buffer
	enc := msgpack.NewEncoder(&buf)
	enc.UseCompactInts(true)
	if err := enc.Encode(m); err != nil {
		return nil, fmt.Errorf("encode %T: %w", m, err)
	}
	return buf.Bytes(), nil
}

// Unmarshal decodes data into m, whose former content is lost, and validates
// it. Unknown keys are skipped; a version that this package does not read is refused
// with ErrVersion.
func Unmarshal(data []byte, m Message) error {
	most := MaxMessageBytes
	switch m.(type) {
	case *TopReply, *FirewallsReply, *AlertsReply, *AddressReply:
		most = MaxAnswerBytes
	}
	if len(data) > most {
		return fmt.Errorf("decode %T: %d bytes, at most %d are allowed", m, len(data), most)
	}
	if err := checkMap(data); err != nil {
		return fmt.Errorf("decode %T: %w", m, err)
	}
	reflect.ValueOf(m).Elem().SetZero()
	if err := msgpack.Unmarshal(data, m); err != nil {
		return fmt.Errorf("decode %T: %w", m, err)
	}
	if err := checkVersion(*m.version(), messageVersions); err != nil {
		return fmt.Errorf("decode %T: %w", m, err)
	}
	if err := m.Validate(); err != nil {
		return fmt.Errorf("decode %T: %w", m, err)
	}
	return nil
}

// maxKeys is more keys than any version of a message will have.
const maxKeys = 1024

// checkMap verifies that data is one msgpack map and nothing else, with string
// keys that appear once: of two equal keys, decoders differ in which one counts.
// It walks without recursion, as the decoder that follows takes the nesting
// that the sender chose.
func checkMap(data []byte) error {
	r := bytes.NewReader(data)
	dec := msgpack.NewDecoder(r)
	n, err := dec.DecodeMapLen()
	if err != nil || n < 0 {
		return errors.New("not a msgpack map")
	}
	if n > maxKeys {
		return fmt.Errorf("%d keys, at most %d are allowed", n, maxKeys)
	}
	seen := make(map[string]bool, n)
	for range n {
		key, err := dec.DecodeString()
		if err != nil {
			return fmt.Errorf("key: %w", err)
		}
		if seen[key] {
			return fmt.Errorf("key %.32q appears twice", key)
		}
		seen[key] = true
		if err := skip(dec); err != nil {
			return fmt.Errorf("key %.32q: %w", key, err)
		}
	}
	if r.Len() > 0 {
		return fmt.Errorf("%d bytes after its end", r.Len())
	}
	return nil
}

// ByName is a map whose keys are written in order. (The encoder's own sorting
// covers maps of a few value types only.)
type ByName[V any] map[string]V

// EncodeMsgpack implements msgpack.CustomEncoder.
func (m ByName[V]) EncodeMsgpack(enc *msgpack.Encoder) error {
	if m == nil {
		return enc.EncodeNil()
	}
	if err := enc.EncodeMapLen(len(m)); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(m)) {
		if err := enc.EncodeString(name); err != nil {
			return err
		}
		if err := enc.Encode(m[name]); err != nil {
			return err
		}
	}
	return nil
}

// Head is embedded in every map message.
type Head struct {
	V int `msgpack:"v" json:"v"`
}

func (h *Head) version() *int { return &h.V }

// maxText bounds one free text: a reason, a version, a label.
const maxText = 1024

var errControl = errors.New("control characters are not allowed")

// checkText returns nil when each of the named texts may be shown as it is.
func checkText(fields ...[2]string) error {
	for _, f := range fields {
		if len(f[1]) > maxText {
			return fmt.Errorf("%s: %d bytes, at most %d are allowed", f[0], len(f[1]), maxText)
		}
		if !utf8.ValidString(f[1]) {
			return fmt.Errorf("%s: not UTF-8", f[0])
		}
		for _, r := range f[1] {
			if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
				return fmt.Errorf("%s: %w", f[0], errControl)
			}
		}
	}
	return nil
}

// checkFinite returns nil when field's values are numbers: JSON has no other.
func checkFinite(field string, values ...float64) error {
	for _, v := range values {
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%s: %v is no number", field, v)
		}
	}
	return nil
}

// oneOf returns nil when value is one of the allowed words.
func oneOf(field, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return fmt.Errorf("%s: %.40q is none of %q", field, value, allowed)
}

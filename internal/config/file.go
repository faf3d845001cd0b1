package config

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Validator is implemented by file contents that check more than types.
type Validator interface{ Validate() error }

// ReadFile reads the YAML file at path into v, strictly, and validates it when
// v is a [Validator]. Errors begin with path:line:column where known.
func ReadFile(path string, v any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err // names the path already
	}
	return Parse(path, data, v)
}

// ReadFileDigest is [ReadFile], and returns the digest of what was read.
func ReadFileDigest(path string, v any) (digest string, err error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return Digest(data), Parse(path, data, v)
}

// Digest names the contents of a file: the first 12 characters that sha256sum prints.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:6])
}

// Parse is [ReadFile] for bytes already read; name stands for the path. A
// document without content leaves v as it is.
func Parse(name string, data []byte, v any) (err error) {
	// The YAML library panics on some malformed documents.
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%s: this is not YAML that can be read: %v", name, p)
		}
	}()
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return explain(name, err, v)
	}
	docs := slices.DeleteFunc(file.Docs, func(d *ast.DocumentNode) bool {
		return d == nil || d.Body == nil || d.Body.Type() == ast.CommentType || d.Body.Type() == ast.NullType
	})
	switch len(docs) {
	case 0:
	case 1:
		if err := yaml.NewDecoder(bytes.NewReader(nil), yaml.Strict()).DecodeFromNode(docs[0].Body, v); err != nil {
			return explain(name, err, v)
		}
	default:
		return fmt.Errorf("%s:%d: one YAML document is expected, a second one follows", name, docs[1].Body.GetToken().Position.Line)
	}
	if val, ok := v.(Validator); ok {
		if err := val.Validate(); err != nil {
			return fmt.Errorf("%s: %w", locate(name, data, err), err)
		}
	}
	return nil
}

// Located is implemented by errors of a [Validator] that know the key that is
// wrong, as a path such as "$.policies[1].where".
type Located interface {
	error
	KeyPath() string
}

// located is an error about one key of a file.
type located struct {
	path string
	error
}

func (l located) KeyPath() string { return l.path }
func (l located) Unwrap() error   { return l.error }

// At makes an error of a [Validator] about the key at path, such as
// "$.policies[1].where".
func At(path, format string, args ...any) error { return located{path, fmt.Errorf(format, args...)} }

// locate adds to name where the key is that err is about, if it is in the file.
func locate(name string, data []byte, err error) string {
	var l Located
	if !errors.As(err, &l) {
		return name
	}
	path, err := yaml.PathString(l.KeyPath())
	if err != nil {
		return name
	}
	node, err := path.ReadNode(bytes.NewReader(data))
	if err != nil || node == nil || node.GetToken() == nil {
		return name
	}
	at := node.GetToken().Position
	return fmt.Sprintf("%s:%d:%d", name, at.Line, at.Column)
}

var unknownField = regexp.MustCompile(`^unknown field "(.*)"$`)

func explain(name string, err error, v any) error {
	var e yaml.Error
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: %w", name, err)
	}
	where := name
	if t := e.GetToken(); t != nil && t.Position != nil {
		where = fmt.Sprintf("%s:%d:%d", name, t.Position.Line, t.Position.Column)
	}
	msg := e.GetMessage()
	if m := unknownField.FindStringSubmatch(msg); m != nil {
		msg = fmt.Sprintf("unknown key %q", m[1]) + suggest(m[1], keys(reflect.TypeOf(v), nil))
	}
	return fmt.Errorf("%s: %s", where, msg)
}

// suggest names the nearest valid word, or all of them when none is near.
func suggest(word string, valid []string) string {
	if best := Nearest(word, valid); best != "" {
		return fmt.Sprintf(", did you mean %q?", best)
	}
	return ", valid are " + strings.Join(valid, ", ")
}

// Nearest returns the valid word closest to word, or "" when none is within
// half of its length.
func Nearest(word string, valid []string) string {
	best, dist := "", max(len(word)/2, 2)+1
	for _, v := range valid {
		if d := distance(word, v); d < dist {
			best, dist = v, d
		}
	}
	return best
}

// distance is the Levenshtein distance of two short words.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost = 1 + min(diag, row[j], row[j+1])
			}
			diag, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}

// keys lists all YAML keys that occur anywhere below t.
func keys(t reflect.Type, seen []reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice || t.Kind() == reflect.Map {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || slices.Contains(seen, t) {
		return nil
	}
	seen = append(seen, t)
	var out []string
	for f := range t.Fields() {
		tag, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if tag != "" && tag != "-" {
			out = append(out, tag)
		}
		out = append(out, keys(f.Type, seen)...)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

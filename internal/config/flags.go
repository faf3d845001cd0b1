package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
)

// FlagFile resolves flags from a YAML file whose keys are the flags' names.
type FlagFile struct {
	name   string
	data   []byte
	values map[string]any
	used   map[string]bool // flags that got their value from here
	err    error           // what Validate refused
}

// LoadFlags returns a kong resolver for the YAML file at path: each key is a
// flag's long name. Flags given on the command line or in the environment win.
func LoadFlags(path string) (*FlagFile, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &FlagFile{name: path, data: data, used: map[string]bool{}}
	if err := Parse(path, data, &f.values); err != nil {
		return nil, err
	}
	return f, nil
}

// Validate refuses keys that are no flag of the program or of one of its
// commands, at their line.
func (f *FlagFile) Validate(app *kong.Application) error {
	valid := flagNames(app.Node, nil)
	slices.Sort(valid)
	valid = slices.Compact(valid)
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		if !slices.Contains(valid, key) {
			f.err = fmt.Errorf("%s: unknown key %q%s", f.position(key), key, suggest(key, valid))
			return f.err
		}
	}
	return nil
}

func flagNames(node *kong.Node, names []string) []string {
	for _, flag := range node.Flags {
		if flag.Name != "help" && flag.Name != "config" {
			names = append(names, flag.Name)
		}
	}
	for _, child := range node.Children {
		names = flagNames(child, names)
	}
	return names
}

var flagInError = regexp.MustCompile(`(?:^|\s)--([a-z0-9-]+):`)

// Explain adds file and line to an error about a flag whose value came from
// the file, and reports whether the file is to blame. It may be called on nil.
func (f *FlagFile) Explain(err error) (error, bool) {
	if f == nil {
		return err, false
	}
	if errors.Is(err, f.err) && f.err != nil {
		return err, true
	}
	if m := flagInError.FindStringSubmatch(err.Error()); m != nil && f.used[m[1]] {
		return fmt.Errorf("%s: %w", f.position(m[1]), err), true
	}
	return err, false
}

// position names the line of a top-level key.
func (f *FlagFile) position(key string) string {
	path, err := yaml.PathString("$.'" + key + "'")
	if err == nil {
		if node, err := path.ReadNode(strings.NewReader(string(f.data))); err == nil {
			return fmt.Sprintf("%s:%d", f.name, node.GetToken().Position.Line)
		}
	}
	return f.name
}

// Resolve implements kong.Resolver.
func (f *FlagFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return nil, nil // the environment wins over the file
		}
	}
	v, ok := f.values[flag.Name]
	if !ok {
		return nil, nil
	}
	f.used[flag.Name] = true
	switch v := v.(type) {
	case []any:
		words := make([]string, len(v))
		for i, e := range v {
			words[i] = fmt.Sprint(e)
		}
		return strings.Join(words, ","), nil
	case map[string]any:
		var words []string
		for k, e := range v {
			words = append(words, fmt.Sprintf("%s=%v", k, e))
		}
		return strings.Join(words, ";"), nil
	case nil:
		return nil, fmt.Errorf("%s: key %q has no value", f.position(flag.Name), flag.Name)
	default:
		return fmt.Sprint(v), nil
	}
}

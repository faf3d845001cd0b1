package config

import (
	"fmt"
	"os"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/goccy/go-yaml"
)

// flagFile resolves flags from a YAML file whose keys are the flags' names.
type flagFile struct {
	name   string
	data   []byte
	values map[string]any
}

// LoadFlags returns a kong resolver for the YAML file at path: each key is a
// flag's long name. Flags given on the command line or in the environment win.
func LoadFlags(path string) (kong.Resolver, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	f := &flagFile{name: path, data: data}
	if err := Parse(path, data, &f.values); err != nil {
		return nil, err
	}
	return f, nil
}

// Validate refuses keys that are no flag of the program, at their line.
func (f *flagFile) Validate(app *kong.Application) error {
	var valid []string
	for _, group := range app.AllFlags(true) {
		for _, flag := range group {
			valid = append(valid, flag.Name)
		}
	}
	known := map[string]bool{}
	for _, v := range valid {
		known[v] = true
	}
	for key := range f.values {
		if !known[key] {
			return fmt.Errorf("%s: unknown key %q%s", f.position(key), key, suggest(key, valid))
		}
	}
	return nil
}

// position names the line of a top-level key.
func (f *flagFile) position(key string) string {
	path, err := yaml.PathString("$.'" + key + "'")
	if err == nil {
		if node, err := path.ReadNode(strings.NewReader(string(f.data))); err == nil {
			return fmt.Sprintf("%s:%d", f.name, node.GetToken().Position.Line)
		}
	}
	return f.name
}

// Resolve implements kong.Resolver.
func (f *flagFile) Resolve(_ *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	for _, env := range flag.Envs {
		if _, ok := os.LookupEnv(env); ok {
			return nil, nil // the environment wins over the file
		}
	}
	v, ok := f.values[flag.Name]
	if !ok {
		return nil, nil
	}
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

package auth

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/seal"
)

// DefaultVerbs are what a key of a role is trusted for where nothing else is said:
// a person may do all, a program only what alerts lead to.
func DefaultVerbs(role string) []string {
	if role == seal.RoleOperator {
		return seal.Verbs
	}
	return []string{seal.VerbFlush, seal.VerbBlock, seal.VerbUnblock}
}

// NewKey makes a signing key: its seed goes to the file seed (mode 0600, never
// overwritten), its public half, as p, to the end of the trust file, which is made
// where there is none. p.Key is filled in. When the trust file cannot be written
// there is no seed either.
func NewKey(seedFile, trustFile string, p *seal.Party) error {
	s, seed, err := seal.NewSigner()
	if err != nil {
		return err
	}
	p.Key = s.Public()
	text, err := os.ReadFile(trustFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	whole, err := appendParty(trustFile, text, p)
	if err != nil {
		return err
	}
	if err := writeNew(seedFile, append(seed, '\n')); err != nil {
		return err
	}
	if err := replace(trustFile, whole, 0o644); err != nil { // nothing in it is secret
		return errors.Join(err, os.Remove(seedFile))
	}
	return nil
}

// appendParty adds p to the text of a trust file, whose comments stay.
func appendParty(name string, text []byte, p *seal.Party) ([]byte, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		text = []byte("# Whose signed commands are carried out, and what each key may ask for.\nkeys:\n")
	}
	if !bytes.HasSuffix(text, []byte("\n")) {
		text = append(text, '\n')
	}
	text = fmt.Appendf(text, "  - name: %q\n    role: %s\n    key: %s\n    verbs: [%s]\n", p.Name, p.Role, p.Key, strings.Join(p.Verbs, ", "))
	var f seal.File
	if err := config.Parse(name, text, &f); err != nil {
		return nil, fmt.Errorf("add %s: %w", p.Name, err)
	}
	return text, nil
}

package main

import (
	"fmt"

	"github.com/ctfleet/ctfleet/internal/seal"
)

// signing is the flag of every command that asks for a deed.
type signing struct {
	SignKey string `type:"path" placeholder:"FILE" help:"Seed of the nkey to sign with. Firewalls refuse what is not signed, unless they run with --trust none."`
}

// signer reads the key; nil where none is given.
func (s *signing) signer() (*seal.Signer, error) {
	if s.SignKey == "" {
		return nil, nil
	}
	key, err := seal.ReadSigner(s.SignKey)
	if err != nil {
		return nil, &exitError{2, fmt.Errorf("--sign-key: %w", err)}
	}
	return key, nil
}

// trusting is the flag of commands that show what others signed.
type trusting struct {
	Trust string `placeholder:"FILE" help:"Verify entries by this trust file, and name their signers."`
}

func (t *trusting) open() (*seal.Trust, error) {
	path := t.Trust
	if path == "" {
		path = seal.TrustNone
	}
	trust, err := seal.OpenTrust(path)
	if err != nil {
		return nil, &exitError{2, fmt.Errorf("--trust: %w", err)}
	}
	return trust, nil
}

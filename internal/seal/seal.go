// Package seal signs what asks for a deed on the bus, and verifies who did. It
// is a leaf: firewalls verify commands with it, the responder approvals, both of
// them the allowlist.
//
// A seal is an Ed25519 signature over the subject that a message is published on
// and its body, so that neither can be exchanged. It travels in two headers
// beside the body, which any subscriber reads as it is. Keys are NATS user
// nkeys. Whom to trust is said by a local file, never by the bus.
package seal

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/nats-io/nkeys"
)

// Headers of a sealed message.
const (
	HeaderKey       = "Ct-Key"       // the signer's public key, U…
	HeaderSignature = "Ct-Signature" // base64 (URL alphabet, no padding) of 64 bytes
)

// Seal is what the two headers hold. The zero Seal is that of a message that was
// not signed.
type Seal struct {
	Key       string
	Signature string
}

// signed is what is signed: a prefix that no other use of a key shares, the
// subject, which has no line end, and the body.
func signed(subject string, body []byte) []byte {
	const prefix = "ctfleet.v1\n"
	out := make([]byte, 0, len(prefix)+len(subject)+1+len(body))
	out = append(out, prefix...)
	out = append(out, subject...)
	out = append(out, '\n')
	return append(out, body...)
}

// Signer holds a private key. It is safe for concurrent use.
type Signer struct {
	pair   nkeys.KeyPair
	public string
}

// NewSigner makes a key. The seed is what [ReadSigner] reads back from a file.
func NewSigner() (s *Signer, seed []byte, err error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	if seed, err = pair.Seed(); err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	s, err = newSigner(pair)
	return s, seed, err
}

// ReadSigner reads the seed of a user nkey, SU…, from a file.
func ReadSigner(path string) (*Signer, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err // names the path
	}
	defer clear(data)
	seed := bytes.TrimSpace(data)
	if !bytes.HasPrefix(seed, []byte("SU")) {
		return nil, fmt.Errorf("%s: not the seed of a user nkey, which begins with SU", path)
	}
	pair, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, fmt.Errorf("%s: not the seed of a user nkey: %w", path, err)
	}
	return newSigner(pair)
}

func newSigner(pair nkeys.KeyPair) (*Signer, error) {
	public, err := pair.PublicKey()
	if err != nil {
		return nil, fmt.Errorf("read a key: %w", err)
	}
	return &Signer{pair, public}, nil
}

// Public is the public key, U….
func (s *Signer) Public() string { return s.public }

// Sign seals a body for a subject. A nil Signer leaves it unsigned.
func (s *Signer) Sign(subject string, body []byte) (Seal, error) {
	if s == nil {
		return Seal{}, nil
	}
	sig, err := s.pair.Sign(signed(subject, body))
	if err != nil {
		return Seal{}, fmt.Errorf("sign for %s: %w", subject, err)
	}
	return Seal{s.public, base64.RawURLEncoding.EncodeToString(sig)}, nil
}

// Made reports whether a seal is this signer's own.
func (s *Signer) Made(x Seal, subject string, body []byte) bool {
	return s != nil && x.Key == s.public && x.verify(subject, body) == nil
}

// Why a seal is not accepted.
var (
	ErrUnsigned  = errors.New("it is not signed")
	ErrUntrusted = errors.New("it is signed by a key that is not trusted here")
	ErrVerb      = errors.New("its signer may not ask for this")
	ErrForged    = errors.New("its signature does not fit: the message or its subject was changed")
)

// verify checks the signature of a key that is trusted.
func (s Seal) verify(subject string, body []byte) error {
	if strings.Contains(subject, "\n") {
		return ErrForged // the body would begin elsewhere
	}
	pair, err := nkeys.FromPublicKey(s.Key)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrForged, err)
	}
	sig, err := base64.RawURLEncoding.DecodeString(s.Signature)
	if err != nil || pair.Verify(signed(subject, body), sig) != nil {
		return ErrForged
	}
	return nil
}

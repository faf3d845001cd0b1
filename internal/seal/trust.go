package seal

import (
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/nats-io/nkeys"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// What a key may be trusted for.
const (
	VerbFlush     = events.VerbFlush   // delete entries
	VerbBlock     = events.VerbBlock   // block addresses
	VerbUnblock   = events.VerbUnblock // end blocks
	VerbAllowlist = "allowlist"        // change the live allowlist
	VerbApprove   = "approve"          // approve and deny what a policy proposes
	VerbGuard     = "guard"            // close the circuit, mute a firewall
)

// Verbs are all of them.
var Verbs = []string{VerbFlush, VerbBlock, VerbUnblock, VerbAllowlist, VerbApprove, VerbGuard}

// Who holds a key.
const (
	RoleResponder = events.ActorResponder // a program that acts upon alerts: what it claims must hold on the firewall
	RoleOperator  = events.ActorOperator  // a person, who has looked
)

// Party is whoever holds a key.
type Party struct {
	Name  string   `yaml:"name"` // shown in the audit
	Role  string   `yaml:"role"`
	Key   string   `yaml:"key"` // public, U…
	Verbs []string `yaml:"verbs"`
}

// File is a trust file.
type File struct {
	Keys []Party `yaml:"keys"`
}

// maxName bounds what is shown in every receipt.
const maxName = 64

// Validate reports the first thing that is wrong, naming it.
func (f *File) Validate() error {
	for i := range f.Keys {
		p := &f.Keys[i]
		refuse := func(key, format string, args ...any) error {
			return config.At(fmt.Sprintf("$.keys[%d].%s", i, key), "keys[%d]: %s: %w", i, key, fmt.Errorf(format, args...))
		}
		same := func(was Party) bool { return was.Name == p.Name || was.Key == p.Key }
		switch {
		case p.Name == "" || len(p.Name) > maxName || strings.ContainsFunc(p.Name, func(r rune) bool { return r <= ' ' || r > '~' }):
			return refuse("name", "%.70q is no name: 1 to %d printable ASCII characters without spaces", p.Name, maxName)
		case p.Role != RoleResponder && p.Role != RoleOperator:
			return refuse("role", "%.70q is neither %q nor %q", p.Role, RoleResponder, RoleOperator)
		case !nkeys.IsValidPublicUserKey(p.Key):
			return refuse("key", "%.70q is not the public key of a user nkey, which begins with U", p.Key)
		case len(p.Verbs) == 0:
			return refuse("verbs", "is empty: %s may do nothing; known are %s", p.Name, strings.Join(Verbs, ", "))
		case slices.ContainsFunc(f.Keys[:i], same):
			return refuse("key", "%s, or its key, is listed already", p.Name)
		}
		for _, v := range p.Verbs {
			if !slices.Contains(Verbs, v) {
				if near := config.Nearest(v, Verbs); near != "" {
					return refuse("verbs", "%.70q is not known, did you mean %q?", v, near)
				}
				return refuse("verbs", "%.70q is not known, these are: %s", v, strings.Join(Verbs, ", "))
			}
		}
	}
	return nil
}

// TrustNone is the name of a trust that accepts what is not signed, as what it
// says it is.
const TrustNone = "none"

// Trust says whose seals are accepted. It is safe for concurrent use, also while
// it is read again.
type Trust struct {
	path string
	open bool // everybody is trusted
	keys atomic.Pointer[trusted]
}

// trusted is what was read of a file.
type trusted struct {
	parties map[string]Party // by public key
	digest  string           // of the file
}

// OpenTrust reads the trust file at path. The path "" trusts nobody, and
// [TrustNone] everybody.
func OpenTrust(path string) (*Trust, error) {
	t := &Trust{path: path, open: path == TrustNone}
	return t, t.Reload()
}

// Reload reads the file again. With an error the keys stay as they were.
func (t *Trust) Reload() error {
	apply, _, err := t.Read()
	if err == nil {
		apply()
	}
	return err
}

// Read reads the file again, and returns its digest and what puts it in force.
func (t *Trust) Read() (apply func(), digest string, err error) {
	next := &trusted{parties: map[string]Party{}}
	if t.path != "" && !t.open {
		var f File
		if next.digest, err = config.ReadFileDigest(t.path, &f); err != nil {
			return nil, "", err
		}
		for _, p := range f.Keys {
			next.parties[p.Key] = p
		}
	}
	return func() { t.keys.Store(next) }, next.digest, nil
}

// Digest is that of the file that is in force; "" where there is none.
func (t *Trust) Digest() string { return t.keys.Load().digest }

// Party returns whose public key it is, if it is trusted for anything.
func (t *Trust) Party(public string) (Party, bool) {
	p, ok := t.keys.Load().parties[public]
	return p, ok
}

// Open reports whether everybody is trusted, unsigned.
func (t *Trust) Open() bool { return t.open }

// Len is the number of trusted keys.
func (t *Trust) Len() int { return len(t.keys.Load().parties) }

// String says who is trusted, for a person.
func (t *Trust) String() string {
	switch {
	case t.open:
		return "everybody, unsigned"
	case t.path == "":
		return "nobody"
	}
	return fmt.Sprintf("%d keys of %s", t.Len(), t.path)
}

// Verify returns who sealed a message, if it is somebody who is trusted for verb.
// The error wraps ErrUnsigned, ErrUntrusted, ErrVerb or ErrForged. Where everybody
// is trusted, the Party is the zero one: the message itself says who it is from.
func (t *Trust) Verify(s Seal, verb, subject string, body []byte) (Party, error) {
	if t.open {
		return Party{}, nil
	}
	if s == (Seal{}) {
		if t.Len() == 0 {
			return Party{}, fmt.Errorf("%w, and no key is trusted here", ErrUnsigned)
		}
		return Party{}, ErrUnsigned
	}
	p, ok := t.Party(s.Key)
	if !ok {
		return Party{}, fmt.Errorf("%w: %.56q", ErrUntrusted, s.Key)
	}
	if err := s.verify(subject, body); err != nil {
		return Party{}, err
	}
	if !slices.Contains(p.Verbs, verb) {
		return Party{}, fmt.Errorf("%w: %s is not trusted for %s", ErrVerb, p.Name, verb)
	}
	return p, nil
}

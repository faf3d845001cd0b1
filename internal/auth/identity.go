package auth

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/nats-io/nkeys"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Identity is one who may connect to the bus.
type Identity struct {
	Name string `yaml:"name"` // a firewall's is its name in the fleet
	Role Role   `yaml:"role"`
	Key  string `yaml:"key"` // public, U…
	// Of a firewall: what its producer.yaml was made with.
	Realm string `yaml:"realm,omitempty"`
	URL   string `yaml:"url,omitempty"`
}

// Register is the file identities.yaml: what the server's accounts are made from. Nothing in it
// is secret.
type Register struct {
	URL        string     `yaml:"url"`          // where firewalls reach the server
	TLS        bool       `yaml:"tls"`          // certificates are needed
	At         string     `yaml:"firewall_dir"` // where a firewall keeps its directory
	Identities []Identity `yaml:"identities"`
}

// registerFile is its name.
const registerFile = "identities.yaml"

const registerHead = "# Who may connect to the bus. nats/accounts.conf is made from this by `ctfleet auth add-firewall` and\n# `revoke-firewall`; keys are public.\n"

// Validate reports the first thing that is wrong, naming it.
func (r *Register) Validate() error {
	for i := range r.Identities {
		id := &r.Identities[i]
		refuse := func(key, format string, args ...any) error {
			return config.At(fmt.Sprintf("$.identities[%d].%s", i, key), "identities[%d]: %s: %w", i, key, fmt.Errorf(format, args...))
		}
		same := func(was Identity) bool { return was.Name == id.Name || was.Key == id.Key }
		check := events.CheckName
		if id.Role == RoleFirewall {
			check = events.CheckFirewall
		}
		switch {
		case id.Role != RoleFirewall && !slices.Contains(services, id.Role):
			return refuse("role", "%.70q is not known", id.Role)
		case check(id.Name) != nil:
			return refuse("name", "%w", check(id.Name))
		case !nkeys.IsValidPublicUserKey(id.Key):
			return refuse("key", "%.70q is not the public key of a user nkey, which begins with U", id.Key)
		case slices.ContainsFunc(r.Identities[:i], same):
			return refuse("key", "%s, or its key, is listed already", id.Name)
		}
	}
	return nil
}

// errNoRegister is returned where there is no fleet.
var errNoRegister = errors.New("ctfleet auth init makes it")

func readRegister(dir string) (*Register, error) {
	path := filepath.Join(dir, registerFile)
	if _, err := os.Stat(path); os.IsNotExist(err) {
		return nil, fmt.Errorf("%s is not there: %w", path, errNoRegister)
	}
	var r Register
	if err := config.ReadFile(path, &r); err != nil {
		return nil, err
	}
	return &r, nil
}

func (r *Register) marshal() ([]byte, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	text, err := yaml.Marshal(r)
	if err != nil {
		return nil, err
	}
	return append([]byte(registerHead), text...), nil
}

// find returns the place of a firewall, -1 where there is none of this name.
func (r *Register) find(firewall string) int {
	return slices.IndexFunc(r.Identities, func(id Identity) bool { return id.Role == RoleFirewall && id.Name == firewall })
}

// Firewalls are the names of those that may connect, in order.
func (r *Register) Firewalls() []string {
	var names []string
	for _, id := range r.Identities {
		if id.Role == RoleFirewall {
			names = append(names, id.Name)
		}
	}
	slices.Sort(names)
	return names
}

// accounts is the text of accounts.conf.
func (r *Register) accounts() []byte {
	var b strings.Builder
	b.WriteString(`# Made by ctfleet auth from identities.yaml, and made anew when a firewall is added or revoked: changes
# are lost. What each role may do is in internal/auth/permissions.go, and why.

system_account: SYS

accounts {
  CTFLEET {
    jetstream {
      # Bytes are bounded in nats.conf, for each server.
      max_streams: 16
      # Each producer, responder and open view reads by one or a few of its own.
      max_consumers: 20000
    }
    users [
`)
	for i := range r.Identities {
		if r.Identities[i].Role != RoleSystem {
			r.Identities[i].user(&b)
		}
	}
	b.WriteString("    ]\n  }\n  SYS {\n    users [\n")
	for i := range r.Identities {
		if r.Identities[i].Role == RoleSystem {
			r.Identities[i].user(&b)
		}
	}
	b.WriteString("    ]\n  }\n}\n")
	return []byte(b.String())
}

// user writes one user of an account. Names, keys and subjects hold nothing that the
// format of the file gives a meaning to.
func (id *Identity) user(b *strings.Builder) {
	p := permissionsOf(id)
	fmt.Fprintf(b, "      { # %s, %s\n        nkey: %s\n        permissions {\n", id.Name, id.Role, id.Key)
	list := func(word string, subjects []string) {
		if len(subjects) == 0 {
			return
		}
		fmt.Fprintf(b, "            %s [\n", word)
		for _, s := range subjects {
			fmt.Fprintf(b, "              %q\n", s)
		}
		b.WriteString("            ]\n")
	}
	b.WriteString("          publish {\n")
	list("allow", p.Publish)
	list("deny", p.Not)
	b.WriteString("          }\n          subscribe {\n")
	list("allow", p.Subscribe)
	b.WriteString("          }\n")
	b.WriteString("        }\n      }\n")
}

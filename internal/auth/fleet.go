package auth

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	confFile     = "nats.conf"
	serverDir    = "nats"
	accountsFile = "accounts.conf"
	firewallsDir = "firewalls"
)

// services are the identities of a fleet that are no firewalls; each is named as its role, and
// so is its directory.
var services = []Role{RoleSystem, RoleBootstrap, RoleAggregator, RoleResponder, RoleOperator, RoleAnalyst, RoleViewer}

// Services are the directories that [Init] can give an owner.
func Services() []string {
	names := []string{serverDir}
	for _, r := range services {
		names = append(names, string(r))
	}
	return names
}

// Options say what [Init] makes.
type Options struct {
	NoTLS   bool
	Force   bool             // over what is there: every key and certificate of before is worth nothing then
	Hosts   []string         // further names and addresses of the server, for its certificate; the first is where firewalls reach it
	Owners  map[string]Owner // of the services' directories
	Listen  string           // of the server
	Monitor string           // where the server says how it is, over HTTP without asking who wants to know; "": nowhere
	Store   string           // where it keeps its streams; "": below the directory
	At      string           // where a firewall keeps the directory it is given
}

// usualHosts are names of the server in every certificate: this host, and what
// docker-compose.yml calls it.
func usualHosts() []string {
	hosts := []string{"localhost", "127.0.0.1", "::1", "nats", "nats-1", "nats-2", "nats-3"}
	if name, err := os.Hostname(); err == nil && name != "" {
		hosts = append(hosts, name)
	}
	return hosts
}

// ErrInitialised is returned by [Init] where a fleet is already.
var ErrInitialised = errors.New("it holds the keys of a fleet already")

// ErrThere is returned for a firewall that was added before.
var ErrThere = errors.New("is there already")

// Init makes a directory for a fleet: keys and certificates for its server and its services,
// a directory for each, and the server's configuration.
func Init(dir string, o Options) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Lstat(filepath.Join(dir, registerFile)); err == nil && !o.Force {
		return fmt.Errorf("%s: %w: --force makes them anew, and nothing that was given to anybody works any more", dir, ErrInitialised)
	}
	reg := &Register{URL: serverURL(&o), TLS: !o.NoTLS, At: o.At}
	t := &tree{dir: dir, owners: o.Owners, force: o.Force}
	now := time.Now()

	var ca *authority
	if reg.TLS {
		var p *pair
		if ca, p, err = newAuthority(now); err != nil {
			return err
		}
		t.add(p.cert, "ca", "ca.pem")
		t.add(p.key, "ca", "ca.key")
		hosts := append(slices.Clone(o.Hosts), usualHosts()...)
		if p, err = ca.issue("nats", hosts, now); err != nil {
			return err
		}
		t.addPair(ca, p, serverDir)
	}
	trust := []byte(nil)
	for _, role := range services {
		id, err := t.identity(ca, string(role), role, now, string(role))
		if err != nil {
			return err
		}
		reg.Identities = append(reg.Identities, id)
		if signer := signs[role]; signer != "" {
			if trust, err = t.signingKey(trust, string(role), signer); err != nil {
				return err
			}
		}
	}
	t.add(trust, "trust.yaml")
	for role := range signs {
		t.add(trust, string(role), "trust.yaml")
	}
	token := make([]byte, 32)
	_, _ = rand.Read(token) // never fails
	t.add([]byte(hex.EncodeToString(token)+"\n"), string(RoleAggregator), "http-token")
	t.add(conf(dir, &o), confFile)
	t.add(reg.accounts(), serverDir, accountsFile)
	text, err := reg.marshal()
	if err != nil {
		return err
	}
	t.add(text, registerFile) // last: with it the fleet is there
	if o.Force {
		// Of firewalls that are none any more.
		made, err := os.ReadDir(filepath.Join(dir, firewallsDir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range made {
			if err := removeFirewall(dir, f.Name()); err != nil {
				return err
			}
		}
	}
	return t.write()
}

// serverURL is where firewalls reach the server.
func serverURL(o *Options) string {
	scheme, host := "tls://", "localhost"
	if o.NoTLS {
		scheme = "nats://"
	}
	if len(o.Hosts) > 0 {
		host = o.Hosts[0]
	}
	port := "4222"
	if _, p, err := net.SplitHostPort(o.Listen); err == nil && p != "0" {
		port = p
	}
	return scheme + net.JoinHostPort(host, port)
}

// identity makes a key, and a certificate where there is a CA, in a directory.
func (t *tree) identity(ca *authority, name string, role Role, now time.Time, dir ...string) (id Identity, err error) {
	pair, err := nkeys.CreateUser()
	if err != nil {
		return id, err
	}
	seed, err := pair.Seed()
	if err != nil {
		return id, err
	}
	id = Identity{Name: name, Role: role}
	if id.Key, err = pair.PublicKey(); err != nil {
		return id, err
	}
	in := filepath.Join(dir...)
	t.add(append(seed, '\n'), in, "nats.nk")
	if ca != nil {
		p, err := ca.issue(name, nil, now)
		if err != nil {
			return id, err
		}
		t.addPair(ca, p, in)
	}
	return id, nil
}

// signingKey makes a key to sign commands with, and adds it to the text of a trust
// file.
func (t *tree) signingKey(trust []byte, name, role string) ([]byte, error) {
	s, seed, err := seal.NewSigner()
	if err != nil {
		return nil, err
	}
	t.add(append(seed, '\n'), name, "sign.nk")
	return appendParty("trust.yaml", trust, &seal.Party{Name: name, Role: role, Key: s.Public(), Verbs: DefaultVerbs(role)})
}

// conf is the text of nats.conf.
func conf(dir string, o *Options) []byte {
	store := o.Store
	if store == "" {
		store = filepath.Join(dir, serverDir, "jetstream")
	}
	monitor := ""
	if o.Monitor != "" {
		monitor = fmt.Sprintf("http: %q   # /healthz, for who runs the server\n", o.Monitor)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, `# NATS for ctfleet, made by ctfleet auth init; yours to edit. Three servers: deploy/nats/cluster.conf.

server_name: ctfleet
listen: %q
%s# A batch is 256 KiB at most.
max_payload: 1MB
# SIGUSR2 stops it such that its clients leave for other servers one by one.
lame_duck_grace_period: "1s"
lame_duck_duration: "30s"

jetstream {
  store_dir: %q
  max_memory_store: 1GB
  max_file_store: 8GB
  # Alerts and the audit must outlive a power cut: by default the server writes to the disk every two minutes. The streams of
  # events and snapshots opt out; what a crash takes from them shows as a gap, and a resync mends it.
  sync_interval: always
}
`, o.Listen, monitor, store)
	if !o.NoTLS {
		in := func(name string) string { return filepath.Join(dir, serverDir, name) }
		fmt.Fprintf(&b, `
tls {
  cert_file: %q
  key_file: %q
  ca_file: %q
  # Only who has a certificate of this fleet's CA gets as far as saying who he is.
  verify: true
  min_version: "1.2"
  timeout: 5
}
`, in("cert.pem"), in("key.pem"), in("ca.pem"))
	} else {
		b.WriteString("\n# No TLS (--no-tls): keys prove who is connected, but everybody on the way reads along, and can change what is said.\n")
	}
	b.WriteString("\n# Who may connect, and what each may say and hear: the path is relative to this file.\ninclude \"" + serverDir + "/" + accountsFile + "\"\n")
	return b.Bytes()
}

// Firewall says what [AddFirewall] makes.
type Firewall struct {
	Name  string
	Realm string // "": as it was told before, or the default realm
	URL   string // where it reaches the server; "": as it was told before, or as Init was
	Force bool   // another key and certificate for one that is there; its producer.yaml stays
}

// AddFirewall adds a firewall to the fleet in dir, and returns the directory that is to be
// taken to it.
func AddFirewall(dir string, f Firewall) (made string, err error) {
	if err := events.CheckFirewall(f.Name); err != nil {
		return "", err
	}
	if f.Realm != "" {
		if err := events.CheckRealm(f.Realm); err != nil {
			return "", err
		}
	}
	err = change(dir, func(dir string, reg *Register) error {
		at := reg.find(f.Name)
		if at >= 0 && !f.Force {
			return fmt.Errorf("firewall %s %w: --force gives it another key, and takes it the one it has", f.Name, ErrThere)
		}
		if at < 0 && slices.ContainsFunc(reg.Identities, func(id Identity) bool { return id.Name == f.Name }) {
			return fmt.Errorf("%s is the name of a service", f.Name)
		}
		if at >= 0 {
			f.Realm, f.URL = cmp.Or(f.Realm, reg.Identities[at].Realm), cmp.Or(f.URL, reg.Identities[at].URL)
		}
		f.Realm = cmp.Or(f.Realm, events.RealmDefault)
		var ca *authority
		if reg.TLS {
			if ca, err = readAuthority(dir); err != nil {
				return err
			}
		}
		t := &tree{dir: dir, force: f.Force}
		id, err := t.identity(ca, f.Name, RoleFirewall, time.Now(), firewallsDir, f.Name)
		if err != nil {
			return err
		}
		trust, err := os.ReadFile(filepath.Join(dir, "trust.yaml"))
		if err != nil {
			return err
		}
		t.add(trust, firewallsDir, f.Name, "trust.yaml")
		if _, err := os.Lstat(filepath.Join(dir, firewallsDir, f.Name, "producer.yaml")); err != nil || !f.Force {
			t.add(reg.producer(&f), firewallsDir, f.Name, "producer.yaml") // what was changed in one that is there stays
		}
		if err := t.write(); err != nil {
			return err
		}
		made = filepath.Join(dir, firewallsDir, f.Name)
		id.Realm, id.URL = f.Realm, f.URL
		if at >= 0 {
			reg.Identities[at] = id
		} else {
			reg.Identities = append(reg.Identities, id)
		}
		return nil
	})
	return made, err
}

// producer is the text of a firewall's producer.yaml.
func (r *Register) producer(f *Firewall) []byte {
	url := f.URL
	if url == "" {
		url = r.URL
	}
	at := func(name string) string { return filepath.Join(r.At, name) }
	var b bytes.Buffer
	fmt.Fprintf(&b, "# producer --config %s: what it is told here, the environment and flags may replace.\nname: %s\nrealm: %s\nnats-url: %q\nnats-nkey: %q\n",
		at("producer.yaml"), f.Name, f.Realm, url, at("nats.nk"))
	if r.TLS {
		fmt.Fprintf(&b, "nats-ca: %q\nnats-cert: %q\nnats-key: %q\n", at("ca.pem"), at("cert.pem"), at("key.pem"))
	}
	fmt.Fprintf(&b, `
# Whose signed commands are believed. Without the next two lines this firewall is watched, and nothing else.
trust: %q
# allow-flush: true
# allow-block: true
# protect: [192.0.2.0/24]
`, at("trust.yaml"))
	return b.Bytes()
}

// RevokeFirewall takes a firewall's permission to connect, and removes its directory.
func RevokeFirewall(dir, name string) error {
	return change(dir, func(dir string, reg *Register) error {
		at := reg.find(name)
		if at < 0 {
			return fmt.Errorf("there is no firewall %.70q; there are: %s", name, strings.Join(reg.Firewalls(), ", "))
		}
		reg.Identities = slices.Delete(reg.Identities, at, at+1)
		return removeFirewall(dir, name)
	})
}

// removeFirewall removes what was made for a firewall: it opens nothing any more. Other
// people's files are theirs.
func removeFirewall(dir, name string) error {
	made := filepath.Join(dir, firewallsDir, name)
	for _, f := range []string{"nats.nk", "cert.pem", "key.pem", "ca.pem", "trust.yaml", "producer.yaml"} {
		if err := os.Remove(filepath.Join(made, f)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	_ = os.Remove(made) // stays where there is something in it
	return nil
}

// Environment is how an identity of the fleet in dir connects, as variables: a service, or a
// firewall.
func Environment(dir, who string) (vars [][2]string, err error) {
	dir, err = filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	reg, err := readRegister(dir)
	if err != nil {
		return nil, err
	}
	in := filepath.Join(dir, who)
	switch {
	case reg.find(who) >= 0:
		in = filepath.Join(dir, firewallsDir, who)
	case !slices.Contains(services, Role(who)):
		return nil, fmt.Errorf("there is no %.70q; there are: %s", who, strings.Join(append(Services()[1:], reg.Firewalls()...), ", "))
	}
	vars = append(vars, [2]string{"NATS_URL", reg.URL})
	for _, f := range [][2]string{{"NATS_NKEY", "nats.nk"}, {"NATS_CA", "ca.pem"}, {"NATS_CERT", "cert.pem"}, {"NATS_KEY", "key.pem"}, {"CTFLEET_SIGN_KEY", "sign.nk"}, {"CTFLEET_TRUST", "trust.yaml"}} {
		path := filepath.Join(in, f[1])
		if _, err := os.Stat(path); err == nil {
			vars = append(vars, [2]string{f[0], path})
		}
	}
	return vars, nil
}

// Refresh writes the server's accounts anew from the register.
func Refresh(dir string) error {
	return change(dir, func(string, *Register) error { return nil })
}

// change changes the register of the fleet in a directory, and the server's accounts with it.
func change(dir string, do func(dir string, reg *Register) error) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	reg, err := readRegister(dir)
	if err != nil {
		return err
	}
	if err := do(dir, reg); err != nil {
		return err
	}
	text, err := reg.marshal()
	if err != nil {
		return err
	}
	if err := replace(filepath.Join(dir, registerFile), text, 0o600); err != nil {
		return err
	}
	return replace(filepath.Join(dir, serverDir, accountsFile), reg.accounts(), 0o600)
}

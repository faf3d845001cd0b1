package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type authCmd struct {
	Init           authInitCmd   `cmd:"" help:"Make the keys, certificates, permissions and server configuration of a fleet."`
	AddFirewall    authAddCmd    `cmd:"" help:"Let one more firewall connect: a directory to take to it."`
	RevokeFirewall authRevokeCmd `cmd:"" help:"Let a firewall connect no more."`
	Env            authEnvCmd    `cmd:"" help:"The variables by which a service, a person or a firewall connects: eval \"$(ctfleet auth env operator --dir DIR)\"."`
	Renew          authRenewCmd  `cmd:"" help:"New certificates for the server and the services; further names of the server."`
	Reload         authReloadCmd `cmd:"" help:"Have the servers read their configuration again."`
	Key            authKeyCmd    `cmd:"" help:"Make a key to sign commands with, and add it to a trust file."`
}

type authInitCmd struct {
	Dir       string            `arg:"" type:"path" help:"Where they go. Each service has a directory of its own; nats.conf is for the server."`
	NoTLS     bool              `name:"no-tls" help:"No certificates: for a network that nobody else is on."`
	Force     bool              `xor:"there" help:"Over what is there. Whatever was given to anybody before works no more."`
	IfMissing bool              `xor:"there" help:"Do nothing where a fleet is already."`
	Host      []string          `placeholder:"NAME" help:"A name or address of the server, for its certificate; the first is where firewalls reach it. This host's name, localhost, nats and nats-1 to nats-3 are in it anyway."`
	Owner     map[string]string `placeholder:"SERVICE=UID[:GID]" mapsep:"," help:"Whose the directory of a service is (nats, system, bootstrap, aggregator, responder, operator, analyst, viewer)."`
	Listen    string            `default:"0.0.0.0:4222" placeholder:"ADDR" help:"Where the server listens (${default})."`
	Monitor   string            `default:"127.0.0.1:8222" placeholder:"ADDR|none" help:"Where the server answers /healthz, to everybody who reaches it (${default})."`
	Store     string            `type:"path" placeholder:"DIR" help:"Where the server keeps its streams (nats/jetstream, below)."`
	At        string            `default:"/etc/ctfleet" placeholder:"DIR" help:"Where a firewall keeps the directory that add-firewall makes (${default})."`
}

func (c *authInitCmd) Run() error {
	o := auth.Options{NoTLS: c.NoTLS, Force: c.Force, Hosts: c.Host, Owners: map[string]auth.Owner{}, Listen: c.Listen, Store: c.Store, At: c.At}
	if c.Monitor != daemon.NoListen {
		o.Monitor = c.Monitor
	}
	for _, service := range slices.Sorted(maps.Keys(c.Owner)) {
		known := auth.Services()
		if !slices.Contains(known, service) {
			return &exitError{2, fmt.Errorf("--owner: there is no service %.40q; there are: %s", service, strings.Join(known, ", "))}
		}
		owner, err := parseOwner(c.Owner[service])
		if err != nil {
			return &exitError{2, fmt.Errorf("--owner: %s: %w", service, err)}
		}
		o.Owners[service] = owner
	}
	err := auth.Init(c.Dir, o)
	if errors.Is(err, auth.ErrInitialised) && c.IfMissing {
		fmt.Printf("%s: there is a fleet already; nothing was changed\n", c.Dir)
		return nil
	}
	if err != nil {
		return err
	}
	at := func(name ...string) string { return filepath.Join(append([]string{c.Dir}, name...)...) }
	fmt.Printf("%s: for the server: nats-server -c %s\n", at("nats.conf"), at("nats.conf"))
	for _, service := range auth.Services()[1:] {
		fmt.Printf("%s: its key%s\n", at(service), map[bool]string{true: "", false: " and certificate"}[c.NoTLS])
	}
	if !c.NoTLS {
		fmt.Printf("%s: signs certificates: whoever has it can make one. Needed again only for a firewall that is added\n", at("ca", "ca.key"))
	}
	fmt.Printf("Next: ctfleet auth add-firewall NAME --dir %s\n", c.Dir)
	return nil
}

func parseOwner(s string) (auth.Owner, error) {
	u, g, both := strings.Cut(s, ":")
	uid, err := strconv.ParseUint(u, 10, 31)
	gid := uid
	if err == nil && both {
		gid, err = strconv.ParseUint(g, 10, 31)
	}
	if err != nil {
		return auth.Owner{}, fmt.Errorf("%.40q is not UID or UID:GID, as numbers", s)
	}
	return auth.OwnedBy(int(uid), int(gid)), nil
}

// fleetDir is the directory that auth init made, and where its server is.
type fleetDir struct {
	Dir     string `required:"" type:"path" placeholder:"DIR" help:"What auth init made."`
	NATSURL string `name:"nats-url" env:"CTFLEET_NATS_URL,NATS_URL" placeholder:"URL" help:"Have the servers there read their configuration again; without it, tell them yourself (SIGHUP)."`
}

// reload has the servers read their configuration again, if it is known where they are.
func (d *fleetDir) reload(ctx context.Context) error {
	if d.NATSURL == "" {
		fmt.Println("The server does not know yet: send it SIGHUP, or: ctfleet auth reload --dir", d.Dir, "--nats-url URL")
		return nil
	}
	in := func(name string) string { return filepath.Join(d.Dir, string(auth.RoleSystem), name) }
	flags := bus.Flags{NATSURL: d.NATSURL, NATSNKey: in("nats.nk")}
	if _, err := os.Stat(in("ca.pem")); err == nil {
		flags.NATSCA, flags.NATSCert, flags.NATSKey = in("ca.pem"), in("cert.pem"), in("key.pem")
	}
	names, err := bus.ReloadServers(ctx, flags)
	if len(names) > 0 {
		fmt.Println("read again by:", strings.Join(names, ", "))
	}
	return err
}

type authAddCmd struct {
	Name []string `arg:"" help:"The firewall's name: a-z, 0-9, and after the first character - and _; or several."`
	fleetDir
	Realm     string `placeholder:"NAME" help:"Where its addresses name one host each (as it was told before, or default)."`
	URL       string `placeholder:"URL" help:"Where this firewall reaches the server (as it was told before, or as auth init was)."`
	Force     bool   `xor:"there" help:"Another key and certificate for one that is there. What it has works no more; its producer.yaml stays."`
	IfMissing bool   `xor:"there" help:"Leave one that is there as it is."`
}

func (c *authAddCmd) Run(ctx context.Context) error {
	for _, name := range c.Name {
		if err := events.CheckFirewall(name); err != nil {
			return &exitError{2, err}
		}
	}
	if c.Realm != "" {
		if err := events.CheckRealm(c.Realm); err != nil {
			return &exitError{2, err}
		}
	}
	for _, name := range c.Name {
		made, err := auth.AddFirewall(c.Dir, auth.Firewall{Name: name, Realm: c.Realm, URL: c.URL, Force: c.Force})
		if errors.Is(err, auth.ErrThere) && c.IfMissing {
			fmt.Printf("%s: is there already; nothing was changed\n", name)
			continue
		}
		if err != nil {
			return err
		}
		fmt.Printf("%s: take it to %s, and there: producer --config producer.yaml --check\n", made, name)
	}
	return c.reload(ctx)
}

type authRevokeCmd struct {
	Name string `arg:"" help:"The firewall's name."`
	fleetDir
}

func (c *authRevokeCmd) Run(ctx context.Context) error {
	if err := auth.RevokeFirewall(c.Dir, c.Name); err != nil {
		return err
	}
	fmt.Printf("%s: its key opens nothing any more, once the server knows\n", c.Name)
	return c.reload(ctx)
}

type authEnvCmd struct {
	Who     string `arg:"" help:"aggregator, responder, operator, analyst, viewer, bootstrap, system, or a firewall."`
	Dir     string `required:"" type:"path" placeholder:"DIR" help:"What auth init made."`
	NATSURL string `name:"nats-url" env:"-" placeholder:"URL" help:"Where the server is (as auth init was told)."`
}

func (c *authEnvCmd) Run() error {
	vars, err := auth.Environment(c.Dir, c.Who)
	if err != nil {
		return &exitError{2, err}
	}
	for _, v := range vars {
		if v[0] == "NATS_URL" && c.NATSURL != "" {
			v[1] = c.NATSURL
		}
		fmt.Printf("export %s='%s'\n", v[0], strings.ReplaceAll(v[1], "'", `'\''`))
	}
	return nil
}

type authRenewCmd struct {
	fleetDir
	Host []string `placeholder:"NAME" help:"A further name or address of the server."`
}

func (c *authRenewCmd) Run(ctx context.Context) error {
	renewed, err := auth.Renew(c.Dir, c.Host)
	if err != nil {
		return err
	}
	for _, dir := range renewed {
		fmt.Printf("%s: has a new certificate\n", dir)
	}
	fmt.Println("Services read theirs when they start. Firewalls: auth add-firewall NAME --force.")
	return c.reload(ctx)
}

type authReloadCmd struct{ fleetDir }

func (c *authReloadCmd) Run(ctx context.Context) error {
	if c.NATSURL == "" {
		return &exitError{2, errors.New("--nats-url: where the servers are is needed")}
	}
	if err := auth.Refresh(c.Dir); err != nil {
		return err
	}
	return c.reload(ctx)
}

type authKeyCmd struct {
	File  string   `arg:"" type:"path" help:"Where the seed goes: keep it secret. An existing file is not overwritten."`
	Trust string   `type:"path" required:"" placeholder:"FILE" help:"The trust file that the public key is added to: give it to each firewall and responder."`
	Name  string   `required:"" placeholder:"NAME" help:"Whose key it is, as the audit is to show it."`
	Role  string   `enum:"operator,responder" default:"operator" help:"operator or responder: what a responder claims must hold on the firewall (${default})."`
	Verbs []string `placeholder:"VERB" help:"What the key may be used for: flush, block, unblock, allowlist, approve, guard (default: all of them; of a responder the first three)."`
}

func (c *authKeyCmd) Run() error {
	if len(c.Verbs) == 0 {
		c.Verbs = auth.DefaultVerbs(c.Role)
	}
	p := seal.Party{Name: c.Name, Role: c.Role, Verbs: c.Verbs}
	if err := auth.NewKey(c.File, c.Trust, &p); err != nil {
		return err
	}
	fmt.Printf("%s: the seed, for --sign-key\n%s: trusts %s now, as %s\n", c.File, c.Trust, p.Key, p.Name)
	return nil
}

package bus

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// Flags say which server to talk to and who we are there.
type Flags struct {
	NATSURL   string `name:"nats-url" env:"CTFLEET_NATS_URL,NATS_URL" default:"nats://127.0.0.1:4222" help:"NATS server, several separated by commas (${default})."`
	NATSCreds string `name:"nats-creds" env:"CTFLEET_NATS_CREDS,NATS_CREDS" type:"path" placeholder:"FILE" help:"Credentials file."`
	NATSNKey  string `name:"nats-nkey" env:"CTFLEET_NATS_NKEY,NATS_NKEY" type:"path" placeholder:"FILE" help:"NKey seed file."`
	NATSCA    string `name:"nats-ca" env:"CTFLEET_NATS_CA,NATS_CA" type:"path" placeholder:"FILE" help:"CA certificate of the server."`
	NATSCert  string `name:"nats-cert" env:"CTFLEET_NATS_CERT,NATS_CERT" type:"path" placeholder:"FILE" help:"Client certificate."`
	NATSKey   string `name:"nats-key" env:"CTFLEET_NATS_KEY,NATS_KEY" type:"path" placeholder:"FILE" help:"Key of the client certificate."`
}

// Server is a server inside this process: an embedded.Server.
type Server interface {
	nats.InProcessConnProvider
	Credentials() (user, password string)
}

// Config describes one connection.
type Config struct {
	Flags
	Role     string // producer, aggregator, responder, ctfleet
	Name     string // firewall or host, for the server's connection list
	Server   Server // connect inside the process instead of by URL
	Patient  bool   // daemons: keep trying when the server is not there yet
	Direct   bool   // write each message at once: for whoever sends few and large ones, see quiet.go
	Log      *slog.Logger
	OnChange func(connected bool) // called on every loss and return of the connection
}

// Conn is a connection to the bus.
type Conn struct {
	NC  *nats.Conn
	JS  jetstream.JetStream
	log *slog.Logger

	throttle daemon.Throttle // of what anybody on the bus can make us log
	denials  denials
}

// Connect connects. With Patient it returns at once and keeps trying, else it
// returns an error that names the server when none answers.
func Connect(cfg Config) (*Conn, error) {
	log := cfg.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	c := &Conn{log: log}
	change := cfg.OnChange
	if change == nil {
		change = func(bool) {}
	}
	server := func(connected string) string { // to be shown
		if cfg.Server != nil {
			return "inside this process"
		}
		return hide(connected, cfg.NATSURL)
	}
	opts := []nats.Option{
		nats.Name(fmt.Sprintf("ctfleet %s %s %s", cfg.Role, cfg.Name, daemon.ProgramVersion())),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250 * time.Millisecond),
		nats.ReconnectJitter(100*time.Millisecond, 250*time.Millisecond),
		// Publishing while disconnected fails at once: what waits, waits in the
		// producer's own bounded ring, where it is counted.
		nats.ReconnectBufSize(-1),
		// Two equal authentication errors would close the connection for good.
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(5 * time.Second),
		nats.MaxPingsOutstanding(2),
		nats.DrainTimeout(2 * time.Second),
		nats.RetryOnFailedConnect(cfg.Patient),
		nats.DisconnectErrHandler(func(nc *nats.Conn, err error) {
			if err != nil {
				log.Warn("lost the connection to NATS, retrying", "server", server(nc.ConnectedUrl()), "error", err)
			}
			c.explain(nc, server)
			change(false)
		}),
		nats.ReconnectHandler(func(nc *nats.Conn) {
			log.Info("connected to NATS again", "server", server(nc.ConnectedUrl()))
			change(true)
		}),
		nats.ConnectHandler(func(nc *nats.Conn) {
			log.Info("connected to NATS", "server", server(nc.ConnectedUrl()))
			change(true)
		}),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) {
			c.throttle.Warn(log, "NATS is unreachable, retrying", "server", server(""), "error", err)
		}),
		nats.ErrorHandler(func(_ *nats.Conn, sub *nats.Subscription, err error) {
			subject := ""
			if sub != nil {
				subject = sub.Subject
			}
			if c.denials.note(err) {
				return // whoever waits for it says so
			}
			c.throttle.Warn(log, "NATS reports an error", "subject", subject, "error", err)
		}),
	}
	auth, key, err := cfg.authOptions()
	if err != nil {
		return nil, err
	}
	opts = append(opts, auth...)
	opts = append(opts, nats.CustomInboxPrefix(inboxPrefix(cfg.Role, cmp.Or(key, cfg.Name))))
	if cfg.Server != nil {
		opts = append(opts, nats.InProcessServer(cfg.Server))
	}
	if cfg.Direct && cfg.Server == nil {
		// The library writes when it has gathered this much. It does so under the
		// lock that everybody needs, so a peer that takes nothing must be given up
		// before a stop has to end.
		opts = append(opts, nats.SetCustomDialer(newQuietDialer()), nats.WriteBufferSize(1), nats.FlusherTimeout(writeTimeout))
	}
	nc, err := nats.Connect(cfg.NATSURL, opts...)
	if err != nil {
		// The parser of URLs quotes all of what it could not read.
		if wrong := (*url.Error)(nil); errors.As(err, &wrong) {
			err = wrong.Err
		}
		where := server("")
		if cfg.Server == nil {
			where = "at " + where
		}
		return nil, fmt.Errorf("connect to NATS %s: %w", where, err)
	}
	if cfg.Patient && !nc.IsConnected() {
		log.Warn("NATS is unreachable, retrying", "server", server(""))
		c.explain(nc, server)
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(AckTimeout), jetstream.WithPublishAsyncMaxPending(4*MaxInFlight))
	if err != nil {
		nc.Close()
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	c.NC, c.JS = nc, js
	return c, nil
}

// explainAfter is how long a connection may be away before it is said why, again and again.
const explainAfter = 2 * time.Second

// explain says why a connection stays away. The library tells of a server that cannot be
// reached, but not of one that answers and does not let us in.
func (c *Conn) explain(nc *nats.Conn, server func(string) string) {
	time.AfterFunc(explainAfter, func() {
		if nc.IsConnected() || nc.IsClosed() {
			return
		}
		if err := nc.LastError(); err != nil {
			c.throttle.Warn(c.log, "NATS does not let us in, retrying", "server", server(""), "error", err)
		}
		c.explain(nc, server)
	})
}

// authOptions also returns the public key that we prove ourselves by, "" where that is
// no nkey.
func (cfg *Config) authOptions() (opts []nats.Option, key string, err error) {
	if cfg.Server != nil {
		return append(opts, nats.UserInfo(cfg.Server.Credentials())), "", nil
	}
	for _, f := range []struct{ name, path string }{
		{"creds", cfg.NATSCreds}, {"nkey", cfg.NATSNKey}, {"ca", cfg.NATSCA}, {"cert", cfg.NATSCert}, {"key", cfg.NATSKey},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return nil, "", fmt.Errorf("--nats-%s: %w", f.name, err)
		}
	}
	if cfg.NATSCreds != "" {
		opts = append(opts, nats.UserCredentials(cfg.NATSCreds))
	}
	if cfg.NATSNKey != "" {
		o, public, err := nkeyOption(cfg.NATSNKey)
		if err != nil {
			return nil, "", fmt.Errorf("--nats-nkey: read %s: %w", cfg.NATSNKey, err)
		}
		opts, key = append(opts, o), public
	}
	if cfg.NATSCA != "" {
		opts = append(opts, nats.RootCAs(cfg.NATSCA))
	}
	if (cfg.NATSCert == "") != (cfg.NATSKey == "") {
		return nil, "", errors.New("--nats-cert and --nats-key go together")
	}
	if cfg.NATSCert != "" {
		opts = append(opts, nats.ClientCert(cfg.NATSCert, cfg.NATSKey))
	}
	if cfg.NATSCA != "" || cfg.NATSCert != "" {
		opts = append(opts, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	return opts, key, nil
}

// nkeyOption is the option for the seed in a file, and its public half.
func nkeyOption(file string) (o nats.Option, public string, err error) {
	if o, err = nats.NkeyOptionFromSeed(file); err != nil {
		return nil, "", err
	}
	var conn nats.Options
	if err := o(&conn); err != nil {
		return nil, "", err
	}
	return o, conn.Nkey, nil
}

// Close closes the connection when the server has what was published.
func (c *Conn) Close() {
	c.settle()
	c.NC.Close()
}

// Connected returns nil or why the bus is away.
func (c *Conn) Connected() error {
	if !c.NC.IsConnected() {
		return fmt.Errorf("no connection to NATS (%s)", strings.ToLower(c.NC.Status().String()))
	}
	return nil
}

// ServerAddr is the address of the server that we are connected to; ok is false
// while there is none, and inside one process.
func (c *Conn) ServerAddr() (addr netip.Addr, ok bool) {
	ap, err := netip.ParseAddrPort(c.NC.ConnectedAddr())
	return ap.Addr(), err == nil
}

// WaitConnected waits until the connection stands or ctx ends.
func (c *Conn) WaitConnected(ctx context.Context) error {
	for !c.NC.IsConnected() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// inboxPrefix gives each of us an inbox space of its own, so that the server can grant
// one its replies without granting another's: name is the public key where there is one.
func inboxPrefix(role, name string) string {
	if !nkeys.IsValidPublicUserKey(name) {
		name = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' || r == '_' {
				return r
			}
			return '-'
		}, strings.ToLower(name))
	}
	if name == "" {
		name = strings.ToLower(rand.Text()[:8])
	}
	return "_INBOX." + role + "." + name
}

// Inboxes are the subjects of the replies to whoever connects by a public key.
func Inboxes(key string) string { return "_INBOX.*." + key + ".>" }

// hide returns the addresses of servers, separated by commas, without the user
// parts: those that connected says, else the configured ones.
func hide(connected, configured string) string {
	s := connected
	if s == "" {
		s = configured
	}
	parts := strings.Split(s, ",")
	for i, p := range parts {
		if u, err := url.Parse(strings.TrimSpace(p)); err == nil && u.Host != "" {
			parts[i] = (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
		} else if at := strings.LastIndexByte(p, '@'); at >= 0 {
			parts[i] = p[at+1:]
		}
	}
	return strings.Join(parts, ",")
}

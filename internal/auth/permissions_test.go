package auth

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
)

// fleet is a directory that Init made, and the server that runs by it.
type fleet struct {
	t      *testing.T
	dir    string
	server *embedded.Server
	url    string
}

func newFleet(t *testing.T, o Options, firewalls ...string) *fleet {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o.Listen = free.Addr().String()
	free.Close()
	f := &fleet{t: t, dir: t.TempDir()}
	if err := Init(f.dir, o); err != nil {
		t.Fatal(err)
	}
	for _, name := range firewalls {
		if _, err := AddFirewall(f.dir, Firewall{Name: name, Realm: "default"}); err != nil {
			t.Fatal(err)
		}
	}
	if f.server, err = embedded.Start(embedded.Config{File: filepath.Join(f.dir, confFile)}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.server.Close)
	f.url = f.server.URL()
	return f
}

// flags are how an identity connects: a service, or firewalls/NAME.
func (f *fleet) flags(who string) bus.Flags {
	at := func(name string) string { return filepath.Join(f.dir, who, name) }
	flags := bus.Flags{NATSURL: f.url, NATSNKey: at("nats.nk")}
	if strings.HasPrefix(f.url, "tls") {
		flags.NATSCA, flags.NATSCert, flags.NATSKey = at("ca.pem"), at("cert.pem"), at("key.pem")
	}
	return flags
}

func (f *fleet) conn(who string) *bus.Conn {
	f.t.Helper()
	c, err := bus.Connect(bus.Config{Flags: f.flags(who), Role: "operator"})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Close)
	return c
}

// client is a plain connection, as somebody has who wrote his own program with a key that he
// took; it collects what the server refuses.
type client struct {
	*nats.Conn
	key   string
	asked int

	mu     sync.Mutex
	denied map[string]bool // "publish SUBJECT", "subscribe SUBJECT"
}

var refusal = regexp.MustCompile(`(?i)(publish|subscription) to "(\S+)"`)

func (f *fleet) client(who string) *client {
	f.t.Helper()
	flags := f.flags(who)
	c := &client{denied: map[string]bool{}}
	key, err := nats.NkeyOptionFromSeed(flags.NATSNKey)
	if err != nil {
		f.t.Fatal(err)
	}
	c.Conn, err = nats.Connect(f.url, key, nats.RootCAs(flags.NATSCA), nats.ClientCert(flags.NATSCert, flags.NATSKey), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		if m := refusal.FindStringSubmatch(err.Error()); errors.Is(err, nats.ErrPermissionViolation) && m != nil {
			c.mu.Lock()
			c.denied[map[bool]string{true: "publish ", false: "subscribe "}[strings.EqualFold(m[1], "publish")]+m[2]] = true
			c.mu.Unlock()
		} else {
			f.t.Errorf("%s: %v", who, err)
		}
	}))
	if err != nil {
		f.t.Fatalf("%s: %v", who, err)
	}
	c.key = c.Conn.Opts.Nkey
	f.t.Cleanup(c.Close)
	return c
}

// permits asks the server whether it takes what an identity says or wants to hear. What
// nobody may say, said afterwards, is refused when all before it has been told.
func (c *client) permits(t *testing.T, what string) bool {
	t.Helper()
	way, subject, _ := strings.Cut(what, " ")
	if way == "publish" {
		if err := c.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
	} else {
		sub, err := c.SubscribeSync(subject)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = sub.Unsubscribe() }() // one that was refused is gone
	}
	c.asked++
	end := fmt.Sprint("nobodys.business.", c.asked)
	if err := c.Publish(end, nil); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); !c.refused("publish " + end); time.Sleep(20 * time.Microsecond) {
		if time.Now().After(deadline) {
			t.Fatal("the server refuses nothing")
		}
	}
	return !c.refused(what)
}

func (c *client) refused(what string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.denied[what]
}

// everybody of the account; a system key is in another.
var everybody = []string{"bootstrap", "aggregator", "responder", "operator", "analyst", "viewer", "fw-a", "fw-b"}

// TestPermissions asks the server, with the configuration that is shipped, what each identity may say
// and hear: who is not named is refused.
func TestPermissions(t *testing.T) {
	t.Parallel()
	f := newFleet(t, Options{}, "fw-a", "fw-b")
	clients := map[string]*client{}
	for _, who := range everybody {
		dir := who
		if strings.HasPrefix(who, "fw-") {
			dir = "firewalls/" + who
		}
		clients[who] = f.client(dir)
	}
	tested := map[string]bool{}
	for _, c := range []struct{ what, who string }{
		// What a firewall says: it, and nobody else in its name.
		{"publish ct.v1.events.fw-a", "fw-a"},
		{"publish ct.v1.snapshots.fw-a", "fw-a"},
		{"publish ct.v1.health.fw-a", "fw-a"},
		{"publish ct.v1.audit.fw-a.flush", "fw-a"},
		{"publish ct.v1.audit.fw-a.residual", "fw-a"},
		{"publish ct.v1.events", ""},
		{"publish ct.v1.events.fw-a.x", ""},
		{"publish ct.v1.events.fw-c", ""},

		// Alerts, the pace.
		{"publish ct.v1.alerts.firing.r.fleet.203-0-113-7", "aggregator"},
		{"publish ct.v1.alerts.resolved.r.fw-a.table", "aggregator"},
		{"publish ct.v1.pace", "aggregator"},

		// Commands: each is signed, and the firewall decides; the aggregator has one.
		{"publish ct.v1.cmd.fw-a.flush", "responder operator"},
		{"publish ct.v1.cmd.fw-a.block", "responder operator"},
		{"publish ct.v1.cmd.fw-a.unblock", "responder operator"},
		{"publish ct.v1.cmd.fw-a.status", "responder operator"},
		{"publish ct.v1.cmd.fw-a.resync", "aggregator operator"},
		{"publish ct.v1.cmd.fw-a.other", ""},

		// The audit: each in its own name.
		{"publish ct.v1.audit.responder.decision", "responder"},
		{"publish ct.v1.audit.operator.flush", "operator"},
		{"publish ct.v1.audit.aggregator.reload", "aggregator"},

		// Questions.
		{"publish ct.v1.query.top", "operator analyst viewer"},
		{"publish ct.v1.query.firewalls", "operator analyst viewer"},
		{"publish ct.v1.query.alerts", "operator analyst viewer"},
		{"publish ct.v1.query.address", "operator analyst"}, // names peers

		// The buckets.
		{"publish $KV.CT_ALLOWLIST.default.203-0-113-7", "operator"},
		{"publish $KV.CT_APPROVALS.x.answer", "responder operator"},
		{"publish $KV.CT_GUARD.circuit", "responder operator"},

		// Listening. Whoever hears commands could carry them out in another's place.
		{"subscribe ct.v1.cmd.fw-a.*", "fw-a"},
		{"subscribe ct.v1.cmd.fw-a.flush", "fw-a"},
		{"subscribe ct.v1.cmd.>", ""},
		{"subscribe ct.v1.events.*", "operator analyst"},
		{"subscribe ct.v1.events.fw-a", "operator analyst"},
		{"subscribe ct.v1.snapshots.*", "operator analyst"},
		{"subscribe ct.v1.health.*", "aggregator responder operator analyst"},
		{"subscribe ct.v1.alerts.>", "operator analyst viewer"},
		{"subscribe ct.v1.audit.>", "operator analyst"},
		{"subscribe ct.v1.pace", "aggregator operator analyst fw-a fw-b"},
		{"subscribe ct.v1.query.*", "aggregator"},
		{"subscribe ct.v1.query.top", "aggregator"},
		{"subscribe ct.>", ""},
		{"subscribe >", ""},
		{"subscribe $KV.CT_ALLOWLIST.>", ""},
		{"subscribe _INBOX.>", ""},
		{"subscribe _INBOX.operator.>", ""},
		{"subscribe $JS.>", ""},
		{"subscribe $SYS.>", ""},

		// Answers go to the inboxes of those who ask.
		{"publish _INBOX.operator.x.y", "aggregator responder fw-a fw-b"},
		{"publish _INBOX.responder.x.y", "fw-a fw-b"},
		{"publish _INBOX.aggregator.x.y", "fw-a fw-b"},
		{"publish _INBOX.producer.x.y", ""},

		// Reading streams: a consumer of one's own, and what it delivers.
		{"publish $JS.API.CONSUMER.CREATE.CT_EVENTS.c.ct.v1.events.>", "aggregator operator analyst"},
		{"publish $JS.API.CONSUMER.CREATE.CT_SNAPSHOTS.c", "aggregator operator analyst"},
		{"publish $JS.API.CONSUMER.CREATE.CT_ALERTS.c", "aggregator responder operator analyst"},
		{"publish $JS.API.CONSUMER.CREATE.CT_AUDIT.c", "aggregator responder operator analyst"},
		{"publish $JS.API.CONSUMER.CREATE.CT_LAST.c", "operator analyst"},
		{"publish $JS.API.CONSUMER.CREATE.KV_CT_ALLOWLIST.c", "aggregator responder operator fw-a fw-b"},
		{"publish $JS.API.CONSUMER.CREATE.KV_CT_GUARD.c", "aggregator responder operator"},
		{"publish $JS.API.CONSUMER.CREATE.KV_CT_APPROVALS.c", "responder operator"},
		{"publish $JS.API.CONSUMER.MSG.NEXT.CT_EVENTS.c", "aggregator operator analyst"},
		{"publish $JS.API.CONSUMER.MSG.NEXT.CT_ALERTS.c", "aggregator responder operator analyst"},
		{"publish $JS.API.CONSUMER.MSG.NEXT.KV_CT_ALLOWLIST.c", "aggregator responder operator fw-a fw-b"},
		{"publish $JS.API.CONSUMER.MSG.NEXT.CT_ALERTS.responder", "responder"},
		{"publish $JS.API.CONSUMER.CREATE.CT_ALERTS.responder", "responder"},
		{"publish $JS.API.CONSUMER.CREATE.CT_ALERTS.responder.ct.v1.alerts.>", "responder"},
		{"publish $JS.API.CONSUMER.DELETE.CT_ALERTS.responder", ""},
		{"publish $JS.API.CONSUMER.DURABLE.CREATE.CT_ALERTS.responder", ""},
		{"publish $JS.ACK.CT_ALERTS.responder.1.1.1.1.0", "responder"},
		{"publish $JS.ACK._.hash.CT_ALERTS.responder.1.1.1.1.0.x", "responder"},
		{"publish $JS.ACK.CT_AUDIT.c.1.1.1.1.0", ""},
		{"publish $JS.API.STREAM.MSG.GET.CT_LAST", "aggregator responder operator analyst"},
		{"publish $JS.API.STREAM.MSG.GET.CT_EVENTS", ""},
		{"publish $JS.API.DIRECT.GET.KV_CT_GUARD.$KV.CT_GUARD.circuit", "responder operator"},

		// Streams: one identity makes them, and those of events anew when they are to be
		// replicated; nobody else erases, but for what is left of a
		// firewall that was dismissed.
		{"publish $JS.API.STREAM.CREATE.CT_EVENTS", "bootstrap"},
		{"publish $JS.API.STREAM.UPDATE.CT_AUDIT", "bootstrap"},
		{"publish $JS.API.STREAM.CREATE.OTHER", ""},
		{"publish $JS.API.STREAM.INFO.CT_EVENTS", "bootstrap aggregator operator analyst"},
		{"publish $JS.API.STREAM.INFO.KV_CT_ALLOWLIST", "bootstrap aggregator responder operator fw-a fw-b"},
		{"publish $JS.API.STREAM.DELETE.CT_AUDIT", ""},
		{"publish $JS.API.STREAM.DELETE.CT_EVENTS", "bootstrap"},
		{"publish $JS.API.STREAM.DELETE.CT_SNAPSHOTS", "bootstrap"},
		{"publish $JS.API.STREAM.DELETE.CT_LAST", "bootstrap"},
		{"publish $JS.API.STREAM.DELETE.CT_ALERTS", ""},
		{"publish $JS.API.STREAM.PURGE.CT_AUDIT", ""},
		{"publish $JS.API.STREAM.PURGE.CT_EVENTS", ""},
		{"publish $JS.API.STREAM.PURGE.CT_LAST", "aggregator"},
		{"publish $JS.API.STREAM.MSG.DELETE.CT_ALERTS", ""},
		{"publish $JS.API.STREAM.LIST", ""},
		{"publish $JS.API.INFO", ""},
		{"publish $JS.API.STREAM.SNAPSHOT.CT_AUDIT", ""},
		{"publish $JS.API.STREAM.RESTORE.CT_AUDIT", ""},

		// What `nats micro` asks.
		{"publish $SRV.PING", "operator"},
		{"subscribe $SRV.PING", "aggregator responder fw-a fw-b"},
		{"subscribe $SRV.STATS.ct-producer", "fw-a fw-b"},
		{"subscribe $SRV.STATS.ct-aggregator", "aggregator"},
		{"subscribe $SRV.INFO.ct-responder", "responder"},
		{"subscribe $SRV.>", ""},

		// The server itself.
		{"publish $SYS.REQ.SERVER.PING", ""},
		{"publish $SYS.REQ.ACCOUNT.PING.CONNZ", ""},
	} {
		if tested[c.what] {
			t.Errorf("%s is there twice", c.what)
		}
		tested[c.what] = true
		may := strings.Fields(c.who)
		for _, who := range everybody {
			if got, want := clients[who].permits(t, c.what), slices.Contains(may, who); got != want {
				t.Errorf("%s: %s permitted %t, want %t", who, c.what, got, want)
			}
		}
	}
	for _, who := range everybody {
		c := clients[who]
		if !c.permits(t, "subscribe _INBOX.operator."+c.key+".>") {
			t.Errorf("%s does not hear answers to itself", who)
		}
		for _, other := range everybody {
			if own := clients[other].key; other != who && c.permits(t, "subscribe _INBOX.operator."+own+".>") {
				t.Errorf("%s hears answers to %s", who, other)
			}
		}
	}
	// Each subject that a role is given must stand for one of the table: what nobody looks at, nobody needs.
	for id, c := range clients {
		role := Role(id)
		if strings.HasPrefix(id, "fw-") {
			role = RoleFirewall
		}
		p := permissionsOf(&Identity{Name: id, Role: role, Key: c.key})
		for _, s := range slices.Concat(p.Publish, p.Subscribe) {
			if strings.Contains(s, c.key) || strings.HasPrefix(s, "$JS.API.") || strings.HasPrefix(s, "$SRV.") || id == "fw-b" {
				continue // one of a kind is enough
			}
			if !slices.ContainsFunc(slices.Collect(maps.Keys(tested)), func(what string) bool {
				_, subject, _ := strings.Cut(what, " ")
				return matches(s, subject)
			}) {
				t.Errorf("%s may use %s, which the table does not try", id, s)
			}
		}
	}
}

// matches reports whether a pattern of NATS covers a subject.
func matches(pattern, subject string) bool {
	p, s := strings.Split(pattern, "."), strings.Split(subject, ".")
	for i, token := range p {
		if token == ">" {
			return len(s) > i
		}
		if i >= len(s) || token != "*" && token != s[i] {
			return false
		}
	}
	return len(p) == len(s)
}

// TestSystemKey reloads, and can do nothing else.
func TestSystemKey(t *testing.T) {
	t.Parallel()
	f := newFleet(t, Options{}, "fw-a")
	c := f.client("system")
	for what, want := range map[string]bool{
		"publish $SYS.REQ.SERVER.PING.IDZ":        true,
		"publish $SYS.REQ.SERVER.PING":            false,
		"publish $SYS.REQ.SERVER.NAAA.RELOAD":     true,
		"publish $SYS.REQ.SERVER.NAAA.LDM":        false,
		"publish $SYS.REQ.SERVER.NAAA.KICK":       false,
		"publish $SYS.REQ.ACCOUNT.PING.CONNZ":     false,
		"publish ct.v1.cmd.fw-a.flush":            false,
		"publish $JS.API.STREAM.CREATE.CT_EVENTS": false,
		"subscribe $SYS.>":                        false,
		"subscribe >":                             false,
	} {
		if got := c.permits(t, what); got != want {
			t.Errorf("%s: permitted %t, want %t", what, got, want)
		}
	}
}

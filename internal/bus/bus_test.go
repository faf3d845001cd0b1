package bus

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// startServer starts an embedded server for one test, in-process only unless
// cfg says otherwise.
func startServer(t *testing.T, cfg embedded.Config) *embedded.Server {
	t.Helper()
	s, err := embedded.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func connect(t *testing.T, cfg Config) *Conn {
	t.Helper()
	if cfg.Role == "" {
		cfg.Role = "test"
	}
	c, err := Connect(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// bootstrapped is a connection to a server of its own, with all streams.
func bootstrapped(t *testing.T, limits Limits) (*embedded.Server, *Conn) {
	t.Helper()
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	c := connect(t, Config{Server: s})
	if _, err := c.Bootstrap(t.Context(), limits, false); err != nil {
		t.Fatal(err)
	}
	return s, c
}

// until waits for a condition that another goroutine brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestHideTheUserPart(t *testing.T) {
	f := func(connected, configured, want string) {
		t.Helper()
		if got := hide(connected, configured); got != want {
			t.Errorf("hide(%q, %q) = %q, want %q", connected, configured, got, want)
		}
	}
	f("", "nats://192.0.2.1:4222", "nats://192.0.2.1:4222")
	f("", "nats://user:secret@192.0.2.1:4222", "nats://192.0.2.1:4222")
	f("", "nats://token@192.0.2.1:4222", "nats://192.0.2.1:4222")
	f("", "nats://user:sec@ret@192.0.2.1:4222", "nats://192.0.2.1:4222")
	f("", "user:secret@192.0.2.1:4222", "192.0.2.1:4222")
	f("", "user:sec@ret@192.0.2.1:4222", "192.0.2.1:4222")
	f("", "192.0.2.1:4222", "192.0.2.1:4222")
	f("", "nats.example.net", "nats.example.net")
	f("", "tls://a:secret@one:4222, tls://b:secret@two:4222", "tls://one:4222,tls://two:4222")
	f("", "nats://a:sec%zzret@one:4222", "one:4222") // cannot be parsed
	f("", "nats://one:4222/?password=secret#secret", "nats://one:4222")
	f("nats://a:secret@[2001:db8::1]:4222", "nats://other:4222", "nats://[2001:db8::1]:4222")
}

func TestConnectErrorsSayWhatAndWhere(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.nk")
	if err := os.WriteFile(bad, []byte("no seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	server := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	f := func(flags Flags, want ...string) {
		t.Helper()
		c, err := Connect(Config{Flags: flags, Role: "test"})
		if err == nil {
			c.Close()
			t.Errorf("%+v: connected", flags)
			return
		}
		for _, w := range want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not say %q", err, w)
			}
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%q tells the password", err)
		}
	}
	f(Flags{NATSURL: "nats://me:secret@127.0.0.1:1"}, "connect to NATS at nats://127.0.0.1:1")
	f(Flags{NATSURL: "nats://me:secret@127.0.0.1:none"}, "connect to NATS at 127.0.0.1:none", "invalid port")
	f(Flags{NATSURL: "nats://me:secret@" + server.Addr()}, server.Addr(), "Authorization Violation")
	f(Flags{NATSURL: "nats://" + server.Addr(), NATSCreds: missing}, "--nats-creds", missing)
	f(Flags{NATSURL: "nats://" + server.Addr(), NATSNKey: missing}, "--nats-nkey", missing)
	f(Flags{NATSURL: "nats://" + server.Addr(), NATSNKey: bad}, "--nats-nkey", bad)
	f(Flags{NATSURL: "nats://" + server.Addr(), NATSCA: missing}, "--nats-ca", missing)
	f(Flags{NATSURL: "nats://" + server.Addr(), NATSCert: bad}, "--nats-cert and --nats-key go together")
	f(Flags{NATSURL: "nats://" + server.Addr(), NATSKey: bad}, "--nats-cert and --nats-key go together")

	stopped := startServer(t, embedded.Config{Dir: t.TempDir()})
	stopped.Stop()
	if c, err := Connect(Config{Server: stopped, Role: "test"}); err == nil {
		c.Close()
		t.Error("connected to a server that was stopped")
	} else if !strings.Contains(err.Error(), "inside this process") {
		t.Errorf("%q does not say that the server is inside this process", err)
	}
}

// logged collects log lines.
type logged struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPatientConnect starts a daemon's connection before its server, and takes
// the server away and back.
func TestPatientConnect(t *testing.T) {
	s := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	s.Stop()
	var log logged
	changes := make(chan bool, 16)
	c := connect(t, Config{
		Flags: Flags{NATSURL: s.URL()}, Patient: true, Name: "fw-a",
		Log:      slog.New(slog.NewTextHandler(&log, nil)),
		OnChange: func(up bool) { changes <- up },
	})
	if err := c.Connected(); err == nil {
		t.Error("connected to a server that does not run")
	}
	if err := c.Send(events.SubjectPace, &events.Pace{}); err == nil {
		t.Error("publishing without a connection must fail at once: what waits, waits where it is counted")
	}
	up := func(want bool) {
		t.Helper()
		select {
		case got := <-changes:
			if got != want {
				t.Errorf("the connection is up: %t, want %t", got, want)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the connection did not change to up: %t", want)
		}
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	up(true)
	if err := c.WaitConnected(t.Context()); err != nil {
		t.Error(err)
	}
	s.Stop()
	up(false)
	short, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.WaitConnected(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitConnected without a server: %v", err)
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	up(true)
	if err := c.Connected(); err != nil {
		t.Error(err)
	}
	_, password := s.Credentials()
	if text := log.String(); !strings.Contains(text, s.Addr()) || strings.Contains(text, password) {
		t.Errorf("the log must name %s and no password:\n%s", s.Addr(), text)
	}
}

func TestEachRoleHasItsInbox(t *testing.T) {
	f := func(role, name, want string) {
		t.Helper()
		if got := inboxPrefix(role, name); got != want {
			t.Errorf("inboxPrefix(%q, %q) = %q, want %q", role, name, got, want)
		}
	}
	f("producer", "fw-a", "_INBOX.producer.fw-a")
	f("producer", "FW.a>*", "_INBOX.producer.fw-a--") // a token of its own, no wildcard
	if a, b := inboxPrefix("ctfleet", ""), inboxPrefix("ctfleet", ""); a == b || !strings.HasPrefix(a, "_INBOX.ctfleet.") {
		t.Errorf("without a name the inbox must be a random one: %q, %q", a, b)
	}
}

// reachable connects the plain client, as any subscriber would.
func reachable(t *testing.T, url string) error {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	return nc.FlushTimeout(5 * time.Second)
}

package auth

import (
	"bytes"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// contents reads all files below a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if d.IsDir() {
			want = 0o700
		}
		if path == dir {
			return nil // its mode is its owner's business
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", path, got, want)
		}
		if !d.IsDir() {
			rel, _ := filepath.Rel(dir, path)
			files[rel] = string(read(t, path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestInit(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, Options{Listen: "0.0.0.0:4222", Hosts: []string{"nats.example"}, At: "/etc/ctfleet"}); err != nil {
		t.Fatal(err)
	}
	if _, err := AddFirewall(dir, Firewall{Name: "fw1", Realm: "lis1"}); err != nil {
		t.Fatal(err)
	}
	before := contents(t, dir)
	for _, name := range []string{"nats.conf", "nats/accounts.conf", "nats/cert.pem", "ca/ca.key", "aggregator/nats.nk", "aggregator/http-token", "responder/sign.nk", "operator/sign.nk", "operator/trust.yaml", "viewer/key.pem", "firewalls/fw1/nats.nk"} {
		if before[name] == "" {
			t.Errorf("%s is not there", name)
		}
	}
	// What is secret is in one place only.
	for name, text := range before {
		for other, theirs := range before {
			if secret := strings.TrimSpace(text); (strings.HasSuffix(name, ".nk") || strings.HasSuffix(name, "key.pem") || strings.HasSuffix(name, "ca.key") || strings.HasSuffix(name, "token")) &&
				name != other && strings.Contains(theirs, secret) {
				t.Errorf("the secret of %s is in %s too", name, other)
			}
		}
	}

	// What is there stays, unless it is to be made anew.
	if err := Init(dir, Options{}); !errors.Is(err, ErrInitialised) || !strings.Contains(err.Error(), "--force") {
		t.Errorf("again: %v", err)
	}
	if _, err := AddFirewall(dir, Firewall{Name: "fw1", Realm: "default"}); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("the same firewall again: %v", err)
	}
	after := contents(t, dir)
	for name, text := range before {
		if after[name] != text {
			t.Errorf("%s has changed", name)
		}
	}
	if err := Init(dir, Options{Force: true, Listen: "0.0.0.0:4222"}); err != nil {
		t.Fatal(err)
	}
	for name, text := range contents(t, dir) {
		if before[name] == text && name != "nats.conf" {
			t.Errorf("%s is as before, with Force", name)
		}
	}
	if _, err := AddFirewall(dir, Firewall{Name: "fw1"}); err != nil {
		t.Errorf("a firewall of before: %v", err)
	}

	// Half a fleet is no fleet, and nothing of it is lost.
	half := t.TempDir()
	if err := os.MkdirAll(filepath.Join(half, "viewer"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(half, "viewer", "nats.nk"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Init(half, Options{}); err == nil || !strings.Contains(err.Error(), "viewer/nats.nk is there already") {
		t.Errorf("over somebody's file: %v", err)
	}
	if files := contents(t, half); len(files) != 1 || files["viewer/nats.nk"] != "mine" {
		t.Errorf("it left %v", files)
	}
	if _, err := AddFirewall(half, Firewall{Name: "fw1", Realm: "default"}); err == nil || !strings.Contains(err.Error(), "auth init") {
		t.Errorf("a firewall of no fleet: %v", err)
	}
}

func TestNames(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, Options{NoTLS: true}); err != nil {
		t.Fatal(err)
	}
	for name, says := range map[string]string{"": "empty", "FW": "not allowed", "a.b": "not allowed", "../x": "not allowed", "operator": "reserved", "viewer": "name of a service", "fw*": "not allowed", strings.Repeat("x", 64): "64 characters"} {
		if _, err := AddFirewall(dir, Firewall{Name: name, Realm: "default"}); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v, want %s", name, err, says)
		}
	}
	if _, err := AddFirewall(dir, Firewall{Name: "fw1", Realm: "no realm"}); err == nil || !strings.Contains(err.Error(), "realm") {
		t.Errorf("a wrong realm: %v", err)
	}
	if err := RevokeFirewall(dir, "fw1"); err == nil || !strings.Contains(err.Error(), `no firewall "fw1"`) {
		t.Errorf("revoked nobody: %v", err)
	}
	for name := range contents(t, dir) {
		if strings.HasSuffix(name, ".pem") || strings.HasPrefix(name, "firewalls") {
			t.Errorf("%s, without TLS and without a firewall", name)
		}
	}
}

// TestAnotherKey: a firewall that gets one stays where it was, and what it was told.
func TestAnotherKey(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	made, err := AddFirewall(dir, Firewall{Name: "fw1", Realm: "lis1", URL: "tls://other:4222"})
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(made, "producer.yaml")
	told := append(read(t, config), "allow-flush: true\n"...)
	if err := os.WriteFile(config, told, 0o600); err != nil {
		t.Fatal(err)
	}
	before := contents(t, made)
	if _, err := AddFirewall(dir, Firewall{Name: "fw1", Force: true}); err != nil {
		t.Fatal(err)
	}
	for name, text := range contents(t, made) {
		if same, want := before[name] == text, name == "producer.yaml" || name == "trust.yaml" || name == "ca.pem"; same != want {
			t.Errorf("%s is as before: %t, want %t", name, same, want)
		}
	}
	// The copy at the centre may be gone.
	if err := os.RemoveAll(made); err != nil {
		t.Fatal(err)
	}
	if _, err := AddFirewall(dir, Firewall{Name: "fw1", Force: true}); err != nil {
		t.Fatal(err)
	}
	if text := string(read(t, config)); !strings.Contains(text, "realm: lis1\n") || !strings.Contains(text, "tls://other:4222") {
		t.Errorf("it was told\n%s", text)
	}
}

// TestReplaceFollowsNothing: who owns the directory of a file that root replaces does not make root
// write, or give away, another one.
func TestReplaceFollowsNothing(t *testing.T) {
	dir := t.TempDir()
	precious := filepath.Join(t.TempDir(), "precious")
	if err := os.WriteFile(precious, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "accounts.conf")
	for _, link := range []string{path, path + ".new"} {
		if err := os.Symlink(precious, link); err != nil {
			t.Fatal(err)
		}
	}
	if err := replace(path, []byte("theirs"), 0o600); err != nil {
		t.Fatal(err)
	}
	if string(read(t, precious)) != "mine" || string(read(t, path)) != "theirs" {
		t.Errorf("the other file says %s, this one %s", read(t, precious), read(t, path))
	}
}

// TestOwners gives each service its directory, for containers whose users are numbers.
func TestOwners(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	dir := t.TempDir()
	o := Options{Owners: map[string]Owner{"nats": OwnedBy(65510, 65510), "aggregator": OwnedBy(65511, 65513)}}
	if err := Init(dir, o); err != nil {
		t.Fatal(err)
	}
	if _, err := AddFirewall(dir, Firewall{Name: "fw1", Realm: "default"}); err != nil { // writes the accounts anew
		t.Fatal(err)
	}
	for path, want := range map[string][2]uint32{
		"nats": {65510, 65510}, "nats.conf": {65510, 65510}, "nats/accounts.conf": {65510, 65510}, "nats/key.pem": {65510, 65510},
		"aggregator": {65511, 65513}, "aggregator/http-token": {65511, 65513}, "responder/sign.nk": {0, 0}, "identities.yaml": {0, 0}, "ca/ca.key": {0, 0},
	} {
		info, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if s := info.Sys().(*syscall.Stat_t); s.Uid != want[0] || s.Gid != want[1] {
			t.Errorf("%s belongs to %d:%d, want %d:%d", path, s.Uid, s.Gid, want[0], want[1])
		}
	}
}

// TestReload adds a firewall to a fleet that runs, and takes it away: nobody else notices.
func TestReload(t *testing.T) {
	t.Parallel()
	f := newFleet(t, Options{}, "fw-a")
	var breaks atomic.Int32
	keep, err := bus.Connect(bus.Config{Flags: f.flags("firewalls/fw-a"), Role: "producer", OnChange: func(connected bool) {
		if !connected {
			breaks.Add(1)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer keep.Close()
	reload := func() {
		t.Helper()
		names, err := bus.ReloadServers(t.Context(), f.flags("system"))
		if err != nil || len(names) != 1 || names[0] != "ctfleet" {
			t.Fatalf("reloaded %v: %v", names, err)
		}
	}
	connect := func() error {
		c, err := bus.Connect(bus.Config{Flags: f.flags("firewalls/fw-b"), Role: "producer"})
		if err == nil {
			c.Close()
		}
		return err
	}
	if _, err := AddFirewall(f.dir, Firewall{Name: "fw-b", Realm: "default"}); err != nil {
		t.Fatal(err)
	}
	if err := connect(); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("before the server knows: %v", err)
	}
	reload()
	if err := connect(); err != nil {
		t.Errorf("added: %v", err)
	}

	var log lines
	elsewhere := &fleet{dir: t.TempDir(), url: f.url} // the copy on the firewall
	if err := os.CopyFS(elsewhere.dir, os.DirFS(f.dir)); err != nil {
		t.Fatal(err)
	}
	revoked, err := bus.Connect(bus.Config{Flags: elsewhere.flags("firewalls/fw-b"), Role: "producer", Patient: true, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(elsewhere.flags("firewalls/fw-b").NATSCert); err != nil {
		t.Fatal(err)
	}
	stolen := f.client("firewalls/fw-b")
	gone := stolen.StatusChanged(nats.RECONNECTING, nats.CLOSED)
	if err := RevokeFirewall(f.dir, "fw-b"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "firewalls", "fw-b")); !os.IsNotExist(err) {
		t.Errorf("the directory of who was revoked: %v", err)
	}
	reload()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("who was revoked is still connected")
	}
	stolen.Close()
	if breaks.Load() != 0 || keep.Connected() != nil {
		t.Errorf("the connection of another firewall broke %d times", breaks.Load())
	}
	for deadline := time.Now().Add(15 * time.Second); !strings.Contains(log.String(), "fw-b/cert.pem: no such file"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Errorf("who has no certificate any more is not told:\n%s", log.String())
			break
		}
	}
	revoked.Close() // a handshake that it left half done holds a reload up for tls.timeout
	// The name can be had again, with another key.
	if _, err := AddFirewall(f.dir, Firewall{Name: "fw-b", Realm: "default"}); err != nil {
		t.Fatal(err)
	}
	reload()
	if err := connect(); err != nil {
		t.Errorf("added again: %v", err)
	}

	// A file that the server cannot read leaves it as it is, and is told of.
	accounts := filepath.Join(f.dir, serverDir, accountsFile)
	if err := os.WriteFile(accounts, []byte("accounts {"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := bus.ReloadServers(t.Context(), f.flags("system")); err == nil || !strings.Contains(err.Error(), "server ctfleet: ") {
		t.Errorf("a broken file: %v", err)
	}
	if err := connect(); err != nil {
		t.Errorf("after a broken file: %v", err)
	}
	if err := Refresh(f.dir); err != nil {
		t.Fatal(err)
	}
	reload()
	// Who is of the account is not of the system.
	if _, err := bus.ReloadServers(t.Context(), f.flags("operator")); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("a reload by the operator's key: %v", err)
	}
}

// lines is a log that is read while it is written.
type lines struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestStrangers do not get in.
func TestStrangers(t *testing.T) {
	t.Parallel()
	f := newFleet(t, Options{}, "fw-a")
	other := t.TempDir()
	if err := Init(other, Options{}); err != nil {
		t.Fatal(err)
	}
	good := f.flags("aggregator")
	for name, change := range map[string]func(*bus.Flags){
		"no certificate":         func(b *bus.Flags) { b.NATSCert, b.NATSKey = "", "" },
		"no key":                 func(b *bus.Flags) { b.NATSNKey = "" },
		"a key of another fleet": func(b *bus.Flags) { b.NATSNKey = filepath.Join(other, "aggregator", "nats.nk") },
		"a certificate of another one": func(b *bus.Flags) {
			b.NATSCert, b.NATSKey = filepath.Join(other, "aggregator", "cert.pem"), filepath.Join(other, "aggregator", "key.pem")
		},
		"a server of another one": func(b *bus.Flags) { b.NATSCA = filepath.Join(other, "aggregator", "ca.pem") },
		"no TLS": func(b *bus.Flags) {
			b.NATSURL = strings.Replace(b.NATSURL, "tls", "nats", 1)
			b.NATSCA, b.NATSCert, b.NATSKey = "", "", ""
		},
	} {
		flags := good
		change(&flags)
		if c, err := bus.Connect(bus.Config{Flags: flags, Role: "aggregator"}); err == nil {
			c.Close()
			t.Errorf("%s: connected", name)
		}
	}
	f.conn("aggregator") // and the good one does
}

// TestRenew gives the server another name and everybody another certificate, while it runs.
func TestRenew(t *testing.T) {
	t.Parallel()
	f := newFleet(t, Options{}, "fw-a")
	before := contents(t, f.dir)
	renewed, err := Renew(f.dir, []string{"later.example", "192.0.2.7", "localhost"})
	if err != nil || len(renewed) != len(Services()) {
		t.Fatalf("renewed %v: %v", renewed, err)
	}
	for name, text := range contents(t, f.dir) {
		dir, base := filepath.Split(name)
		want := (base == "cert.pem" || base == "key.pem") && dir != "firewalls/fw-a/"
		if changed := before[name] != text; changed != want {
			t.Errorf("%s has changed: %t, want %t", name, changed, want)
		}
	}
	if _, err := bus.ReloadServers(t.Context(), f.flags("system")); err != nil {
		t.Fatal(err)
	}
	// Old and new certificates both open the door.
	f.conn("aggregator")
	f.conn("firewalls/fw-a")
	cert, err := readCertificate(filepath.Join(f.dir, "nats", "cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"later.example", "192.0.2.7", "localhost", "127.0.0.1", "nats-3"} {
		if err := cert.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if len(cert.DNSNames)+len(cert.IPAddresses) != 2+len(usualHosts()) {
		t.Errorf("the certificate is for %v %v", cert.DNSNames, cert.IPAddresses)
	}
	if _, err := Renew(t.TempDir(), nil); err == nil {
		t.Error("renewed nothing")
	}
}

// TestDenied says at once what a key is not for, instead of waiting for an answer that never comes.
func TestDenied(t *testing.T) {
	t.Parallel()
	f := newFleet(t, Options{NoTLS: true})
	boot := f.conn("bootstrap")
	if made, err := boot.Bootstrap(t.Context(), bus.DefaultLimits, true); err != nil || len(made) != len(bus.StreamNames()) {
		t.Fatalf("bootstrap made %v: %v", made, err)
	}
	viewer := f.conn("viewer")
	begin := time.Now()
	_, err := viewer.State(t.Context(), bus.StreamAudit)
	if !errors.Is(err, bus.ErrDenied) || !strings.Contains(err.Error(), "STREAM.INFO.CT_AUDIT") {
		t.Errorf("the state of a stream: %v", err)
	}
	if err := viewer.Request(t.Context(), "ct.v1.query.address", &events.TopQuery{By: "src", Metric: "new"}, &events.TopReply{}); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("a question: %v", err)
	}
	if err := viewer.PublishMessage(t.Context(), "ct.v1.audit.operator.x", "", &events.Act{Verb: "x"}); !errors.Is(err, bus.ErrDenied) {
		t.Errorf("a publication: %v", err)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("three refusals took %s", took)
	}
}

// TestFilesReadBack reads what was made with the code that will.
func TestFilesReadBack(t *testing.T) {
	dir := t.TempDir()
	if err := Init(dir, Options{Listen: "0.0.0.0:4222", Hosts: []string{"nats.example"}, At: "/etc/ctfleet"}); err != nil {
		t.Fatal(err)
	}
	made, err := AddFirewall(dir, Firewall{Name: "fw1", Realm: "lis1"})
	if err != nil {
		t.Fatal(err)
	}
	var flags map[string]any
	if err := config.ReadFile(filepath.Join(made, "producer.yaml"), &flags); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"name": "fw1", "realm": "lis1", "nats-url": "tls://nats.example:4222", "nats-key": "/etc/ctfleet/key.pem", "trust": "/etc/ctfleet/trust.yaml"} {
		if flags[key] != want {
			t.Errorf("producer.yaml: %s is %v, want %v", key, flags[key], want)
		}
	}
	if bytes.Contains(read(t, filepath.Join(made, "producer.yaml")), []byte("\nallow-flush")) {
		t.Error("a firewall that is added permits deletion")
	}
	trust, err := seal.OpenTrust(filepath.Join(made, "trust.yaml"))
	if err != nil || trust.Len() != 2 {
		t.Errorf("it trusts %d keys, want the operator's and the responder's: %v", trust.Len(), err)
	}
	access := daemon.Access{HTTPTokenFile: filepath.Join(dir, "aggregator", "http-token")}
	if err := access.CheckAccess("0.0.0.0:8080"); err != nil {
		t.Errorf("the token: %v", err)
	}
}

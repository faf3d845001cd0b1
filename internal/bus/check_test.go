package bus

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// found expects findings, each a piece of its text, FATAL before those that are.
func found(t *testing.T, what string, got []daemon.Finding, want ...string) {
	t.Helper()
	ok := len(got) == len(want)
	var said []string
	for i, f := range got {
		s := f.String()
		if f.Fatal {
			s = "FATAL " + s
		}
		said = append(said, s)
		if ok {
			piece, fatal := strings.CutPrefix(want[i], "FATAL ")
			ok = strings.Contains(s, piece) && fatal == f.Fatal
		}
		if f.What == "" || f.Remedy == "" || strings.ContainsAny(s, "\n\x1b") {
			t.Errorf("%s: %q is no finding", what, s)
		}
	}
	if !ok {
		t.Errorf("%s: found\n\t%s\nwant\n\t%s", what, strings.Join(said, "\n\t"), strings.Join(want, "\n\t"))
	}
}

// serve runs a real server with a config as an operator writes it.
func serve(t *testing.T, config string) (url string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "nats.conf")
	if err := os.WriteFile(file, []byte("listen: 127.0.0.1:-1\n"+config), 0o600); err != nil {
		t.Fatal(err)
	}
	opts, err := server.ProcessConfigFile(file)
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(s.Shutdown)
	if !s.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	return "nats://" + s.Addr().String()
}

// TestCheckServer: what keeps a role from a real server, and what mends it.
func TestCheckServer(t *testing.T) {
	needs := Needs{Role: "producer", Name: "fw-a", Permits: "ctfleet auth add-firewall fw-a", Streams: []string{StreamEvents, StreamAudit},
		Publish: []string{events.EventsSubject("fw-a")}, Subscribe: []string{events.CommandSubject("fw-a", events.VerbFlush)}}
	check := func(f Flags) []daemon.Finding {
		began := time.Now()
		defer func() {
			if d := time.Since(began); d > 4*time.Second {
				t.Errorf("it took %s", d)
			}
		}()
		return f.Check(t.Context(), needs)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "nats://user:secret@" + l.Addr().String()
	l.Close()
	offline := check(Flags{NATSURL: nobody})
	found(t, "nobody is there", offline, "cannot be reached")
	if strings.Contains(offline[0].String(), "secret") {
		t.Errorf("a password is shown: %s", offline[0])
	}

	open := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir(), Open: true})
	found(t, "no streams", check(Flags{NATSURL: open.URL()}), "FATAL NATS lacks CT_EVENTS, CT_AUDIT. ctfleet bootstrap", "FATAL Nothing in NATS keeps")
	if made := check(Flags{NATSURL: open.URL()}); len(made) != 2 {
		t.Errorf("a check changed what it finds: %v", made)
	}
	makes := needs
	makes.Makes, makes.Publish = true, nil
	found(t, "no streams, for who makes them", (&Flags{NATSURL: open.URL()}).Check(t.Context(), makes), "This program creates them")
	c := connect(t, Config{Flags: Flags{NATSURL: open.URL()}})
	if _, err := c.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	found(t, "all is well", check(Flags{NATSURL: open.URL()}))
	st, err := c.State(t.Context(), StreamEvents)
	if err != nil || st.LastSeq != 0 {
		t.Errorf("a check left %d messages in the stream, %v", st.LastSeq, err)
	}
	found(t, "no JetStream", check(Flags{NATSURL: serve(t, "")}), "FATAL JetStream is not enabled", "FATAL Nothing in NATS keeps")
	found(t, "TLS asked for where there is none", check(Flags{NATSURL: strings.Replace(open.URL(), "nats://", "tls://", 1)}), "FATAL --nats-url begins with tls:// where")

	// Keys and permissions.
	dir := t.TempDir()
	user, public := nkey(t, filepath.Join(dir, "nats.nk"))
	other, _ := nkey(t, filepath.Join(dir, "other.nk"))
	restricted := serve(t, `jetstream { store_dir: "`+filepath.Join(dir, "js")+`" }
authorization { users: [ { nkey: `+public+`, permissions: {
  publish: { allow: ["ct.v1.events.fw-b", "$JS.API.STREAM.INFO.CT_AUDIT"] }, subscribe: { allow: ["`+Inboxes(public)+`"] } } } ] }`)
	found(t, "another one's key", check(Flags{NATSURL: restricted, NATSNKey: other}), "FATAL refuses us")
	found(t, "no key", check(Flags{NATSURL: restricted}), "FATAL --nats-nkey or --nats-creds must be")
	found(t, "a key of another firewall", check(Flags{NATSURL: restricted, NATSNKey: user}), "FATAL NATS lacks CT_AUDIT",
		"FATAL does not permit us to subscribe to ct.v1.cmd.fw-a.flush", "FATAL does not permit us to publish to ct.v1.events.fw-a")
}

func nkey(t *testing.T, file string) (path, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err != nil {
		t.Fatal(err)
	}
	if public, err = pair.PublicKey(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, seed, 0o600); err != nil {
		t.Fatal(err)
	}
	return file, public
}

// TestCheckFiles: what proves who we are is there, for us alone, and valid.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	check := func(f Flags) []daemon.Finding { return f.checkFiles() }
	key, _ := nkey(t, filepath.Join(dir, "nats.nk"))
	found(t, "a key of ours", check(Flags{NATSNKey: key}))
	chmod(t, key, 0o640)
	found(t, "a key of our group", check(Flags{NATSNKey: key}))
	chmod(t, key, 0o644)
	found(t, "a key of everybody", check(Flags{NATSNKey: key}), "chmod 600 "+key)
	found(t, "a file that is missing", check(Flags{NATSNKey: key + "x"}), "FATAL --nats-nkey cannot be read")
	if err := os.WriteFile(key+"bad", []byte("SU"), 0o600); err != nil {
		t.Fatal(err)
	}
	found(t, "no key", check(Flags{NATSNKey: key + "bad"}), "FATAL --nats-nkey: read")
	found(t, "a certificate without its key", check(Flags{NATSCert: certificate(t, dir, "alone", time.Hour*24*90).cert}), "FATAL go together")

	good := certificate(t, dir, "good", 90*24*time.Hour)
	found(t, "good for long", check(Flags{NATSCA: good.cert, NATSCert: good.cert, NATSKey: good.key}))
	soon := certificate(t, dir, "soon", 20*24*time.Hour)
	found(t, "soon over", check(Flags{NATSCert: soon.cert, NATSKey: soon.key}), "expires on "+time.Now().UTC().Add(20*24*time.Hour).Format(time.DateOnly))
	past := certificate(t, dir, "past", -time.Hour)
	found(t, "over", check(Flags{NATSCert: past.cert, NATSKey: past.key}), "FATAL --nats-cert "+past.cert+" has expired")
	found(t, "the CA's is over", check(Flags{NATSCA: past.cert}), "FATAL --nats-ca "+past.cert+" has expired")
	found(t, "another one's key", check(Flags{NATSCert: good.cert, NATSKey: soon.key}), "FATAL are no pair")
	found(t, "no certificate", check(Flags{NATSCA: good.key}), "FATAL holds no certificate")
	found(t, "to come", checkCertificate("--nats-ca", good.cert, time.Now().Add(-48*time.Hour)), "FATAL is not valid before")
}

// TestCheckTLS: whom the server is not, and whom it does not take us for.
func TestCheckTLS(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := certificate(t, dir, "server", 90*24*time.Hour), certificate(t, dir, "stranger", 90*24*time.Hour)
	url := serve(t, `tls { cert_file: "`+ours.cert+`", key_file: "`+ours.key+`", ca_file: "`+ours.cert+`", verify: true }`)
	url = strings.Replace(url, "nats://", "tls://", 1)
	check := func(f Flags) []daemon.Finding {
		f.NATSURL = url
		return f.Check(context.Background(), Needs{Role: "producer", Name: "fw-a"})
	}
	found(t, "all is well", check(Flags{NATSCA: ours.cert, NATSCert: ours.cert, NATSKey: ours.key}))
	found(t, "no CA", check(Flags{}), "FATAL --nats-ca must name")
	found(t, "another CA", check(Flags{NATSCA: theirs.cert, NATSCert: ours.cert, NATSKey: ours.key}), "FATAL is not believed")
	found(t, "no certificate", check(Flags{NATSCA: ours.cert}), "FATAL does not accept our certificate")
	found(t, "a stranger's", check(Flags{NATSCA: ours.cert, NATSCert: theirs.cert, NATSKey: theirs.key}), "FATAL does not accept our certificate")
	url = strings.Replace(url, "127.0.0.1", "localhost", 1)
	found(t, "another name", check(Flags{NATSCA: ours.cert, NATSCert: ours.cert, NATSKey: ours.key}), "FATAL has a certificate for another name")
}

func chmod(t *testing.T, file string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(file, mode); err != nil {
		t.Fatal(err)
	}
}

type pair struct{ cert, key string }

// certificate makes one that signs itself and ends after so long.
func certificate(t *testing.T, dir, name string, life time.Duration) pair {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(life), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	p := pair{filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")}
	for file, block := range map[string]*pem.Block{p.cert: {Type: "CERTIFICATE", Bytes: der}, p.key: {Type: "PRIVATE KEY", Bytes: secret}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tls.LoadX509KeyPair(p.cert, p.key); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestOlder(t *testing.T) {
	for v, want := range map[string]bool{"2.10.29": true, "2.11.0": false, "2.15.2": false, "1.99.0": true, "3.0.0": false, "2.9.0-beta.1": true, "mine": false} {
		if older(v, oldestServer) != want {
			t.Errorf("%s is older than %s: %t", v, oldestServer, !want)
		}
	}
}

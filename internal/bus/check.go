package bus

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

// Needs is what a role must be able to do on the bus, for [Flags.Check].
type Needs struct {
	Role, Name string
	Publish    []string // subjects of streams that only receive what the role itself writes
	Subscribe  []string
	Streams    []string // that it reads, or may ask about
	Makes      bool     // it makes streams that are missing, where it may
	Permits    string   // the command that gives this role its permissions
}

const (
	// checkTime is how long a server may take to let us in, and checkAnswer to answer:
	// whoever runs --check waits.
	checkTime   = 2 * time.Second
	checkAnswer = time.Second
	// expiresSoon is when a certificate is worth a word.
	expiresSoon = 30 * 24 * time.Hour
	// oldestServer is what streams and buckets need.
	oldestServer = "2.11"
)

// Check finds out what keeps a role from its bus: files, the way to the server, what
// the server permits, what it keeps. It stores nothing there. A server that cannot be reached is no
// fatal finding: a daemon waits for it.
func (f *Flags) Check(ctx context.Context, n Needs) []daemon.Finding {
	found := f.checkFiles()
	if slices.ContainsFunc(found, func(f daemon.Finding) bool { return f.Fatal }) {
		return found // it could not be let in
	}
	return append(found, f.checkServer(ctx, n)...)
}

// checkFiles looks at what proves who we are.
func (f *Flags) checkFiles() (found []daemon.Finding) {
	for _, secret := range []struct{ flag, path string }{{"--nats-creds", f.NATSCreds}, {"--nats-nkey", f.NATSNKey}, {"--nats-key", f.NATSKey}} {
		found = append(found, CheckSecret(secret.flag, secret.path)...)
	}
	for _, cert := range []struct{ flag, path string }{{"--nats-ca", f.NATSCA}, {"--nats-cert", f.NATSCert}} {
		found = append(found, checkCertificate(cert.flag, cert.path, time.Now())...)
	}
	if slices.ContainsFunc(found, func(f daemon.Finding) bool { return f.Fatal }) {
		return found
	}
	if f.NATSCert != "" && f.NATSKey != "" {
		if _, err := tls.LoadX509KeyPair(f.NATSCert, f.NATSKey); err != nil {
			found = append(found, daemon.Fatal("They are made together: ctfleet auth init, ctfleet auth add-firewall.", "--nats-cert and --nats-key are no pair: %v.", err))
		}
	}
	cfg := Config{Flags: *f}
	if _, _, err := cfg.authOptions(); err != nil {
		found = append(found, daemon.Fatal("It is one of the files that ctfleet auth init and ctfleet auth add-firewall make.", "%v.", err))
	}
	return found
}

// CheckSecret looks at a file that only we may read; "" is none.
func CheckSecret(flag, path string) []daemon.Finding {
	if path == "" {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		remedy := "Copy it there: ctfleet auth init and ctfleet auth add-firewall make one directory for each program."
		if errors.Is(err, os.ErrPermission) {
			remedy = fmt.Sprintf("chown %d %s: this program runs as user %d.", os.Geteuid(), path, os.Geteuid())
		}
		return []daemon.Finding{daemon.Fatal(remedy, "%s cannot be read: %v.", flag, err)}
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return []daemon.Finding{daemon.Fatal("Is its disk in order?", "%s cannot be read: %v.", flag, err)}
	}
	// A group may read it: that is how container engines hand secrets to a user.
	if mode := info.Mode().Perm(); mode&0o027 != 0 {
		return []daemon.Finding{daemon.Note("chmod 600 "+path, "%s %s has mode %04o: others may read or change it.", flag, path, mode)}
	}
	return nil
}

// checkCertificate looks at the certificates of a file.
func checkCertificate(flag, path string, now time.Time) (found []daemon.Finding) {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return []daemon.Finding{daemon.Fatal("Copy it there: ctfleet auth init and ctfleet auth add-firewall make it.", "%s cannot be read: %v.", flag, err)}
	}
	n := 0
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return append(found, daemon.Fatal("Copy it there again.", "%s %s: %v.", flag, path, err))
		}
		const remedy = "ctfleet auth add-firewall NAME --dir DIR --force makes a firewall's anew, ctfleet auth renew --dir DIR those of services; copy it and restart this program."
		day := func(t time.Time) string { return t.UTC().Format(time.DateOnly) }
		switch {
		case now.After(cert.NotAfter):
			found = append(found, daemon.Fatal(remedy, "%s %s has expired on %s.", flag, path, day(cert.NotAfter)))
		case now.Before(cert.NotBefore):
			found = append(found, daemon.Fatal("Is the clock of this host right?", "%s %s is not valid before %s.", flag, path, cert.NotBefore.UTC().Format(time.DateTime)))
		case cert.NotAfter.Sub(now) < expiresSoon:
			found = append(found, daemon.Note(remedy, "%s %s expires on %s.", flag, path, day(cert.NotAfter)))
		}
	}
	if n == 0 {
		return append(found, daemon.Fatal("It begins with -----BEGIN CERTIFICATE-----.", "%s %s holds no certificate.", flag, path))
	}
	return found
}

// checkServer connects, and asks.
func (f *Flags) checkServer(ctx context.Context, n Needs) []daemon.Finding {
	cfg := Config{Flags: *f, Role: n.Role, Name: n.Name}
	opts, key, err := cfg.authOptions()
	if err != nil {
		return []daemon.Finding{daemon.Fatal("See --help.", "%v.", err)}
	}
	denied := &refusals{}
	opts = append(opts, nats.Name("ctfleet "+n.Role+" --check"), nats.Timeout(checkTime), nats.MaxReconnects(0), nats.CustomInboxPrefix(inboxPrefix(n.Role, cmp.Or(key, n.Name))),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied.add(err) }))
	nc, err := nats.Connect(f.NATSURL, opts...)
	if err != nil {
		return []daemon.Finding{f.whyNot(err)}
	}
	defer nc.Close()
	var found []daemon.Finding
	if v := nc.ConnectedServerVersion(); older(v, oldestServer) {
		found = append(found, daemon.Fatal("Upgrade it.", "NATS at %s is version %.20q, at least %s is needed.", f.Servers(), v, oldestServer))
	}
	found = append(found, checkStreams(ctx, nc, &n, denied)...)
	return append(found, checkPermissions(nc, &n, denied)...)
}

// whyNot says what to do about a server that does not let us in.
func (f *Flags) whyNot(err error) daemon.Finding {
	at := "NATS at " + f.Servers()
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var invalid x509.CertificateInvalidError
	text := err.Error()
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		who := "--nats-nkey or --nats-creds"
		if f.NATSNKey != "" {
			who = "--nats-nkey " + f.NATSNKey
		} else if f.NATSCreds != "" {
			who = "--nats-creds " + f.NATSCreds
		}
		return daemon.Fatal(fmt.Sprintf("%s must be a user's whom the server knows: ctfleet auth add-firewall NAME --dir DIR --nats-url URL, or ctfleet auth reload where it has read its config too early.", who),
			"%s refuses us: %v.", at, err)
	case errors.As(err, &unknown):
		return daemon.Fatal("--nats-ca must name the CA that has signed its certificate: ca.pem beside this program's key.", "%s is not believed: %v.", at, err)
	case errors.As(err, &host):
		return daemon.Fatal("--nats-url must use one of the names in its certificate: ctfleet auth renew --dir DIR --host NAME adds one.", "%s has a certificate for another name: %v.", at, err)
	case errors.As(err, &invalid):
		return daemon.Fatal("ctfleet auth renew --dir DIR makes the server's anew; is the clock of this host right?", "%s has a certificate that is not valid: %v.", at, err)
	case errors.Is(err, nats.ErrSecureConnRequired), errors.Is(err, nats.ErrSecureConnWanted):
		return daemon.Fatal("--nats-url begins with tls:// where the server has TLS, and with nats:// and without --nats-ca where it has none.", "%s: %v.", at, err)
	case strings.Contains(text, "remote error: tls") || strings.Contains(text, "certificate required") || strings.Contains(text, "after TLS handshake"):
		// In TLS 1.3 a server that does not like our certificate says so, or hangs up, when we believe to be in.
		return daemon.Fatal("--nats-cert and --nats-key must name a certificate of the server's CA.", "%s does not accept our certificate: %v.", at, err)
	case errors.Is(err, syscall.EACCES):
		return daemon.Fatal("Is this program kept from the network?", "%s: %v.", at, err)
	}
	return daemon.Note("Is it running, and --nats-url right? This program waits for it, and tries again.", "%s cannot be reached: %v.", at, err)
}

// refusals are what the server says we may not do.
type refusals struct {
	mu   sync.Mutex
	list []string
}

func (d *refusals) add(err error) {
	if err == nil || !errors.Is(err, nats.ErrPermissionViolation) {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.list = append(d.list, printable(err.Error()))
}

// about reports whether we may not use a subject.
func (d *refusals) about(subject string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(d.list, func(s string) bool { return strings.Contains(s, `"`+subject+`"`) })
}

// checkStreams asks for the streams that a role reads. What it may not ask about it
// may still read.
func checkStreams(ctx context.Context, nc *nats.Conn, n *Needs, denied *refusals) []daemon.Finding {
	js, err := jetstream.New(nc)
	if err != nil {
		return []daemon.Finding{daemon.Fatal("Report this.", "JetStream: %v.", err)}
	}
	// At once: what we may not ask about is never answered.
	errs := make([]error, len(n.Streams))
	ctx, cancel := context.WithTimeout(ctx, checkAnswer)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range n.Streams {
		wg.Go(func() { _, errs[i] = js.Stream(ctx, name) })
	}
	wg.Wait()
	var missing []string
	for i, name := range n.Streams {
		switch err := errs[i]; {
		case err == nil:
		case errors.Is(err, jetstream.ErrStreamNotFound):
			missing = append(missing, name)
		case errors.Is(err, jetstream.ErrJetStreamNotEnabled), errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.Is(err, nats.ErrNoResponders):
			return []daemon.Finding{daemon.Fatal("Its config needs jetstream {}, also for the account: ctfleet auth init DIR writes one.", "NATS keeps nothing: JetStream is not enabled.")}
		case denied.about("$JS.API.STREAM.INFO." + name):
			// Whether it is there shows in what comes of publishing to it.
		default:
			return []daemon.Finding{daemon.Note("Is the server overloaded, or without a leader?", "NATS does not tell about stream %s: %v.", name, err)}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	const remedy = "ctfleet bootstrap --nats-url URL creates them."
	if n.Makes {
		return []daemon.Finding{daemon.Note("This program creates them, if it may; otherwise "+remedy, "NATS lacks %s.", strings.Join(missing, ", "))}
	}
	return []daemon.Finding{daemon.Fatal(remedy, "NATS lacks %s.", strings.Join(missing, ", "))}
}

// checkPermissions tries what a role does. To publish it says that the message is meant
// for a stream that does not exist, so that no stream keeps it.
func checkPermissions(nc *nats.Conn, n *Needs, denied *refusals) (found []daemon.Finding) {
	inbox := nc.NewInbox()
	answers, err := nc.SubscribeSync(inbox + ".*")
	if err != nil {
		return []daemon.Finding{daemon.Note("Try again.", "NATS: %v.", err)}
	}
	for _, subject := range n.Subscribe {
		if _, err := nc.SubscribeSync(subject); err != nil {
			return []daemon.Finding{daemon.Note("Try again.", "NATS: subscribe to %s: %v.", subject, err)}
		}
	}
	for _, subject := range n.Publish {
		m := &nats.Msg{Subject: subject, Reply: inbox + ".1", Header: nats.Header{jetstream.ExpectedStreamHeader: {"ctfleet-check"}}}
		if err := nc.PublishMsg(m); err != nil {
			return []daemon.Finding{daemon.Note("Try again.", "NATS: publish to %s: %v.", subject, err)}
		}
	}
	// The server answers in order: what it objects to comes before.
	if err := nc.FlushTimeout(checkAnswer); err != nil {
		return []daemon.Finding{daemon.Note("Is the server overloaded?", "NATS does not answer: %v.", err)}
	}
	time.Sleep(20 * time.Millisecond) // the client tells of errors by another goroutine
	for waiting, _, err := answers.Pending(); err == nil && waiting > 0; waiting-- {
		if _, err := answers.NextMsg(checkAnswer); errors.Is(err, nats.ErrNoResponders) && !n.Makes {
			found = append(found, daemon.Fatal("ctfleet bootstrap --nats-url URL creates the streams.", "Nothing in NATS keeps what we publish."))
			break
		}
	}
	deny := func(what string, subjects []string) {
		subjects = slices.DeleteFunc(slices.Clone(subjects), func(s string) bool { return !denied.about(s) })
		if len(subjects) > 0 {
			found = append(found, daemon.Fatal(n.Permits, "NATS does not permit us to %s %s: is this another program's key?", what, strings.Join(subjects, ", ")))
		}
	}
	deny("subscribe to", append([]string{inbox + ".*"}, n.Subscribe...))
	deny("publish to", n.Publish)
	return found
}

// older reports whether a server's version is before one of two numbers.
func older(v, than string) bool {
	var major, minor, wantMajor, wantMinor int
	if _, err := fmt.Sscanf(v, "%d.%d", &major, &minor); err != nil {
		return false // a build of its own
	}
	if _, err := fmt.Sscanf(than, "%d.%d", &wantMajor, &wantMinor); err != nil {
		return false
	}
	return major < wantMajor || major == wantMajor && minor < wantMinor
}

// Package embedded is a NATS server inside this process: for `ctfleet up`, for the
// demo, for `aggregator --embedded-nats`, and for tests. It is apart from package bus so
// that a program which only talks to servers, the producer above all, does not carry one.
package embedded

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// Config describes a server.
type Config struct {
	Listen   string       // host:port on loopback; "" = in-process only; port 0 = a free one
	Listener net.Listener // instead of Listen: serve clients that connect here (a socket inherited from another namespace)
	Dir      string       // where streams are kept; "" = a temporary directory, removed on Close
	Open     bool         // no credentials: for tests, and the demo, whose listener is its own
	File     string       // instead of all of the above: the configuration of a server as it is deployed, to test it
	Log      *slog.Logger
}

// Server is a NATS server inside this process.
type Server struct {
	mu   sync.Mutex
	srv  *server.Server // the one that runs, or ran last
	opts *server.Options

	log        *slog.Logger
	user, pass string
	addr       string
	dir        string
	temporary  bool
	listener   net.Listener
}

// Start starts a server with JetStream. Unless Open, it makes random
// credentials that [Server.URL] contains.
func Start(cfg Config) (*Server, error) {
	if cfg.File != "" {
		return startFile(cfg)
	}
	s := &Server{user: "ctfleet", pass: rand.Text(), dir: cfg.Dir, listener: cfg.Listener}
	if s.dir == "" {
		dir, err := os.MkdirTemp("", "ctfleet-nats-")
		if err != nil {
			return nil, fmt.Errorf("embedded NATS: %w", err)
		}
		s.dir, s.temporary = dir, true
	}
	opts := &server.Options{
		ServerName: "ctfleet-embedded",
		JetStream:  true,
		StoreDir:   s.dir,
		NoSigs:     true,
		NoLog:      true,
		DontListen: true,
		// Alerts and audit survive a power cut; events and snapshots opt out.
		SyncAlways: true,
		// A lab or one firewall, not a data centre: keep what is stored small.
		JetStreamMaxMemory: 1 << 30,
		JetStreamMaxStore:  8 << 30,
	}
	if !cfg.Open {
		opts.Username, opts.Password = s.user, s.pass
	}
	if cfg.Listen != "" {
		host, port, err := splitHostPort(cfg.Listen)
		if err != nil {
			s.removeStore()
			return nil, fmt.Errorf("embedded NATS: listen on %q: %w", cfg.Listen, err)
		}
		opts.Host, opts.Port, opts.DontListen = host, port, false
	}
	s.opts, s.log = opts, cfg.Log
	if err := s.Start(); err != nil {
		s.removeStore()
		return nil, err
	}
	switch {
	case s.listener != nil:
		s.addr = s.listener.Addr().String()
		go s.relay()
	case cfg.Listen != "":
		s.addr = s.running().Addr().String()
	}
	return s, nil
}

// startFile starts a server as its configuration file says. Who connects proves himself as
// that demands: there are no credentials of ours.
func startFile(cfg Config) (*Server, error) {
	opts, err := server.ProcessConfigFile(cfg.File)
	if err != nil {
		return nil, fmt.Errorf("embedded NATS: %w", err)
	}
	opts.NoSigs, opts.NoLog = true, true
	s := &Server{opts: opts, log: cfg.Log}
	if err := s.Start(); err != nil {
		return nil, err
	}
	s.addr = s.running().Addr().String()
	return s, nil
}

func (s *Server) running() *server.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.srv
}

// Start starts a server again that was stopped, on the same port and store.
// Start and Stop are for one goroutine.
func (s *Server) Start() error {
	if err := s.probe(); err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	srv, err := server.NewServer(s.opts)
	if err != nil {
		return fmt.Errorf("embedded NATS: %w", err)
	}
	if s.log != nil {
		srv.SetLoggerV2(serverLog{s.log}, false, false, false)
	}
	srv.Start()
	switch {
	case !srv.ReadyForConnections(10 * time.Second):
		err = fmt.Errorf("not ready within 10 s (listen on %s:%d)", s.opts.Host, s.opts.Port)
	case !srv.JetStreamEnabled():
		err = errors.New("JetStream did not start")
	}
	if err != nil {
		srv.Shutdown()
		return fmt.Errorf("embedded NATS: %w", err)
	}
	if tcp, ok := srv.Addr().(*net.TCPAddr); ok {
		s.opts.Port = tcp.Port // a free one was chosen: keep it
	}
	s.mu.Lock()
	s.srv = srv
	s.mu.Unlock()
	return nil
}

// probe finds out at once, and why, when the port cannot be had: the server only
// would not become ready.
func (s *Server) probe() error {
	if s.opts.DontListen || s.opts.Port == server.RANDOM_PORT {
		return nil
	}
	l, err := net.Listen("tcp", net.JoinHostPort(s.opts.Host, strconv.Itoa(s.opts.Port)))
	if err != nil {
		return err // names the address
	}
	return l.Close()
}

// InProcessConn connects a client inside this process to the server that runs
// now; it is what nats.InProcessServer wants.
func (s *Server) InProcessConn() (net.Conn, error) {
	return s.running().InProcessConn()
}

// Stop stops the server and keeps its store.
func (s *Server) Stop() {
	srv := s.running()
	srv.Shutdown()
	srv.WaitForShutdown()
}

// URL is how clients outside this process connect, credentials included; show
// it only to the person who started the server.
func (s *Server) URL() string {
	u := url.URL{Scheme: "nats", Host: s.addr}
	if s.opts.TLSConfig != nil {
		u.Scheme = "tls"
	}
	if s.addr != "" && s.user != "" {
		u.User = url.UserPassword(s.user, s.pass)
	}
	return u.String()
}

// WriteURL writes the URL into a file in dir, for whoever may read that, and returns
// the file's path.
func (s *Server) WriteURL(dir string) (path string, err error) {
	path = filepath.Join(dir, "url")
	if err := os.WriteFile(path, []byte(s.URL()+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write the server's URL: %w", err)
	}
	return path, nil
}

// Addr is the address it listens on, "" when in-process only.
func (s *Server) Addr() string { return s.addr }

// Credentials are what a client inside this process connects with.
func (s *Server) Credentials() (user, password string) { return s.user, s.pass }

// Close stops the server and waits until it has.
func (s *Server) Close() {
	if s.listener != nil {
		s.listener.Close()
	}
	s.Stop()
	s.removeStore()
}

func (s *Server) removeStore() {
	if s.temporary {
		_ = os.RemoveAll(s.dir) // in the temporary directory: what is left there is not ours to report
	}
}

// relayPause is between two attempts to accept after one that failed.
const relayPause = 100 * time.Millisecond

// relay joins each client on the listener to an in-process connection. The
// server cannot be given a listener, and a lab in a network namespace of its
// own is reachable from the host only through one opened before.
func (s *Server) relay() {
	for {
		client, err := s.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(relayPause) // out of descriptors, say: it passes
			continue
		}
		inside, err := s.InProcessConn()
		if err != nil {
			client.Close()
			continue
		}
		pipe := func(dst, src net.Conn) {
			_, _ = io.Copy(dst, src) // either end may go away at any time
			dst.Close()
			src.Close()
		}
		go pipe(inside, client)
		go pipe(client, inside)
	}
}

func splitHostPort(addr string) (string, int, error) {
	tcp, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return "", 0, err
	}
	port := tcp.Port
	if port == 0 {
		port = server.RANDOM_PORT
	}
	host := "0.0.0.0"
	if tcp.IP != nil {
		host = tcp.IP.String()
	}
	return host, port, nil
}

// serverLog passes what the server says to our log.
type serverLog struct{ log *slog.Logger }

func (l serverLog) Noticef(f string, v ...any) { l.log.Debug("nats: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Warnf(f string, v ...any)   { l.log.Warn("nats: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Fatalf(f string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Errorf(f string, v ...any)  { l.log.Error("nats: " + fmt.Sprintf(f, v...)) }
func (l serverLog) Debugf(string, ...any)      {}
func (l serverLog) Tracef(string, ...any)      {}

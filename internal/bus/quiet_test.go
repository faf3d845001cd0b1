package bus

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// quietPair is a quiet connection and its peer.
func quietPair(t *testing.T) (*quietConn, *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := newQuietDialer().Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	peer, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { peer.Close() })
	return conn.(*quietConn), peer.(*net.TCPConn)
}

// TestQuietConnCarriesAll writes more than all buffers hold to a peer that reads
// late: writes are partial, wait and go on, and so do reads.
func TestQuietConnCarriesAll(t *testing.T) {
	conn, peer := quietPair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- errors.Join(err, conn.CloseWrite())
	}()
	time.Sleep(50 * time.Millisecond) // until the buffers are full
	h := sha256.New()
	if n, err := io.Copy(h, peer); err != nil || n != int64(len(sent)) || !bytes.Equal(h.Sum(nil), sum(sent)) {
		t.Errorf("%d of %d bytes came, %v", n, len(sent), err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
	go func() {
		_, err := peer.Write(sent)
		wrote <- errors.Join(err, peer.CloseWrite())
	}()
	h.Reset()
	if n, err := io.Copy(h, conn); err != nil || n != int64(len(sent)) || !bytes.Equal(h.Sum(nil), sum(sent)) { // to its end, which is io.EOF
		t.Errorf("%d of %d bytes came back, %v", n, len(sent), err)
	}
	if err := <-wrote; err != nil {
		t.Error(err)
	}
}

func sum(b []byte) []byte { s := sha256.Sum256(b); return s[:] }

// TestQuietConnGivesUp: a peer that takes nothing is given up at the deadline,
// and the connection with it.
func TestQuietConnGivesUp(t *testing.T) {
	for name, set := range map[string]func(*quietConn, time.Time) error{"write": (*quietConn).SetWriteDeadline, "both": (*quietConn).SetDeadline} {
		conn, _ := quietPair(t)
		if err := set(conn, time.Now().Add(50*time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if n, err := conn.Write(make([]byte, 64<<20)); n == 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s deadline: %d bytes written, %v", name, n, err)
		}
		if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s deadline: the connection is still open: %v", name, err)
		}
	}
}

// TestQuietConnEnds: Close ends a read and a write that wait, and a peer that is
// gone is an error.
func TestQuietConnEnds(t *testing.T) {
	conn, _ := quietPair(t)
	ended := make(chan error, 2)
	go func() { _, err := conn.Read(make([]byte, 1)); ended <- err }()
	go func() { _, err := conn.Write(make([]byte, 64<<20)); ended <- err }()
	time.Sleep(20 * time.Millisecond)
	conn.Close()
	for range 2 {
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
	conn, peer := quietPair(t)
	if err := peer.SetLinger(0); err != nil {
		t.Fatal(err)
	}
	peer.Close() // a reset
	if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("read after a reset: %v", err)
	}
	if _, err := conn.Write([]byte("x")); err == nil {
		t.Error("a write after a reset went well")
	}
}

// TestQuietConnBeneathTLS: TLS reads and writes through it as through any other.
func TestQuietConnBeneathTLS(t *testing.T) {
	web := httptest.NewTLSServer(nil) // for its certificate
	defer web.Close()
	conn, peer := quietPair(t)
	pool := x509.NewCertPool()
	pool.AddCert(web.Certificate())
	client := tls.Client(conn, &tls.Config{RootCAs: pool, ServerName: "example.com"})
	server := tls.Server(peer, web.TLS)
	deadline := time.Now().Add(30 * time.Second)
	if err := errors.Join(client.SetDeadline(deadline), server.SetDeadline(deadline)); err != nil {
		t.Fatal(err)
	}
	echoed := make(chan error, 1)
	go func() {
		_, err := io.Copy(server, server)
		echoed <- errors.Join(err, server.CloseWrite())
	}()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	wrote := make(chan error, 1)
	go func() {
		_, err := client.Write(sent)
		wrote <- errors.Join(err, client.CloseWrite())
	}()
	if got, err := io.ReadAll(client); err != nil || !bytes.Equal(got, sent) {
		t.Errorf("%d of %d bytes came back, %v", len(got), len(sent), err)
	}
	if err := errors.Join(<-wrote, <-echoed); err != nil {
		t.Error(err)
	}
}

// TestDirectGivesUp: a server that takes nothing more is noticed within seconds,
// by a connection that is free for everybody again then.
func TestDirectGivesUp(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &holder{Listener: l}
	s := startServer(t, embedded.Config{Listener: line, Dir: t.TempDir()})
	c := connect(t, Config{Flags: Flags{NATSURL: s.URL()}, Direct: true})
	line.deaf.Store(true)
	defer line.deaf.Store(false)
	begin := time.Now()
	for data := make([]byte, events.MaxBatchBytes); err == nil; {
		err = c.NC.Publish(events.EventsSubject("fw-a"), data)
	}
	if took := time.Since(begin); !errors.Is(err, os.ErrDeadlineExceeded) || took > 4*writeTimeout {
		t.Errorf("after %s: %v", took.Round(time.Millisecond), err)
	}
	until(t, "the connection to be known as broken", func() bool { return c.Connected() != nil })
	line.deaf.Store(false)
	until(t, "the connection to be made again", func() bool { return c.Connected() == nil })
}

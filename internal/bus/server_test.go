package bus

import (
	"net"
	"os"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"
)

func TestServerKeepsPortAndStore(t *testing.T) {
	s := startServer(t, embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	url := s.URL()
	if err := reachable(t, url); err != nil {
		t.Fatal(err)
	}
	if err := reachable(t, "nats://"+s.Addr()); err == nil {
		t.Error("the server let in somebody without credentials")
	}
	c := connect(t, Config{Server: s})
	if _, err := c.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	s.Stop()
	if err := reachable(t, url); err == nil {
		t.Error("a stopped server answers")
	}
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if s.URL() != url {
		t.Errorf("the URL changed from %s to %s", url, s.URL())
	}
	if err := c.WaitConnected(t.Context()); err != nil {
		t.Fatal(err)
	}
	missing, err := c.Missing(t.Context())
	if err != nil || len(missing) > 0 {
		t.Errorf("after a restart %v are missing (%v): who may not create streams could do nothing", missing, err)
	}
}

func TestServerWithoutListener(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	s := startServer(t, embedded.Config{})
	if s.Addr() != "" || strings.Contains(s.URL(), "@") {
		t.Errorf("a server inside the process has address %q and URL %s", s.Addr(), s.URL())
	}
	if err := connect(t, Config{Server: s}).NC.Flush(); err != nil {
		t.Error(err)
	}
	if made, _ := os.ReadDir(temp); len(made) != 1 {
		t.Errorf("its store is not in the temporary directory: %v", made)
	}
	s.Close()
	if left, _ := os.ReadDir(temp); len(left) != 0 {
		t.Errorf("its temporary store is left: %v", left)
	}
}

func TestServerErrors(t *testing.T) {
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	f := func(listen string) {
		t.Helper()
		s, err := embedded.Start(embedded.Config{Listen: listen})
		if err == nil {
			s.Close()
			t.Fatalf("%s: started", listen)
		}
		if !strings.Contains(err.Error(), listen) {
			t.Errorf("%q does not name %s", err, listen)
		}
		if left, _ := os.ReadDir(temp); len(left) != 0 {
			t.Errorf("%s: %s is left behind", listen, left[0].Name())
		}
	}
	f("127.0.0.1:port")
	f(busy.Addr().String())
}

// TestListenerRelay serves clients of a listener that was opened elsewhere, and
// again after the server was restarted.
func TestListenerRelay(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := startServer(t, embedded.Config{Listener: l, Dir: t.TempDir()})
	if s.Addr() != l.Addr().String() {
		t.Errorf("its address is %s, the listener's %s", s.Addr(), l.Addr())
	}
	for range 2 {
		if err := reachable(t, s.URL()); err != nil {
			t.Fatal(err)
		}
		if err := reachable(t, "nats://"+s.Addr()); err == nil {
			t.Error("the relay let in somebody without credentials")
		}
		s.Stop()
		if err := reachable(t, s.URL()); err == nil {
			t.Error("a stopped server answers")
		}
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	if c, err := net.Dial("tcp", s.Addr()); err == nil {
		c.Close()
		t.Error("the listener is still open after Close")
	}
}

//go:build linux

package producer

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// session opens a TCP connection from an address of the client's side to a port of
// the firewall itself, as an operator who logs in. Both ends are returned.
func (r *rig) session(client string, port uint16) (operator, server net.Conn) {
	r.t.Helper()
	at := netip.AddrPortFrom(r.fw.Addrs[0], port)
	var config net.ListenConfig
	config.SetMultipathTCP(false) // as an SSH server does
	var l net.Listener
	err := r.fw.NS.Do(func() (err error) {
		l, err = config.Listen(r.t.Context(), "tcp", at.String())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer l.Close()
	d := net.Dialer{Timeout: 10 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(client), 0))}
	err = r.fw.Client.Do(func() (err error) {
		operator, err = d.DialContext(context.Background(), "tcp", at.String())
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { operator.Close() })
	if server, err = l.Accept(); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { server.Close() })
	return operator, server
}

// TestSSHSessions: who is connected to the firewall's SSH port is not flushed, from
// the first moment of the session to its end and no longer. The list of what to
// protect is made anew every 10 s, this test is over before.
func TestSSHSessions(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true, SSHPort: []uint16{22, 2222}})
	const each = 20
	for _, source := range []string{"198.18.0.9/32", "198.18.0.10/32", "198.18.0.11/32", "198.18.0.12/32"} {
		r.flood(udp4(source, 0, each))
	}
	r.until("all flows", func() bool { return r.new == 4*each })
	flushed := func(id string, deleted uint64, addresses ...string) {
		t.Helper()
		if rec := r.flush(events.Command{ID: id, Addresses: addresses}); rec.Error != "" || rec.Deleted != deleted || len(rec.Refused) != 0 {
			t.Errorf("%s: %+v, want %d deleted", id, rec, deleted)
		}
	}
	refused := func(id string, by, address string) {
		t.Helper()
		rec := r.flush(events.Command{ID: id, By: by, Addresses: []string{address}})
		if rec.Deleted != 0 || len(rec.Refused) != 1 || rec.Refused[0].Reason != guard.Protected || !strings.Contains(rec.Error, "SSH session") {
			t.Errorf("%s: %+v, want it refused as an SSH session", id, rec)
		}
	}
	operator, server := r.session("198.18.0.9", 22)
	r.session("198.18.0.10", 2222)
	r.session("198.18.0.11", 80) // is none
	refused("by source", events.BySrc, "198.18.0.9")
	refused("by either side", events.ByEither, "198.18.0.9")
	refused("as an IPv4-mapped address", events.BySrc, "::ffff:198.18.0.9")
	refused("the second port", events.BySrc, "198.18.0.10")
	flushed("another port", each+1, "198.18.0.11")
	// Around them: their own entries are kept, the sessions' too.
	rec := r.flush(events.Command{ID: "around", Addresses: []string{"198.18.0.8/29"}})
	if rec.Deleted != each || len(rec.Refused) != 1 || rec.Refused[0] != (events.Refusal{Reason: guard.Protected, Count: 2 * (each + 1)}) {
		t.Errorf("a prefix around two sessions: %+v", rec)
	}
	if _, err := operator.Write([]byte("still here\n")); err != nil {
		t.Errorf("the session broke: %v", err)
	}

	operator.Close()
	server.Close()
	r.until("the end of the session", func() bool {
		peers, err := host.Peers(r.fw.NS, 22)
		return err == nil && len(peers) == 0
	})
	flushed("after the session", each+1, "198.18.0.9")
	refused("the other one goes on", events.BySrc, "198.18.0.10")
}

// TestSSHPortNone: with port 0 nobody is asked for.
func TestSSHPortNone(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true, SSHPort: []uint16{0}})
	r.session("198.18.0.9", 22)
	if rec := r.flush(events.Command{ID: "a", Addresses: []string{"198.18.0.9"}}); rec.Deleted != 1 || rec.Error != "" {
		t.Errorf("%+v, want the session's entry deleted", rec)
	}
}

// TestNothingIsDeletedBeforeTheSessionsAreKnown: nor is it when nobody can tell, or
// when they are all that is known.
func TestNothingIsDeletedBeforeTheSessionsAreKnown(t *testing.T) {
	closed, err := host.CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	c := &events.Command{
		ID: "a", Verb: events.VerbFlush, Firewall: "fw-a", Boot: "b", Actor: events.ActorOperator, By: events.BySrc,
		Addresses: []string{"198.18.0.9"}, Expires: conntrack.Monotonic() + int64(10*time.Second),
	}
	everybody, err := seal.OpenTrust(seal.TrustNone)
	if err != nil {
		t.Fatal(err)
	}
	p := &Producer{opt: Options{Name: "fw-a", AllowFlush: true, SSHPort: []uint16{22}}}
	f := func(what string, own []allowlist.Entry, ns *host.Namespace, text string) {
		t.Helper()
		p.guard = guard.New(guard.Config{Firewall: "fw-a", Boot: "b", AllowFlush: true, Trust: everybody})
		p.own, p.ns = own, ns
		r, _ := p.flush(bus.Request{}, c)
		if len(r.Refused) != 1 || r.Refused[0].Reason != guard.NotReady || !strings.Contains(r.Error, text) {
			t.Errorf("%s: %+v", what, r)
		}
	}
	f("the host is not known", nil, nil, "not known yet")
	f("the sessions cannot be listed", []allowlist.Entry{}, closed, "list TCP connections")
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

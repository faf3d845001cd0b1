//go:build linux

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestPeers lists who is connected to which port of a namespace that has its
// clients' addresses, too: the other ends of the connections are in the same
// table, and must not be taken for more of them.
func TestPeers(t *testing.T) {
	ns := newNamespace(t)
	err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		for _, s := range []string{"192.0.2.1/32", "198.18.0.9/32", "198.18.0.10/32", "2001:db8::1/128", "2001:db8:18::9/128"} {
			addr, err := netlink.ParseAddr(s)
			if err != nil {
				return err
			}
			addr.Flags = unix.IFA_F_NODAD // usable at once
			if err := netlink.AddrAdd(lo, addr); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	listen := func(network, at string) {
		t.Helper()
		var config net.ListenConfig
		config.SetMultipathTCP(false) // as an SSH server does
		err := ns.Do(func() error {
			l, err := config.Listen(t.Context(), network, at)
			if err == nil {
				t.Cleanup(func() { l.Close() })
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	connect := func(client, server string) net.Conn {
		t.Helper()
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(client), 0))}
		var conn net.Conn
		dial := func() (err error) {
			conn, err = d.DialContext(context.Background(), "tcp", server)
			return err
		}
		// The kernel makes the routes to new IPv6 addresses a moment later.
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			err := ns.Do(dial)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	f := func(what string, ports []uint16, want ...string) {
		t.Helper()
		var got []string
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			peers, err := Peers(ns, ports...)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			got = nil
			for _, p := range peers {
				got = append(got, p.String())
			}
			// The server's end is established a moment after the client's.
			if slices.Equal(got, want) || time.Now().After(deadline) {
				break
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	listen("tcp", "[::]:22") // both families
	listen("tcp4", "192.0.2.1:2222")
	listen("tcp", "[::]:80")
	f("listening sockets alone", []uint16{22, 2222, 80})

	mapped := connect("198.18.0.9", "192.0.2.1:22")
	connect("198.18.0.9", "192.0.2.1:22")
	last := connect("2001:db8:18::9", "[2001:db8::1]:22")
	connect("198.18.0.10", "192.0.2.1:2222")
	connect("198.18.0.10", "192.0.2.1:80")
	connect("127.0.0.1", "127.0.0.1:22")
	connect("127.0.0.2", "127.0.0.1:22")
	connect("::1", "[::1]:22")
	f("one port", []uint16{22}, "198.18.0.9", "2001:db8:18::9")
	f("another one", []uint16{2222}, "198.18.0.10")
	f("both", []uint16{2222, 22, 22}, "198.18.0.9", "198.18.0.10", "2001:db8:18::9")
	f("a port that nobody serves", []uint16{443})
	f("no port", nil)
	f("port 0", []uint16{0})
	mapped.Close()
	last.Close()
	f("two have left", []uint16{22}, "198.18.0.9")

	closed := newNamespace(t)
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Peers(closed, 22); err == nil || !strings.Contains(err.Error(), "list TCP connections") {
		t.Errorf("a closed namespace: %v", err)
	}
}

// TestPeersOfMany: more than one datagram of the kernel holds.
func TestPeersOfMany(t *testing.T) {
	ns := newNamespace(t)
	const n = 600
	var conns []net.Conn
	err := ns.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		clients, err := netlink.ParseAddr("198.18.0.0/15") // to a loopback link all of it is local
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetUp(lo), netlink.AddrAdd(lo, clients)); err != nil {
			return err
		}
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		l, err := config.Listen(t.Context(), "tcp", "198.18.0.1:22")
		if err != nil {
			return err
		}
		t.Cleanup(func() { l.Close() })
		for i := range n {
			d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(198, 18, byte(1+i/200), byte(1+i%200))}}
			conn, err := d.DialContext(t.Context(), "tcp", "198.18.0.1:22")
			if err != nil {
				return err
			}
			conns = append(conns, conn)
			served, err := l.Accept()
			if err != nil {
				return err
			}
			conns = append(conns, served)
		}
		return nil
	})
	for _, c := range conns {
		defer c.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	if peers, err := Peers(ns, 22); err != nil || len(peers) != n {
		t.Errorf("%d peers of %d (%v)", len(peers), n, err)
	}
}

func FuzzPeerOf(f *testing.F) {
	v4 := make([]byte, diagMessage)
	v4[0], v4[1], v4[diagMessagePort+1] = 2, established, 22
	copy(v4[diagMessagePeer:], []byte{198, 18, 0, 9})
	v6 := bytes.Clone(v4)
	v6[0] = 10
	copy(v6[diagMessagePeer:], []byte{10: 0xff, 11: 0xff, 12: 198, 18, 0, 9})
	f.Add(v4)
	f.Add(v6)
	f.Fuzz(func(t *testing.T, msg []byte) {
		a, ok := peerOf(msg, 22)
		if ok && (!a.IsValid() || a.Is4In6() || a.IsLoopback()) {
			t.Fatalf("%x: %v", msg, a)
		}
	})
}

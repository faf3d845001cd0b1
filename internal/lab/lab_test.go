//go:build linux

package lab_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

func dump(t testing.TB, fw *lab.Firewall) []conntrack.Flow {
	t.Helper()
	c, err := conntrack.Dial(&netlink.Config{NetNS: fw.NS.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	flows, err := c.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

// exchange sends a line over TCP from an address of the client side to dial, which
// a server at listen sends back. It returns whom the server saw.
func exchange(t *testing.T, fw *lab.Firewall, client, dial, listen string) netip.AddrPort {
	t.Helper()
	var l net.Listener
	err := fw.Server.Do(func() (err error) {
		l, err = net.Listen("tcp", listen)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	peers := make(chan net.Addr, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
		peers <- conn.RemoteAddr()
	}()
	var conn net.Conn
	err = fw.Client.Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}, Timeout: 5 * time.Second}
		conn, err = d.Dial("tcp", dial)
		return err
	})
	if err != nil {
		t.Fatalf("%s to %s through %s: %v", client, dial, fw.Name, err)
	}
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "hello"); err != nil {
		t.Fatal(err)
	}
	echo := make([]byte, 5)
	if _, err := io.ReadFull(conn, echo); err != nil || string(echo) != "hello" {
		t.Fatalf("%s to %s through %s: %q came back, %v", client, dial, fw.Name, echo, err)
	}
	_ = conn.Close()
	return (<-peers).(*net.TCPAddr).AddrPort()
}

func TestOneClientThroughTwoFirewalls(t *testing.T) {
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", IPv6: true}, {Name: "fw-b", IPv6: true}}})
	for _, fw := range l.Firewalls() {
		for _, c := range []struct{ client, server string }{
			{"198.18.7.7", "203.0.113.9:80"},
			{"2001:db8:18::7", "[2001:db8:113::9]:80"},
		} {
			if seen := exchange(t, fw, c.client, c.server, c.server); seen.Addr() != netip.MustParseAddr(c.client) {
				t.Errorf("%s: server saw %s, want %s", fw.Name, seen, c.client)
			}
		}
		if flows := dump(t, fw); len(flows) != 2 {
			t.Errorf("%s: %d entries, want exactly the two connections: %v", fw.Name, len(flows), flows)
		}
	}
}

func TestMasquerade(t *testing.T) {
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", IPv6: true, Masquerade: true}}})
	fw := l.Firewall("fw-a")
	for _, c := range []struct{ client, server string }{
		{"198.18.7.7", "203.0.113.9:80"},
		{"2001:db8:18::7", "[2001:db8:113::9]:80"},
	} {
		seen := exchange(t, fw, c.client, c.server, c.server)
		if !slices.Contains(fw.Addrs, seen.Addr()) {
			t.Errorf("server saw %s, want an address of the firewall, %v", seen, fw.Addrs)
		}
		flow := find(t, fw, c.client)
		if got := flow.TupleReply.IP.DestinationAddress; got != seen.Addr() {
			t.Errorf("reply tuple of the entry goes to %s, want %s", got, seen.Addr())
		}
		if got := flow.TupleReply.IP.SourceAddress; got != flow.TupleOrig.IP.DestinationAddress {
			t.Errorf("reply tuple of the entry comes from %s, want %s", got, flow.TupleOrig.IP.DestinationAddress)
		}
	}
}

func TestDNAT(t *testing.T) {
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", IPv6: true, DNAT: []lab.DNAT{
		{Protocol: unix.IPPROTO_TCP, From: netip.MustParseAddrPort("203.0.113.80:80"), To: netip.MustParseAddrPort("203.0.113.9:8080")},
		{Protocol: unix.IPPROTO_TCP, From: netip.MustParseAddrPort("[2001:db8:113::80]:80"), To: netip.MustParseAddrPort("[2001:db8:113::9]:8080")},
	}}}})
	fw := l.Firewall("fw-a")
	for _, c := range []struct{ client, dial, listen string }{
		{"198.18.7.7", "203.0.113.80:80", "203.0.113.9:8080"},
		{"2001:db8:18::7", "[2001:db8:113::80]:80", "[2001:db8:113::9]:8080"},
	} {
		exchange(t, fw, c.client, c.dial, c.listen)
		flow := find(t, fw, c.client)
		original := netip.AddrPortFrom(flow.TupleOrig.IP.DestinationAddress, flow.TupleOrig.Proto.DestinationPort)
		if original != netip.MustParseAddrPort(c.dial) {
			t.Errorf("entry's original destination is %s, want %s", original, c.dial)
		}
		server := netip.AddrPortFrom(flow.TupleReply.IP.SourceAddress, flow.TupleReply.Proto.SourcePort)
		if server != netip.MustParseAddrPort(c.listen) {
			t.Errorf("entry's reply source is %s, want %s", server, c.listen)
		}
	}
}

// find returns the one entry of a client.
func find(t *testing.T, fw *lab.Firewall, client string) conntrack.Flow {
	t.Helper()
	flows := slices.DeleteFunc(dump(t, fw), func(f conntrack.Flow) bool {
		return f.TupleOrig.IP.SourceAddress != netip.MustParseAddr(client)
	})
	if len(flows) != 1 {
		t.Fatalf("%d entries of %s, want 1", len(flows), client)
	}
	return flows[0]
}

func TestSysctls(t *testing.T) {
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{
		{Name: "fw-a", Sysctls: map[string]string{"net.netfilter.nf_conntrack_acct": "1", "net.netfilter.nf_conntrack_udp_timeout": "1"}},
		{Name: "fw-b"},
	}})
	fw := l.Firewall("fw-a")
	if got, err := fw.Sysctl("net.netfilter.nf_conntrack_acct"); err != nil || got != "1" {
		t.Errorf("nf_conntrack_acct of fw-a is %q (%v), want 1", got, err)
	}
	if got, err := l.Firewall("fw-b").Sysctl("net.netfilter.nf_conntrack_acct"); err != nil || got != "0" {
		t.Errorf("nf_conntrack_acct of fw-b is %q (%v), want 0: each firewall has its own", got, err)
	}
	if _, err := fw.Sysctl("net.netfilter.no_such_setting"); err == nil {
		t.Error("read a setting that does not exist")
	}
	for _, name := range []string{"kernel.hostname", "net./../kernel/hostname", "net...kernel.hostname", ""} {
		if err := fw.SetSysctl(name, "x"); err == nil || !strings.Contains(err.Error(), "not a setting of a network namespace") {
			t.Errorf("set %q: %v, want it refused", name, err)
		}
	}

	// The timeout acts: one second after they were made, entries are gone from a dump.
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: netip.MustParsePrefix("198.18.0.1/32"), Destinations: netip.MustParsePrefix("203.0.113.1/32"), Port: 53, Count: 10}
	if _, err := f.Run(t.Context(), fw); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(dump(t, fw)) > 0; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("entries with a timeout of 1 s are still there after 10 s")
		}
	}
}

func TestNoWayOut(t *testing.T) {
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a"}}})
	fw := l.Firewall("fw-a")
	for name, side := range map[string]func(func() error) error{"client": fw.Client.Do, "firewall": fw.NS.Do, "server": fw.Server.Do} {
		err := side(func() error {
			_, err := net.DialTimeout("udp", "198.51.100.1:9", time.Second)
			return err
		})
		if !errors.Is(err, unix.ENETUNREACH) {
			t.Errorf("%s: %v, want no route", name, err)
		}
	}
}

func TestNewRefuses(t *testing.T) {
	labtest.Require(t)
	many := make([]lab.FirewallSpec, lab.MaxFirewalls+1)
	ended, end := context.WithCancel(t.Context())
	end()
	dnat := func(from, to string) []lab.FirewallSpec {
		return []lab.FirewallSpec{{Name: "fw-a", DNAT: []lab.DNAT{{Protocol: unix.IPPROTO_TCP, From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to)}}}}
	}
	for _, c := range []struct {
		want      string
		ctx       context.Context
		firewalls []lab.FirewallSpec
	}{
		{"at most 64", t.Context(), many},
		{"another firewall has this name", t.Context(), []lab.FirewallSpec{{Name: "fw-a"}, {Name: "fw-a"}}},
		{"context canceled", ended, []lab.FirewallSpec{{Name: "fw-a"}}},
		{"no_such_setting", t.Context(), []lab.FirewallSpec{{Name: "fw-a", Sysctls: map[string]string{"net.netfilter.no_such_setting": "1"}}}},
		{"198.18.0.1 is not at the server side", t.Context(), dnat("203.0.113.1:80", "198.18.0.1:80")},
		{"2001:db8:113::1 is not at the server side", t.Context(), dnat("203.0.113.1:80", "[2001:db8:113::1]:80")},
	} {
		l, err := lab.New(c.ctx, lab.Spec{Firewalls: c.firewalls})
		if err == nil {
			_ = l.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("got %v, want an error with %q", err, c.want)
		}
	}
}

func BenchmarkNew(b *testing.B) {
	labtest.Require(b)
	for b.Loop() {
		l, err := lab.New(b.Context(), lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", IPv6: true}}})
		if err != nil {
			b.Fatal(err)
		}
		if err := l.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

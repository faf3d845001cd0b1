//go:build linux

package conntrack

import (
	"bytes"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

var capture = flag.Bool("capture", false, "write the kernel's messages to testdata/messages")

func store(t *testing.T, name, about string, msg []byte) {
	t.Helper()
	var kernel unix.Utsname
	if err := unix.Uname(&kernel); err != nil {
		t.Fatal(err)
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(kernel.Release[:]), "-")
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %s; Linux %s, %s, in a lab of network namespaces (go test -run TestKernelMessages -capture)\n",
		about, release, unix.ByteSliceToString(kernel.Machine[:]))
	for line := range slices.Chunk(msg, 32) {
		fmt.Fprintf(&b, "%x\n", line)
	}
	if err := os.WriteFile(filepath.Join(messagesDir, name+".hex"), b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
}

// tap takes messages as they come from the kernel.
type tap struct {
	sock *socket
	box  *mailbox
}

func newTap(t *testing.T, ns *host.Namespace) *tap {
	t.Helper()
	sock, err := openSocket(ns, 1<<(groupNew-1)|1<<(groupDestroy-1), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sock.close)
	if sock.waiter, err = newWaiter(); err != nil {
		t.Fatal(err)
	}
	return &tap{sock, newMailbox(16, eventSlot)}
}

// next returns the next n messages.
func (p *tap) next(t *testing.T, n int) [][]byte {
	t.Helper()
	var out [][]byte
	for deadline := time.Now().Add(patience); len(out) < n; {
		if time.Now().After(deadline) {
			t.Fatalf("%d messages within %s, want %d", len(out), patience, n)
		}
		if err := p.sock.waiter.wait(p.sock.fd, time.Second); err != nil {
			t.Fatal(err)
		}
		got, err := p.box.receive(p.sock, unix.MSG_DONTWAIT)
		if err != nil {
			t.Fatal(err)
		}
		for i := range got {
			msg, err := p.box.datagram(i)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, bytes.Clone(msg))
		}
	}
	return out
}

// dumped returns the messages of a dump.
func dumped(t *testing.T, ns *host.Namespace) [][]byte {
	t.Helper()
	ch, err := openChannel(ns, dumpDatagrams, dumpSlot, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ch.close()
	var m message
	m.dump(1, unix.AF_UNSPEC)
	if err := ch.send(m.buf); err != nil {
		t.Fatal(err)
	}
	var out [][]byte
	err = ch.answers(1, 1, func(msg []byte) (bool, error) {
		if native.Uint16(msg[4:]) == unix.NLMSG_DONE {
			return true, nil
		}
		out = append(out, bytes.Clone(msg))
		return false, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestKernelMessages makes every kind of flow that the lab can, and decodes
// what the kernel says about its beginning, its presence and its end with both
// decoders. With -capture it also keeps the messages for tests without a
// kernel.
func TestKernelMessages(t *testing.T) {
	got := map[string][]byte{}
	check := func(t *testing.T, name, about string, msg []byte, want events.Type) {
		t.Helper()
		got[name] = msg
		e := decodeBoth(t, msg)
		if e.Type != want {
			t.Errorf("%s: type %s, want %s", name, e.Type, want)
		}
		if *capture {
			store(t, name, about, msg)
		}
	}

	flows := []struct {
		name     string
		protocol uint8
		port     uint16
	}{
		{"tcp", unix.IPPROTO_TCP, 443}, {"udp", unix.IPPROTO_UDP, 53}, {"sctp", unix.IPPROTO_SCTP, 3868}, {"gre", unix.IPPROTO_GRE, 0},
		{"icmp", unix.IPPROTO_ICMP, 0},
	}
	paths := []struct {
		name, about string
		spec        lab.FirewallSpec
	}{
		{"plain", "forwarded", lab.FirewallSpec{}},
		{"acct", "forwarded, with counters and timestamps", lab.FirewallSpec{Sysctls: map[string]string{
			"net.netfilter.nf_conntrack_acct": "1", "net.netfilter.nf_conntrack_timestamp": "1"}}},
		{"snat", "masqueraded", lab.FirewallSpec{Masquerade: true}},
	}
	for _, path := range paths {
		t.Run(path.name, func(t *testing.T) {
			fw := firewall(t, path.spec)
			p, c := newTap(t, fw.NS), dial(t, fw.NS)
			for _, f := range flows {
				if path.spec.Masquerade && f.protocol == unix.IPPROTO_GRE {
					continue // NAT drops the generator's empty packets: gre_manip_pkt wants eight bytes of header
				}
				for _, ipv6 := range []bool{false, true} {
					src, dst, protocol, digit := client4, server4, f.protocol, "4"
					if ipv6 {
						src, dst, digit = client6, server6, "6"
						if protocol == unix.IPPROTO_ICMP {
							protocol = unix.IPPROTO_ICMPV6
						}
					}
					name := f.name + digit + "-" + path.name
					about := strings.ToUpper(f.name) + " over IPv" + digit + ", " + path.about
					flood(t, fw, traffic.Flood{Protocol: protocol, Sources: src, Destinations: dst, Port: f.port, Count: 1, Answer: true})
					check(t, name+"-new", about+": NEW", p.next(t, 1)[0], events.New)
					check(t, name+"-dump", about+": dumped", dumped(t, fw.NS)[0], events.Existing)
					if _, err := c.Flush(t.Context(), Match{Prefixes: []netip.Prefix{src}, By: events.BySrc}, FlushOptions{}); err != nil {
						t.Fatal(err)
					}
					msg := p.next(t, 1)[0]
					check(t, name+"-destroy", about+": DESTROY", msg, events.Destroy)
					e := decodeBoth(t, msg)
					if want := path.name == "acct"; e.HasCounters != want {
						t.Errorf("%s: counters %v, want %v", name, e.HasCounters, want)
					}
					if want := path.name == "snat"; e.NAT != want {
						t.Errorf("%s: NAT %v, want %v", name, e.NAT, want)
					}
					if e.Src() != src.Addr() || e.Dst() != dst.Addr() || e.Proto != protocol || !e.Replied() {
						t.Errorf("%s: %+v is not the answered flow from %s to %s", name, e, src, dst)
					}
				}
			}
		})
	}

	t.Run("dnat", func(t *testing.T) {
		vip := netip.MustParseAddrPort("203.0.113.80:80")
		fw := firewall(t, lab.FirewallSpec{DNAT: []lab.DNAT{{Protocol: unix.IPPROTO_TCP, From: vip, To: netip.MustParseAddrPort("203.0.113.7:8080")}}})
		p := newTap(t, fw.NS)
		flood(t, fw, traffic.Flood{Protocol: unix.IPPROTO_TCP, Sources: client4, Destinations: netip.PrefixFrom(vip.Addr(), 32), Port: vip.Port(), Count: 1})
		msg := p.next(t, 1)[0]
		check(t, "tcp4-dnat-new", "TCP over IPv4, to another server: NEW", msg, events.New)
		e := decodeBoth(t, msg)
		if real := e.Reply.Src.Netip(false); !e.NAT || e.Dst() != vip.Addr() || real != server4.Addr() || e.Reply.SrcPort != 8080 {
			t.Errorf("destination %s:%d answered by %s:%d (NAT %v), want %s answered by %s:8080", e.Dst(), e.Orig.DstPort, real, e.Reply.SrcPort, e.NAT, vip, server4.Addr())
		}
	})

	t.Run("inserted", func(t *testing.T) {
		fw := firewall(t, lab.FirewallSpec{})
		p, o := newTap(t, fw.NS), oracle(t, fw.NS)
		for i, insert := range []struct {
			name, about string
			protocol    uint8
			zone        func(*timo.Flow)
			want        uint16
		}{
			{"udp4-inserted", "UDP over IPv4, inserted by a program", unix.IPPROTO_UDP, func(*timo.Flow) {}, 0},
			{"udp4-zone", "the same in zone 7", unix.IPPROTO_UDP, func(f *timo.Flow) { f.Zone = 7 }, 7},
			{"udp4-zone-orig", "the same in zone 8, original direction only", unix.IPPROTO_UDP, func(f *timo.Flow) { f.TupleOrig.Zone = 8 }, 8},
			{"udp4-zone-reply", "the same in zone 9, reply direction only", unix.IPPROTO_UDP, func(f *timo.Flow) { f.TupleReply.Zone = 9 }, 0},
			{"esp4-inserted", "a protocol without ports (ESP) over IPv4, inserted by a program", unix.IPPROTO_ESP, func(*timo.Flow) {}, 0},
		} {
			f := timo.NewFlow(insert.protocol, timo.Status(0), client4.Addr(), server4.Addr(), uint16(4000+i), 53, 60, 0)
			insert.zone(&f)
			if err := o.Create(f); err != nil {
				t.Errorf("%s: insert: %v", insert.name, err)
				continue
			}
			msg := p.next(t, 1)[0]
			check(t, insert.name+"-new", insert.about+": NEW", msg, events.Existing)
			if e := decodeBoth(t, msg); e.Zone != insert.want || e.Proto != insert.protocol {
				t.Errorf("%s: zone %d, protocol %d, want %d and %d", insert.name, e.Zone, e.Proto, insert.want, insert.protocol)
			}
		}
	})

	if *capture || t.Failed() {
		return
	}
	if want := slices.Sorted(maps.Keys(stored(t))); !slices.Equal(slices.Sorted(maps.Keys(got)), want) {
		t.Errorf("messages of this kernel and those in %s are not the same kinds: run with -capture\n%v\n%v", messagesDir, slices.Sorted(maps.Keys(got)), want)
	}
}

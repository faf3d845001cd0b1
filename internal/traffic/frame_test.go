//go:build linux

package traffic

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
)

var testLink = lab.Link{
	Name: "uplink", Index: 2,
	MAC:  net.HardwareAddr{2, 0, 0, 0, 0, 2},
	Peer: net.HardwareAddr{2, 0, 0, 0, 0, 1},
}

// The kernel judges the frames themselves: TestFloodMakesExactlyItsFlows fails if
// it finds one malformed. Here is only what the kernel does not see.

func TestFillDoesNotAllocate(t *testing.T) {
	for _, c := range []struct {
		protocol             uint8
		sources, destination string
	}{
		{unix.IPPROTO_UDP, "198.18.0.0/16", "203.0.113.1/32"},
		{unix.IPPROTO_SCTP, "2001:db8:18::/64", "2001:db8:113::1/128"},
	} {
		s := testSender(c.protocol, c.sources, c.destination)
		flow := 0
		if n := testing.AllocsPerRun(1000, func() { s.fill(flow%s.batch.len(), flow); flow++ }); n != 0 {
			t.Errorf("protocol %d: %v allocations a packet", c.protocol, n)
		}
		frame := slices.Clone(s.batch.packet(0))
		if n := testing.AllocsPerRun(1000, func() { answer(frame, testLink) }); n != 0 {
			t.Errorf("protocol %d: %v allocations an answer", c.protocol, n)
		}
	}
}

func BenchmarkFill(b *testing.B) {
	s := testSender(unix.IPPROTO_UDP, "198.18.0.0/16", "203.0.113.1/32")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.fill(i%s.batch.len(), i%1_000_000)
	}
}

// testSender is a sender without a socket.
func testSender(protocol uint8, sources, destination string) *sender {
	return Flood{
		Protocol: protocol, Sources: netip.MustParsePrefix(sources), SourceCount: 256, Destinations: netip.MustParsePrefix(destination),
	}.sender(-1, testLink)
}

// FuzzAnswer: whatever arrives, an answer neither crashes nor writes outside the
// frame, and one that was given goes back where the packet came from.
func FuzzAnswer(f *testing.F) {
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_SCTP, unix.IPPROTO_GRE} {
		f.Add(firstFrame(protocol, "198.18.0.0/16", "203.0.113.1/32"))
		f.Add(firstFrame(protocol, "2001:db8:18::/64", "2001:db8:113::1/128"))
	}
	f.Add(firstFrame(unix.IPPROTO_ICMP, "198.18.0.0/16", "203.0.113.1/32"))
	f.Add(firstFrame(unix.IPPROTO_ICMPV6, "2001:db8:18::/64", "2001:db8:113::1/128"))
	f.Fuzz(func(t *testing.T, frame []byte) {
		memory := append(slices.Clone(frame), 0xa5)
		got := memory[:len(frame):len(frame)]
		given := answer(got, testLink)
		if memory[len(frame)] != 0xa5 {
			t.Fatal("wrote beyond the frame")
		}
		if !given {
			if !slices.Equal(got, frame) {
				t.Fatal("changed a frame that it cannot answer")
			}
			return
		}
		if !slices.Equal(got[:6], testLink.Peer) || !slices.Equal(got[6:12], testLink.MAC) {
			t.Fatalf("goes to %x from %x", got[:6], got[6:12])
		}
		source, addrLen := ipv4Source, 4
		if frame[12] == 0x86 {
			source, addrLen = ipv6Source, 16
		}
		dest := source + addrLen
		if !slices.Equal(got[source:dest], frame[dest:dest+addrLen]) || !slices.Equal(got[dest:dest+addrLen], frame[source:dest]) {
			t.Fatalf("addresses are not those of the packet, swapped: %x of %x", got, frame)
		}
	})
}

// firstFrame is the first packet of a flood.
func firstFrame(protocol uint8, sources, destination string) []byte {
	s := testSender(protocol, sources, destination)
	s.fill(0, 0)
	return slices.Clone(s.batch.packet(0))
}

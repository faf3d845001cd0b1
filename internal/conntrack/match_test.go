package conntrack

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// randomAddr returns one of few addresses, so that prefixes and entries meet.
func randomAddr(r *rand.Rand, ipv6 bool) netip.Addr {
	if ipv6 {
		return netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: byte(r.IntN(4)), 15: byte(r.IntN(8))})
	}
	return netip.AddrFrom4([4]byte{198, 18, byte(r.IntN(4)), byte(r.IntN(8))})
}

func randomMatch(r *rand.Rand) Match {
	m := Match{By: []string{events.BySrc, events.ByDst, events.ByEither}[r.IntN(3)], AnyZone: r.IntN(2) == 0, Zone: uint16(r.IntN(2))}
	for range 1 + r.IntN(4) {
		a := randomAddr(r, r.IntN(2) == 0)
		bits := a.BitLen() - []int{0, 0, 1, 8}[r.IntN(4)]
		p, err := a.Prefix(bits)
		if err != nil {
			panic(err)
		}
		m.Prefixes = append(m.Prefixes, p)
	}
	return m
}

func randomEntry(r *rand.Rand) events.Event {
	e := events.Event{IPv6: r.IntN(2) == 0, Zone: uint16(r.IntN(2)), ID: r.Uint32()}
	e.Orig.Src, _ = events.FromNetip(randomAddr(r, e.IPv6))
	e.Orig.Dst, _ = events.FromNetip(randomAddr(r, e.IPv6))
	e.Orig.SrcPort, e.Orig.DstPort = uint16(r.Uint32()), uint16(r.Uint32())
	protocols := []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6, unix.IPPROTO_GRE, unix.IPPROTO_ESP}
	e.Proto = protocols[r.IntN(len(protocols))]
	return e
}

// TestMatchContains checks the compiled and the plain form against the
// definition, on entries and prefixes that often meet.
func TestMatchContains(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	hits := 0
	for range 2000 {
		m := randomMatch(r)
		if err := m.Validate(); err != nil {
			t.Fatal(err)
		}
		compiled := m.compile()
		for range 20 {
			e := randomEntry(r)
			want := false
			for _, p := range m.Prefixes {
				src, dst := p.Contains(e.Src()), p.Contains(e.Dst())
				want = want || m.By != events.ByDst && src || m.By != events.BySrc && dst
			}
			want = want && (m.AnyZone || m.Zone == e.Zone)
			if want {
				hits++
			}
			if plain, fast := m.Contains(&e), compiled(&e); plain != want || fast != want {
				t.Fatalf("%+v contains %+v: %v, compiled %v, want %v", m, e, plain, fast, want)
			}
		}
	}
	if hits < 1000 {
		t.Errorf("%d entries matched: too few to mean something", hits)
	}
}

func TestMatchDoesNotAllocate(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, m := range []Match{bySrc(client4), bySrc(client6), bySrc(client4, client6, other4)} {
		contains, e := m.compile(), randomEntry(r)
		if n := testing.AllocsPerRun(100, func() { contains(&e) }); n != 0 {
			t.Errorf("%v: %v allocations for an entry, want none", m.Prefixes, n)
		}
	}
}

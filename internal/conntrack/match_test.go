package conntrack

import (
	"math/rand/v2"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Clients and servers of the lab that tests name one by one.
var (
	client4 = netip.MustParsePrefix("198.18.0.9/32")
	other4  = netip.MustParsePrefix("198.18.0.10/32")
	server4 = netip.MustParsePrefix("203.0.113.7/32")
	client6 = netip.MustParsePrefix("2001:db8:18::9/128")
	other6  = netip.MustParsePrefix("2001:db8:18::a/128")
	server6 = netip.MustParsePrefix("2001:db8:113::7/128")
)

// bySrc matches flows from any of the prefixes.
func bySrc(prefixes ...netip.Prefix) Match { return Match{Prefixes: prefixes, By: events.BySrc} }

// towards matches flows from any of the prefixes to one.
func towards(server netip.Prefix, prefixes ...netip.Prefix) Match {
	m := bySrc(prefixes...)
	m.Towards = server
	return m
}

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
		m.Prefixes = append(m.Prefixes, randomPrefix(r, r.IntN(2) == 0))
	}
	if r.IntN(2) == 0 {
		m.Towards = randomPrefix(r, m.Prefixes[0].Addr().Is6())
	}
	return m
}

func randomPrefix(r *rand.Rand, ipv6 bool) netip.Prefix {
	a := randomAddr(r, ipv6)
	p, err := a.Prefix(a.BitLen() - []int{0, 0, 1, 8}[r.IntN(4)])
	if err != nil {
		panic(err)
	}
	return p
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
	hits, towards := 0, 0
	for range 5000 {
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
				if m.Towards.IsValid() {
					src, dst = src && m.Towards.Contains(e.Dst()), dst && m.Towards.Contains(e.Src())
				}
				want = want || m.By != events.ByDst && src || m.By != events.BySrc && dst
			}
			want = want && (m.AnyZone || m.Zone == e.Zone)
			if want {
				hits++
				if m.Towards.IsValid() {
					towards++
				}
			}
			if plain, fast := m.Contains(&e), compiled(&e); plain != want || fast != want {
				t.Fatalf("%+v contains %+v: %v, compiled %v, want %v", m, e, plain, fast, want)
			}
		}
	}
	if hits < 1000 || towards < 200 {
		t.Errorf("%d entries matched, %d of them by both sides: too few to mean something", hits, towards)
	}
}

// TestTowardsIsNoCondition only when it was not set: a prefix that went wrong must
// not widen what is selected.
func TestTowardsIsNoCondition(t *testing.T) {
	e := events.Event{}
	e.Orig.Src, _ = events.FromNetip(client4.Addr())
	e.Orig.Dst, _ = events.FromNetip(server4.Addr())
	f := func(towards netip.Prefix, valid, want bool) {
		t.Helper()
		for _, m := range []Match{bySrc(client4), bySrc(other4, client4), {Prefixes: []netip.Prefix{client4}, By: events.ByEither}} {
			m.Towards = towards
			if err := m.Validate(); (err == nil) != valid {
				t.Errorf("towards %v: %v", towards, err)
			}
			if plain, fast := m.Contains(&e), m.compile()(&e); plain != want || fast != want {
				t.Errorf("%v towards %v: %t, compiled %t", m.Prefixes, towards, plain, fast)
			}
		}
	}
	f(netip.Prefix{}, true, true)
	f(server4, true, true)
	f(netip.MustParsePrefix("203.0.113.0/24"), true, true)
	f(netip.MustParsePrefix("0.0.0.0/0"), true, true)
	f(client4, true, false)
	f(netip.PrefixFrom(server4.Addr(), 33), false, false)
	f(netip.MustParsePrefix("::ffff:203.0.113.7/128"), false, false)
	f(server6, false, false) // of another family than all of the addresses
	f(netip.MustParsePrefix("::/0"), false, false)
}

func TestMatchDoesNotAllocate(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, m := range []Match{bySrc(client4), bySrc(client6), bySrc(client4, client6, other4), towards(server4, client4), towards(server6, client4, client6)} {
		contains, e := m.compile(), randomEntry(r)
		if n := testing.AllocsPerRun(100, func() { contains(&e) }); n != 0 {
			t.Errorf("%v: %v allocations for an entry, want none", m.Prefixes, n)
		}
	}
}

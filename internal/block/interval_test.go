//go:build linux

package block

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// What an interval set holds is compared with a list of all addresses, each with
// the latest end that was asked for.
func TestIntervalsAgreeWithAddresses(t *testing.T) {
	t.Parallel()
	rng := rand.New(rand.NewPCG(1, 2))
	for _, universe := range []string{"192.0.2.64/27", "255.255.255.224/27", "2001:db8::/123"} {
		u := netip.MustParsePrefix(universe)
		for range 200 {
			// The operator's own elements, which are not to change.
			held := []span{{from: nth(u, 3), to: nth(u, 6), left: Forever}, {from: nth(u, 20), to: nth(u, 20), left: 5}}
			want := map[netip.Addr]time.Duration{}
			for range 12 {
				bits := u.Bits() + rng.IntN(6)
				p := netip.PrefixFrom(nth(u, rng.IntN(32)), bits).Masked()
				d := time.Duration(1 + rng.IntN(9))
				var c change
				if rng.IntN(4) == 0 {
					c = unblock(held, p)
					for a := range want {
						if p.Contains(a) {
							delete(want, a)
						}
					}
				} else {
					var err error
					if c, err = block(held, p, d); err != nil {
						if !p.Contains(nth(u, 20)) || p.IsSingleIP() {
							t.Fatalf("block %s: %v", p, err)
						}
						continue
					}
					left := Forever
					for a := p.Addr(); a.IsValid() && p.Contains(a); a = a.Next() {
						switch {
						case nth(u, 3).Compare(a) <= 0 && a.Compare(nth(u, 6)) <= 0:
						case a == nth(u, 20) && want[a] == 0 && d <= 5: // the operator's lasts as long
							left = min(left, 5)
						default:
							want[a] = max(want[a], d)
							left = min(left, want[a])
						}
					}
					// Where it leaves as it is what the operator has there, it may say less.
					if c.left < d || c.left > left {
						t.Fatalf("block %s for %d: %d is left, want %d", p, d, c.left, left)
					}
				}
				held = apply(t, held, c)
			}
			got := map[netip.Addr]time.Duration{}
			for _, x := range held {
				for a := x.from; x.ours && a.IsValid() && !x.to.Less(a); a = a.Next() {
					if got[a] != 0 {
						t.Fatalf("%s is held twice", a)
					}
					got[a] = x.left
				}
			}
			for a := u.Addr(); a.IsValid() && u.Contains(a); a = a.Next() {
				if got[a] != want[a] {
					t.Fatalf("%s: %d, want %d", a, got[a], want[a])
				}
			}
		}
	}
}

func nth(u netip.Prefix, n int) netip.Addr {
	a := u.Addr()
	for range n {
		a = a.Next()
	}
	return a
}

// apply does what the kernel does: it deletes what is there, and adds what
// overlaps nothing.
func apply(t *testing.T, held []span, c change) []span {
	t.Helper()
	for _, x := range c.remove {
		i := slices.Index(held, x)
		if i < 0 {
			t.Fatalf("%+v is deleted and is not there", x)
		}
		held = slices.Delete(held, i, i+1)
	}
	for _, x := range c.add {
		for _, y := range held {
			if x.overlaps(y) {
				t.Fatalf("%+v is added beside %+v", x, y)
			}
		}
		held = append(held, x)
	}
	return held
}

func TestSpanPrefixes(t *testing.T) {
	t.Parallel()
	f := func(from, to string, want ...string) {
		t.Helper()
		var got []string
		for _, p := range (span{from: netip.MustParseAddr(from), to: netip.MustParseAddr(to)}).prefixes() {
			got = append(got, p.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s-%s: %v, want %v", from, to, got, want)
		}
	}
	f("192.0.2.7", "192.0.2.7", "192.0.2.7/32")
	f("192.0.2.0", "192.0.2.255", "192.0.2.0/24")
	f("192.0.2.3", "192.0.2.9", "192.0.2.3/32", "192.0.2.4/30", "192.0.2.8/31")
	f("255.255.255.254", "255.255.255.255", "255.255.255.254/31")
	f("0.0.0.0", "255.255.255.255", "0.0.0.0/0")
	f("::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "::/0")
	f("2001:db8::ffff", "2001:db8::1:0", "2001:db8::ffff/128", "2001:db8::1:0/128")
}

func TestSpansOfElements(t *testing.T) {
	t.Parallel()
	el := func(a string, end bool) element {
		return element{addr: netip.MustParseAddr(a), end: end, left: Forever}
	}
	f := func(elements []element, want ...string) {
		t.Helper()
		var got []string
		for _, x := range spansOf(elements) {
			got = append(got, x.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v: %v, want %v", elements, got, want)
		}
	}
	f(nil)
	// As Linux lists what nft has added: from the last to the first, with an end
	// before the first interval.
	f([]element{el("192.0.2.8", true), el("192.0.2.4", false), el("192.0.2.2", true), el("192.0.2.1", false), el("0.0.0.0", true)}, "192.0.2.1/32", "192.0.2.4/30")
	f([]element{el("192.0.2.0", false), el("192.0.2.4", true), el("192.0.2.4", false), el("192.0.2.9", true)}, "192.0.2.0/30", "192.0.2.4-192.0.2.8")
	f([]element{el("192.0.2.0", false), el("192.0.2.4", false), el("192.0.2.8", true)}, "192.0.2.0/30", "192.0.2.4/30")
	f([]element{el("255.255.255.0", false)}, "255.255.255.0/24")
}

func FuzzDecodeElements(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{1, 0, 0, 0, 20, 0, 3, 0x80, 16, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 192, 0, 2, 1})
	f.Add([]byte{1, 0, 0, 0, 36, 0, 3, 0x80, 32, 0, 1, 0x80, 12, 0, 1, 0x80, 8, 0, 1, 0, 192, 0, 2, 1, 14, 0, 6, 0, 0, 8, 'c', 't', 'f', 'l', 'e', 'e', 't', 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := decodeElements(b, nil)
		if err != nil {
			return
		}
		for _, e := range list {
			if !e.addr.IsValid() || e.left < 0 {
				t.Errorf("decoded %+v", e)
			}
		}
		for _, x := range spansOf(list) {
			_ = x.String()
		}
		_, _ = decodeSet(b)
	})
}

func TestCommented(t *testing.T) {
	t.Parallel()
	f := func(b string, want bool) {
		t.Helper()
		if got := commented([]byte(b)); got != want {
			t.Errorf("%q: %v", b, got)
		}
	}
	f("\x00\x08ctfleet\x00", true)
	f("\x01\x04\x01\x00\x00\x00\x00\x08ctfleet\x00", true)
	f("\x00\x09ctfleets\x00", false)
	f("\x01\x08ctfleet\x00", false)
	f("", false)
	f("\x00", false)
	f("\x00\xffctfleet\x00", false) // the library panics here
}

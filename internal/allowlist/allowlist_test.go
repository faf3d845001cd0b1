package allowlist

import (
	"net/netip"
	"testing"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func list() *List {
	entries := Prefixes("lab", prefix("198.18.0.0/15"), prefix("198.18.7.0/24"), prefix("2001:db8::/32"), prefix("203.0.113.99/28"))
	entries = append(entries, Addresses("own address",
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2"), netip.MustParseAddr("fe80::1%eth0"))...)
	entries = append(entries,
		Entry{Prefix: prefix("::ffff:192.0.2.128/121"), Why: "mapped"},
		Entry{Prefix: prefix("198.18.7.0/24"), Why: "a second reason"},
		Entry{Why: "invalid"})
	return New(entries...)
}

func TestCovers(t *testing.T) {
	l := list()
	f := func(p, by, why string) {
		t.Helper()
		got, ok := l.Covers(prefix(p))
		if ok != (by != "") || ok && (got.Prefix != prefix(by) || got.Why != why) {
			t.Errorf("%s is covered by %v (%t), want %q", p, got, ok, by)
		}
	}
	f("198.18.7.9/32", "198.18.7.0/24", "lab") // the most specific, the first reason
	f("198.18.7.0/24", "198.18.7.0/24", "lab")
	f("198.18.6.0/23", "198.18.0.0/15", "lab")
	f("198.0.0.0/8", "", "")
	f("192.0.2.1/32", "192.0.2.1/32", "own address")
	f("192.0.2.2/32", "192.0.2.2/32", "own address")
	f("::ffff:192.0.2.2/128", "192.0.2.2/32", "own address")
	f("192.0.2.0/24", "", "")
	f("192.0.2.200/32", "192.0.2.128/25", "mapped")
	f("203.0.113.98/32", "203.0.113.96/28", "lab") // listed with bits beyond its length
	f("203.0.113.112/32", "", "")
	f("2001:db8:1::/48", "2001:db8::/32", "lab")
	f("2001:db9::1/128", "", "")
	f("fe80::1/128", "fe80::1/128", "own address")
	f("0.0.0.0/0", "", "")
	if _, ok := l.Covers(netip.Prefix{}); ok {
		t.Error("no prefix is covered")
	}
	if l.Len() != 8 {
		t.Errorf("%d entries, want 8: equal and invalid ones are left out", l.Len())
	}
}

func TestContains(t *testing.T) {
	l := list()
	f := func(a string, want bool) {
		t.Helper()
		if _, got := l.Contains(netip.MustParseAddr(a)); got != want {
			t.Errorf("%s: %t, want %t", a, got, want)
		}
	}
	f("192.0.2.1", true)
	f("::ffff:192.0.2.1", true)
	f("::192.0.2.1", false) // another address altogether
	f("192.0.2.3", false)
	f("fe80::1", true)
	f("fe80::1%eth9", true)
	f("198.19.255.255", true)
	f("198.20.0.0", false)
	if _, got := l.Contains(netip.Addr{}); got {
		t.Error("no address is contained")
	}
}

func within(l *List, p string) bool {
	_, ok := l.Within(prefix(p))
	return ok
}

// TestException: the most specific entry decides, and what is within a prefix
// counts only where it is listed.
func TestException(t *testing.T) {
	l := New(Entry{Prefix: prefix("10.0.0.0/8"), Why: "inside"}, Entry{Prefix: prefix("10.1.0.0/16"), Except: true}, Entry{Prefix: prefix("10.1.2.3/32"), Why: "but this"})
	for p, want := range map[string][2]bool{ // covered, something within
		"10.2.0.0/16": {true, false}, "10.1.0.0/24": {false, false}, "10.1.2.3/32": {true, true}, "10.1.0.0/16": {false, true}, "10.1.2.4/32": {false, false}, "0.0.0.0/0": {false, true},
	} {
		if _, covered := l.Covers(prefix(p)); covered != want[0] || within(l, p) != want[1] {
			t.Errorf("%s: covered %t, within %t, want %v", p, covered, within(l, p), want)
		}
	}
}

func TestWithin(t *testing.T) {
	l := list()
	f := func(p string, want bool) {
		t.Helper()
		if got := within(l, p); got != want {
			t.Errorf("%s: %t, want %t", p, got, want)
		}
	}
	f("192.0.2.0/24", true)
	f("::ffff:192.0.2.0/120", true)
	f("192.0.2.4/30", false)
	f("198.18.7.9/32", false) // covered
	f("198.18.7.0/24", true)
	f("0.0.0.0/0", true)
	f("::/0", true)
	f("fe80::/64", true)
	f("fe81::/64", false)
}

func TestEmptyList(t *testing.T) {
	var zero List
	for _, l := range []*List{&zero, New()} {
		if _, ok := l.Covers(prefix("192.0.2.1/32")); ok || within(l, "0.0.0.0/0") || l.Len() != 0 {
			t.Error("an empty list covers something")
		}
	}
}

func TestContainsDoesNotAllocate(t *testing.T) {
	l, a := list(), netip.MustParseAddr("198.18.7.9")
	if n := testing.AllocsPerRun(100, func() { l.Contains(a) }); n != 0 {
		t.Errorf("%v allocations; it is asked for each entry of a flush", n)
	}
}

// Package allowlist holds prefixes that must not be acted upon, each with the
// reason it is there. It is a leaf: policy asks it before a command is sent,
// guard before an entry is deleted.
package allowlist

import (
	"net/netip"

	"github.com/gaissmai/bart"
)

// Entry is one prefix and why it is listed.
type Entry struct {
	Prefix netip.Prefix
	Why    string // a few words, shown to operators: "own address", "--protect"
	// Except: what lies within Prefix is not listed, though a wider entry covers it.
	Except bool
}

// List answers which entry covers an address. The zero value is empty; a List
// is not changed after it is built and is then safe for concurrent use.
//
// An IPv4-mapped IPv6 address or prefix (::ffff:192.0.2.1) is the IPv4 one that
// it maps, on both sides of a question.
type List struct {
	table bart.Table[Entry]
	n     int
}

// New builds a list. Of entries with the same prefix the first one's reason is
// kept; an invalid prefix covers nothing and is left out.
func New(entries ...Entry) *List {
	l := &List{}
	for _, e := range entries {
		p := canonical(e.Prefix)
		if !p.IsValid() {
			continue
		}
		if _, ok := l.table.Get(p); !ok {
			e.Prefix = p
			l.table.Insert(p, e)
			l.n++
		}
	}
	return l
}

// canonical unmaps p and clears the bits beyond its length.
func canonical(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// Prefixes makes entries of one reason.
func Prefixes(why string, prefixes ...netip.Prefix) []Entry {
	out := make([]Entry, len(prefixes))
	for i, p := range prefixes {
		out[i] = Entry{Prefix: p, Why: why}
	}
	return out
}

// Addresses makes entries of single addresses.
func Addresses(why string, addrs ...netip.Addr) []Entry {
	out := make([]Entry, len(addrs))
	for i, a := range addrs {
		a = a.WithZone("").Unmap()
		out[i] = Entry{Prefix: netip.PrefixFrom(a, a.BitLen()), Why: why}
	}
	return out
}

// Len is the number of entries, 0 of a nil List.
func (l *List) Len() int {
	if l == nil {
		return 0
	}
	return l.n
}

// Contains returns the most specific entry that covers a.
func (l *List) Contains(a netip.Addr) (Entry, bool) {
	a = a.WithZone("").Unmap()
	return l.Covers(netip.PrefixFrom(a, a.BitLen()))
}

// Covers returns the most specific entry that covers all of p, if that lists it:
// ok is false for an exception, too.
func (l *List) Covers(p netip.Prefix) (e Entry, ok bool) {
	_, e, ok = l.table.LookupPrefixLPM(canonical(p))
	return e, ok && !e.Except
}

// Within returns an entry that lists something within p, or p itself.
func (l *List) Within(p netip.Prefix) (Entry, bool) {
	for _, e := range l.table.Subnets(canonical(p)) {
		if !e.Except {
			return e, true
		}
	}
	return Entry{}, false
}

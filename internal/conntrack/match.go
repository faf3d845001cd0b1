package conntrack

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Match selects entries by address and zone. It looks at the original tuple:
// its source is the client before SNAT, its destination the service before
// DNAT.
type Match struct {
	Prefixes []netip.Prefix // at least one; a single address is a prefix of its full length
	By       string         // events.BySrc, ByDst or ByEither
	AnyZone  bool           // match in every zone
	Zone     uint16         // otherwise in this one, which is 0 where nobody uses zones
	// Unanswered: only entries that have had no answer, see [events.Event.Answered].
	Unanswered bool
	// Towards, unless it is zero: only entries whose other side lies within it: the
	// destination of a matched source, the source of a matched destination. So
	// what one of many sources has at the address that they flood can be
	// selected, and the rest that it has cannot be hit.
	Towards netip.Prefix
}

// Validate refuses what selects nothing or is not what it seems. How wide a
// prefix may be is not for this package to say.
func (m *Match) Validate() error {
	if len(m.Prefixes) == 0 {
		return errors.New("match: no address")
	}
	for _, p := range m.Prefixes {
		if err := validate(p); err != nil {
			return fmt.Errorf("match: %w", err)
		}
	}
	if t := m.Towards; t != (netip.Prefix{}) {
		if err := validate(t); err != nil {
			return fmt.Errorf("match: towards: %w", err)
		}
		if !slices.ContainsFunc(m.Prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() == t.Addr().Is4() }) {
			return fmt.Errorf("match: towards %s: none of the addresses is of its family", t)
		}
	}
	switch m.By {
	case events.BySrc, events.ByDst, events.ByEither:
		return nil
	}
	return fmt.Errorf("match: by %q: want %s, %s or %s", m.By, events.BySrc, events.ByDst, events.ByEither)
}

func validate(p netip.Prefix) error {
	switch {
	case !p.IsValid():
		return errors.New("invalid prefix")
	case p.Addr().Is4In6():
		return fmt.Errorf("%s: write the IPv4 prefix", p)
	case p.Addr().Zone() != "":
		return fmt.Errorf("%s: an address with a zone", p)
	}
	return nil
}

// Contains reports whether the entry is selected. An invalid Match selects
// nothing.
func (m *Match) Contains(e *events.Event) bool {
	return m.contains(e, func(a netip.Addr) bool {
		for _, p := range m.Prefixes {
			if p.Contains(a) {
				return true
			}
		}
		return false
	})
}

func (m *Match) contains(e *events.Event, listed func(netip.Addr) bool) bool {
	if !m.AnyZone && e.Zone != m.Zone || m.Unanswered && e.Answered() {
		return false
	}
	switch m.By {
	case events.BySrc:
		return listed(e.Src()) && m.towards(e.Dst())
	case events.ByDst:
		return listed(e.Dst()) && m.towards(e.Src())
	case events.ByEither:
		return listed(e.Src()) && m.towards(e.Dst()) || listed(e.Dst()) && m.towards(e.Src())
	}
	return false
}

// towards takes an invalid prefix for one that contains nobody: only the zero
// one is no condition.
func (m *Match) towards(other netip.Addr) bool {
	return m.Towards == (netip.Prefix{}) || m.Towards.Contains(other)
}

// compile returns a Contains whose cost does not grow with the number of
// prefixes: a command may name a thousand, a table hold millions.
func (m *Match) compile() func(*events.Event) bool {
	if len(m.Prefixes) == 1 {
		return m.Contains
	}
	var table bart.Lite
	for _, p := range m.Prefixes {
		table.Insert(p)
	}
	return func(e *events.Event) bool { return m.contains(e, table.Contains) }
}

// single returns the one IPv4 address that is matched on one side only, the
// case for which the kernel can be asked to select.
func (m *Match) single() (addr netip.Addr, ok bool) {
	if len(m.Prefixes) != 1 || m.By == events.ByEither {
		return netip.Addr{}, false
	}
	p := m.Prefixes[0]
	return p.Addr(), p.Addr().Is4() && p.IsSingleIP()
}

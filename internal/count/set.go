package count

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/window"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Track is the side of a flow whose address is the key.
type Track uint8

const (
	BySrc Track = iota // the original source: who opened the flow
	ByDst              // the original destination
)

func (t Track) String() string { return [...]string{"by_src", "by_dst"}[t&1] }

// Metric is what is counted. The first three are series of a [window.Table],
// the last is its gauge.
type Metric uint8

const (
	Opened    Metric = iota // "new": NEW events within the window
	Ended                   // DESTROY events within the window
	Unreplied               // DESTROY events of flows that were never answered, within the window
	Active                  // flows in the table now; has no window
	metrics
)

func (m Metric) series() window.Series { return window.Series(m) }

func (m Metric) String() string {
	if m >= metrics {
		return fmt.Sprintf("metric(%d)", uint8(m))
	}
	return [...]string{events.MetricNew, "ended", events.MetricUnreplied, events.MetricActive}[m]
}

// Match narrows a set to some flows. The zero value takes every flow. Matches
// are comparable: equal conditions are equal values.
type Match struct {
	proto    uint8
	anyProto bool
	ports    string // sorted, two bytes each; "" takes any
	set      bool   // there is a condition
}

// MatchProtocol takes the flows of one IP protocol, and, when ports are given,
// of these destination ports only.
func MatchProtocol(proto uint8, dports ...uint16) Match {
	return Match{proto: proto, ports: packPorts(dports), set: true}
}

// MatchPorts takes the flows of any protocol to these destination ports.
func MatchPorts(dports ...uint16) Match {
	if len(dports) == 0 {
		return Match{}
	}
	return Match{anyProto: true, ports: packPorts(dports), set: true}
}

// packPorts makes a sorted set of ports comparable: two bytes each.
func packPorts(ports []uint16) string {
	sorted := slices.Clone(ports)
	slices.Sort(sorted)
	var b []byte
	for _, p := range slices.Compact(sorted) {
		b = binary.BigEndian.AppendUint16(b, p)
	}
	return string(b)
}

// takes reports whether flows of a protocol to a port belong to the set. ICMP
// has no ports: its type and code, which stand in their place, match none.
func (m Match) takes(proto uint8, dport uint16) bool {
	if !m.set {
		return true
	}
	if !m.anyProto && proto != m.proto {
		return false
	}
	if m.ports == "" {
		return true
	}
	if proto == 1 || proto == 58 {
		return false
	}
	for i := 0; i+1 < len(m.ports); i += 2 {
		if uint16(m.ports[i])<<8|uint16(m.ports[i+1]) == dport {
			return true
		}
	}
	return false
}

// Set is one way of counting: which flows (Match), under which key (Track, cut
// to a prefix), and what of them (Metric). Every set is kept per firewall and
// per realm. Sets are comparable.
//
// The sets with neither prefix nor match are always kept, for both tracks and
// all metrics; others are kept when [Config] names them.
type Set struct {
	Track  Track
	Metric Metric
	// Length of the prefix that is the key; 0 means a whole address.
	IPv4Bits, IPv6Bits uint8
	Match              Match
}

// bits returns the prefix length for a family.
func (s *Set) bits(ipv6 bool) int {
	switch {
	case ipv6 && s.IPv6Bits != 0:
		return int(s.IPv6Bits)
	case ipv6:
		return 128
	case s.IPv4Bits != 0:
		return int(s.IPv4Bits)
	}
	return 32
}

// selector is the set without its metric, with equal lengths written equally.
func (s Set) selector() Set {
	s.Metric = 0
	if s.IPv4Bits == 32 {
		s.IPv4Bits = 0
	}
	if s.IPv6Bits == 128 {
		s.IPv6Bits = 0
	}
	return s
}

func (s *Set) check() error {
	switch {
	case s.Track > ByDst:
		return fmt.Errorf("set: unknown track %d", s.Track)
	case s.Metric >= metrics:
		return fmt.Errorf("set: unknown metric %d", s.Metric)
	case s.IPv4Bits > 32 || s.IPv6Bits > 128:
		return fmt.Errorf("set: prefix lengths %d and %d are beyond 32 and 128", s.IPv4Bits, s.IPv6Bits)
	}
	return nil
}

// Scope is how a set's counts are put together before they are judged.
type Scope uint8

const (
	Fleet    Scope = iota // the sum over all firewalls of one realm
	Firewall              // each firewall alone
	FleetMax              // the largest of the realm's firewalls: for firewalls in series, which see one flow twice
)

// Level is a value worth judging.
type Level struct {
	Set    Set
	Scope  Scope
	Window time.Duration // one of Config.Windows; ignored for Active
	Count  uint64        // at least 1
}

// Place is where something is counted: on one firewall, or, when Firewall is
// empty, in the whole fleet, and always within one realm.
type Place struct{ Realm, Firewall string }

// Crossing is a key that, by one batch, reached a level or is still at it.
type Crossing struct {
	Level int // its index in Config.Levels
	Place Place
	Key   netip.Prefix // of the set's length; a whole address has its full length
	Value uint64       // after the batch, at least the level's Count
	At    int64        // the batch's time in the stream, Unix ns
}

// The tag of a window.Key is the realm's number and the family of its address.
func tagOf(realm uint16, ipv6 bool) uint16 {
	if ipv6 {
		return realm<<1 | 1
	}
	return realm << 1
}

// maskKey makes a key of the first bits of an address.
func maskKey(a events.Addr, ipv6 bool, bits int, realm uint16) window.Key {
	tag := tagOf(realm, ipv6)
	switch {
	case !ipv6:
		return window.Key{Lo: a.Lo &^ (1<<(32-bits) - 1), Tag: tag}
	case bits <= 64:
		return window.Key{Hi: a.Hi &^ (1<<(64-bits) - 1), Tag: tag}
	}
	return window.Key{Hi: a.Hi, Lo: a.Lo &^ (1<<(128-bits) - 1), Tag: tag}
}

// keyFrom is the key of a prefix in a set; ok is false when the set has no keys
// of that length.
func keyFrom(p netip.Prefix, set *Set, realm uint16) (k window.Key, ok bool) {
	a, ipv6 := events.FromNetip(p.Addr())
	bits := p.Bits()
	if p.Addr().Is4In6() {
		bits -= 96
	}
	if !p.IsValid() || bits != set.bits(ipv6) {
		return k, false
	}
	return maskKey(a, ipv6, bits, realm), true
}

func prefixOf(k window.Key, set *Set) netip.Prefix {
	ipv6 := k.Tag&1 != 0
	return netip.PrefixFrom(events.Addr{Hi: k.Hi, Lo: k.Lo}.Netip(ipv6), set.bits(ipv6))
}

package count

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Track is the side of a flow whose address is the key.
type Track uint8

const (
	BySrc Track = iota // the original source: who opened the flow
	ByDst              // the original destination
)

func (t Track) String() string { return [...]string{"by_src", "by_dst"}[t&1] }

// Metric is what is counted.
type Metric uint8

const (
	Opened    Metric = iota // "new": NEW events within the window
	Ended                   // DESTROY events within the window
	Unreplied               // DESTROY events of flows that were never answered, within the window
	Active                  // flows in the table now; has no window
	metrics
)

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

// takes reports whether e belongs to the set. ICMP has no ports: its type and
// code, which stand in DstPort, match no port.
func (m Match) takes(e *events.Event) bool {
	if !m.set {
		return true
	}
	if !m.anyProto && e.Proto != m.proto {
		return false
	}
	if m.ports == "" {
		return true
	}
	if e.Proto == 1 || e.Proto == 58 {
		return false
	}
	for i := 0; i+1 < len(m.ports); i += 2 {
		if uint16(m.ports[i])<<8|uint16(m.ports[i+1]) == e.Orig.DstPort {
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

// Place is where something is counted: on one firewall, or, when Firewall is
// empty, in the whole fleet, and always within one realm.
type Place struct{ Realm, Firewall string }

// Hot is a key that, by the batch just applied, could have reached a level.
// The caller asks for its value and judges.
type Hot struct {
	Set   Set
	Scope Scope
	Place Place
	Key   netip.Prefix // of the set's length; a whole address has its full length
}

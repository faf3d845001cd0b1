package events

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// The roots of the subject tree, version 1. A NATS account is a tenant, so no
// tenant appears in a subject.
const (
	SubjectEvents    = "ct.v1.events"
	SubjectSnapshots = "ct.v1.snapshots"
	SubjectHealth    = "ct.v1.health"
	SubjectAlerts    = "ct.v1.alerts"
	SubjectCommand   = "ct.v1.cmd"
	SubjectPace      = "ct.v1.pace"
	SubjectAudit     = "ct.v1.audit"
	SubjectQuery     = "ct.v1.query"
)

// Actors of the audit stream that are no firewalls.
const (
	ActorResponder  = "responder"
	ActorOperator   = "operator"
	ActorAggregator = "aggregator" // commands nothing but a resync; records that its rules were changed
)

// ScopeFleet is the alert scope that sums all firewalls of one realm.
// RealmDefault is the realm of a firewall that was given none.
const (
	ScopeFleet       = "fleet"
	RealmDefault     = "default"
	realmScopePrefix = "realm_"
)

// KeyTable is the key of alerts about a whole table rather than an address.
const KeyTable = "table"

// maxName is the longest firewall, rule or realm name.
const maxName = 63

// CheckName returns nil when s may name a firewall, a rule or a realm: it
// matches [a-z0-9][a-z0-9_-]{0,62}, which is safe as one subject token.
func CheckName(s string) error {
	switch {
	case s == "":
		return fmt.Errorf("name is empty")
	case len(s) > maxName:
		return fmt.Errorf("name %.20q… is %d characters long, at most %d are allowed", s, len(s), maxName)
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '-' && c != '_') {
			return fmt.Errorf("name %q: %q at position %d is not allowed (a-z, 0-9, and after the first character - and _)", s, c, i+1)
		}
	}
	return nil
}

// CheckFirewall is [CheckName] and refuses the names that mean something else
// in a subject: fleet, aggregator, responder, operator and the prefix realm_.
func CheckFirewall(s string) error {
	if err := CheckName(s); err != nil {
		return fmt.Errorf("firewall %w", err)
	}
	if s == ScopeFleet || s == ActorResponder || s == ActorOperator || s == ActorAggregator || strings.HasPrefix(s, realmScopePrefix) {
		return fmt.Errorf("firewall name %q is reserved", s)
	}
	return nil
}

// maxRealm leaves room for what is put around a realm's name where it becomes
// one token: realm_<name>_z65535.
const maxRealm = maxName - len(realmScopePrefix) - len("_z65535")

// checkRealmOrNone is for messages that may leave the realm out, or name one of a
// conntrack zone.
func checkRealmOrNone(s string) error {
	if s == "" {
		return nil
	}
	if err := CheckName(s); err != nil {
		return fmt.Errorf("realm: %w", err)
	}
	return nil
}

// CheckRealm is [CheckName] for the realm that a firewall is given: at most 50
// characters, and without an ending such as _z7, which would make it the realm
// of conntrack zone 7 of another one, see [ZoneRealm].
func CheckRealm(s string) error {
	if err := CheckName(s); err != nil {
		return fmt.Errorf("realm %w", err)
	}
	if len(s) > maxRealm {
		return fmt.Errorf("realm name %q is %d characters long, at most %d are allowed", s, len(s), maxRealm)
	}
	if i := strings.LastIndex(s, "_z"); i >= 0 && i+2 < len(s) && strings.Trim(s[i+2:], "0123456789") == "" {
		return fmt.Errorf("realm name %q ends like the realm of a conntrack zone (%s)", s, s[i:])
	}
	return nil
}

// ZoneOf is the inverse of [ZoneRealm]: the conntrack zone that realm stands
// for on a firewall of the realm own; ok is false when realm is another one.
func ZoneOf(realm, own string) (zone uint16, ok bool) {
	if realm == own {
		return 0, true
	}
	digits, found := strings.CutPrefix(realm, own+"_z")
	n, err := strconv.ParseUint(digits, 10, 16)
	if !found || err != nil || ZoneRealm(own, uint16(n)) != realm {
		return 0, false
	}
	return uint16(n), true
}

// ZoneRealm is the realm of a conntrack zone: a non-zero zone is a realm of
// its own.
func ZoneRealm(realm string, zone uint16) string {
	if zone == 0 {
		return realm
	}
	return realm + "_z" + strconv.Itoa(int(zone))
}

// RealmScope is the alert scope of the fleet within one realm: "fleet" in the
// default realm, "realm_<name>" in any other.
func RealmScope(realm string) string {
	if realm == RealmDefault {
		return ScopeFleet
	}
	return realmScopePrefix + realm
}

// Subjects of one firewall.
func EventsSubject(firewall string) string    { return SubjectEvents + "." + firewall }
func SnapshotsSubject(firewall string) string { return SubjectSnapshots + "." + firewall }
func HealthSubject(firewall string) string    { return SubjectHealth + "." + firewall }

// CommandSubject is where a firewall listens for one verb: flush, block,
// unblock, resync or status.
func CommandSubject(firewall, verb string) string {
	return SubjectCommand + "." + firewall + "." + verb
}

// AuditSubject is where actor (a firewall, "responder" or "operator") records
// that it did verb.
func AuditSubject(actor, verb string) string { return SubjectAudit + "." + actor + "." + verb }

// QuerySubject is where the aggregator answers one kind of question.
func QuerySubject(kind string) string { return SubjectQuery + "." + kind }

// AlertSubject names an alert: state is firing or resolved, scope a firewall,
// "fleet" or "realm_<name>", key what [SubjectKey] returns.
func AlertSubject(state, rule, scope, key string) string {
	return SubjectAlerts + "." + state + "." + rule + "." + scope + "." + key
}

// SubjectAlert returns what the alerts on a subject are about: rule, scope and key,
// whether they fire or are resolved; "" for a subject that is none of theirs.
func SubjectAlert(subject string) string {
	tail := SubjectTail(subject, SubjectAlerts)
	if len(tail) != 4 {
		return ""
	}
	return strings.Join(tail[1:], ".")
}

// SubjectTail returns the tokens of subject after root, or nil when subject is
// not below root.
func SubjectTail(subject, root string) []string {
	rest, ok := strings.CutPrefix(subject, root+".")
	if !ok {
		return nil
	}
	return strings.Split(rest, ".")
}

// SubjectFirewall returns the firewall that a subject of the form
// root.<firewall> belongs to. The subject says who sent a message, never the
// payload: the server enforces who may publish where.
func SubjectFirewall(subject, root string) (string, error) {
	tail := SubjectTail(subject, root)
	if len(tail) == 0 {
		return "", fmt.Errorf("subject %q is not below %s", subject, root)
	}
	return tail[0], CheckFirewall(tail[0])
}

// SubjectKey writes an address or a prefix as one subject token: 203-0-113-7,
// IPv6 as eight groups of four digits joined by -, and _24 after a prefix that
// is not a single address.
func SubjectKey(p netip.Prefix) string {
	p = unmap(p)
	a := p.Addr()
	var b []byte
	if a.Is4() {
		o := a.As4()
		for i, v := range o {
			if i > 0 {
				b = append(b, '-')
			}
			b = strconv.AppendUint(b, uint64(v), 10)
		}
	} else {
		o := a.As16()
		for i := 0; i < 16; i += 2 {
			if i > 0 {
				b = append(b, '-')
			}
			b = hex.AppendEncode(b, o[i:i+2])
		}
	}
	if p.Bits() != a.BitLen() {
		b = append(b, '_')
		b = strconv.AppendInt(b, int64(p.Bits()), 10)
	}
	return string(b)
}

// unmap turns an IPv4-mapped IPv6 prefix into the IPv4 prefix that it is.
func unmap(p netip.Prefix) netip.Prefix {
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p
}

// FormatPrefix writes p the way keys stand in messages: a single address
// without its length, anything else as a prefix. [ParsePrefix] reads it.
func FormatPrefix(p netip.Prefix) string {
	if p = unmap(p); p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// ParseSubjectKey is the inverse of [SubjectKey], and refuses any other
// spelling: one key is one subject.
func ParseSubjectKey(s string) (netip.Prefix, error) {
	text, bits, hasBits := strings.Cut(s, "_")
	sep := "."
	if strings.Count(text, "-") == 7 {
		sep = ":"
	}
	a, err := netip.ParseAddr(strings.ReplaceAll(text, "-", sep))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("subject key %.60q is no address", s)
	}
	n := a.BitLen()
	if hasBits {
		if n, err = strconv.Atoi(bits); err != nil {
			return netip.Prefix{}, fmt.Errorf("subject key %.60q: bad prefix length", s)
		}
	}
	p, err := a.Prefix(n)
	if err != nil || SubjectKey(p) != s {
		return netip.Prefix{}, fmt.Errorf("subject key %.60q is no prefix as subjects spell it", s)
	}
	return p, nil
}

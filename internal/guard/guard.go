// Package guard decides, on the firewall and by itself, whether a command may
// be carried out: whatever the bus says, whoever sent it. It is pure: a command
// and the time go in, refusals come out; it touches neither kernel nor bus.
//
// The checks, in the order they are made: deletion, or blocking, is enabled; the
// command is signed by a key that is trusted for its verb; it is well-formed; it is
// for this firewall, its realm and this run of its producer; it is fresh by the
// firewall's own clock; what this host cannot live without is known; it was not
// seen before; each prefix is no wider than allowed, and none is protected or on
// the live allowlist; there were not too many within the last minute.
//
// A flush of a prefix that merely contains such an address is carried out around
// it, entry by entry (see [Guard.Keep]). A block cannot go round anything: it is
// refused. What an alert says must hold in this firewall's own table, too (see
// [Guard.Claim]). To end a block harms nobody, so of all this an unblock needs
// only what shows that it is meant for here and now, and by whom.
package guard

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Reasons of refusals, as receipts and metrics show them.
const (
	NotEnabled    = "not-enabled"      // the producer runs without --allow-flush, or --allow-block
	NotReady      = "not-ready"        // this host's own addresses, or the server's clock, are not known yet
	WrongFirewall = "wrong-firewall"   // the command names another firewall
	WrongRealm    = "wrong-realm"      // it is for entries of another realm
	InZone        = "zone"             // a block for a conntrack zone, which would hit others too
	WrongBoot     = "wrong-boot"       // it was meant for another run of the producer
	Expired       = "expired"          // its time is over
	WrongTime     = "wrong-time"       // it was made at another time, by the server's clock
	TooFarAhead   = "too-far-ahead"    // it would live longer than MaxLife
	Replayed      = "replayed"         // a command of this id was carried out already
	TooWide       = "prefix-too-wide"  // the prefix is wider than this firewall allows
	RateLimited   = "rate-limited"     // as many were named within the last minute as this firewall allows
	Protected     = "protected"        // the address is listed as one that must not be touched
	Allowlisted   = "allowlisted"      // the address is on the live allowlist
	Unread        = "allowlist-unread" // the live allowlist is not known
	Malformed     = "malformed"        // it names no address, or says what makes no sense
	Unsigned      = "unsigned"         // nobody signed it
	Untrusted     = "untrusted-key"    // somebody did who is not trusted here
	NotForVerb    = "not-for-verb"     // somebody did who may not ask for this
	Forged        = "bad-signature"    // the signature belongs to something else
)

// MaxLife is how far ahead a command may expire.
const MaxLife = 30 * time.Second

// MaxSkew is how far from the present a command may have been made, by the server's
// clock. An expiry alone does not do: who asks for a signature learns the firewall's
// clock from the bus, and may be told a later one.
const MaxSkew = 2 * time.Minute

// Config is what the operator of this firewall allows.
type Config struct {
	Firewall string
	Realm    string
	Boot     string
	// Now is what the server's clock says, the zero time while that is not known; nil:
	// commands are not judged by it.
	Now        func() time.Time
	Trust      *seal.Trust // nil: nobody
	AllowFlush bool
	AllowBlock bool
	// Limits can be changed later, see [Guard.Limit].
	Limits
	// Allowlist returns the live allowlist of a realm, or why it is not known. Nil:
	// there is none.
	Allowlist func(realm string) (*allowlist.List, error)
	// MinBits are the widest prefixes that may be flushed or blocked.
	MinBits4, MinBits6 int
}

// Limits are what an operator may change while it runs.
type Limits struct {
	Protect []netip.Prefix
	// MinLocal is how many entries must be here of what an alert's command names.
	MinLocal uint64
	// PerMinute is how many addresses and prefixes flushes and blocks may name within
	// any minute, whoever asks for them: what a centre that was taken over can do at
	// most. 0: no limit.
	PerMinute int
}

// Default widths.
const (
	DefaultMinBits4 = 24
	DefaultMinBits6 = 64
)

// Guard is safe for concurrent use.
type Guard struct {
	cfg Config

	mu        sync.Mutex
	limits    Limits
	host      []allowlist.Entry // what Protect was told
	protected *allowlist.List
	ready     bool             // Protect was told what this host cannot live without
	seen      map[string]int64 // id → expiry
	recent    []int64          // when each of the addresses of the last minute was allowed
}

// New returns a guard that protects cfg.Protect and loopback until
// [Guard.Protect] tells it what else.
func New(cfg Config) *Guard {
	if cfg.MinBits4 == 0 {
		cfg.MinBits4 = DefaultMinBits4
	}
	if cfg.MinBits6 == 0 {
		cfg.MinBits6 = DefaultMinBits6
	}
	if cfg.Trust == nil {
		cfg.Trust, _ = seal.OpenTrust("") // reads nothing
	}
	g := &Guard{cfg: cfg, limits: cfg.Limits, seen: map[string]int64{}}
	g.Protect(nil)
	g.ready = false
	return g
}

// Protect replaces the host's own entries: its addresses, gateways, resolvers,
// NATS servers and SSH sessions, which may change while it runs.
func (g *Guard) Protect(host []allowlist.Entry) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.host, g.ready = host, true
	g.list()
}

// Limit puts other limits in force. A command that was allowed before is not judged again.
func (g *Guard) Limit(l Limits) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limits = l
	g.list()
}

// list makes the list of who is protected.
func (g *Guard) list() {
	entries := append([]allowlist.Entry{
		{Prefix: netip.MustParsePrefix("127.0.0.0/8"), Why: "loopback"},
		{Prefix: netip.MustParsePrefix("::1/128"), Why: "loopback"},
	}, g.host...)
	entries = append(entries, allowlist.Prefixes("--protect", g.limits.Protect...)...)
	g.protected = allowlist.New(entries...)
}

// Verdict is the outcome of a check: empty means yes.
type Verdict struct {
	Reason string // one of the constants
	Text   string // for a person
	Zone   uint16 // of an allowed command: the conntrack zone whose entries are meant
	// Actor and Who are whose command it is: the role and the name that the trust
	// file gives to its key. Where everybody is trusted, Actor is what the command
	// says.
	Actor, Who string

	allow *allowlist.List // as it was when the command was allowed
	at    int64           // when that was
}

// Sealed is a command as it came: its seal is over the subject and the bytes.
type Sealed struct {
	Seal    seal.Seal
	Subject string
	Body    []byte
}

// sealReasons say which refusal a seal that is not accepted leads to.
var sealReasons = []struct {
	err    error
	reason string
}{{seal.ErrUnsigned, Unsigned}, {seal.ErrUntrusted, Untrusted}, {seal.ErrVerb, NotForVerb}, {seal.ErrForged, Forged}}

// Identify says whose command it is, or refuses it: what costs anything is done
// for those only who may ask. A dry run changes nothing; it needs neither a
// signature nor permission, but for that of an unblock: what is blocked can only be
// told where blocks are enabled.
func (g *Guard) Identify(c *events.Command, s Sealed) Verdict {
	v := Verdict{Actor: c.Actor}
	deletes := c.Verb == events.VerbFlush || c.Verb == events.VerbBlock && c.Flush
	missing := ""
	switch {
	case c.Verb == events.VerbUnblock && !g.cfg.AllowBlock, c.Verb == events.VerbBlock && !g.cfg.AllowBlock && !c.DryRun:
		missing = "--allow-block"
	case deletes && !g.cfg.AllowFlush && !c.DryRun:
		missing = "--allow-flush"
	}
	if missing != "" {
		v.Reason, v.Text = NotEnabled, "this producer runs without "+missing
		return v
	}
	party, err := g.cfg.Trust.Verify(s.Seal, c.Verb, s.Subject, s.Body)
	if err == nil && deletes && c.Verb != events.VerbFlush {
		// A key for blocks alone must not delete by way of one.
		_, err = g.cfg.Trust.Verify(s.Seal, events.VerbFlush, s.Subject, s.Body)
	}
	switch {
	case err == nil && !g.cfg.Trust.Open():
		v.Actor, v.Who = party.Role, party.Name
	case err != nil && !c.DryRun:
		v.Text = err.Error()
		for _, r := range sealReasons {
			if errors.Is(err, r.err) {
				v.Reason = r.reason
			}
		}
	}
	return v
}

// Allowed reports whether the command may be carried out.
func (v Verdict) Allowed() bool { return v.Reason == "" }

// Check judges a command of whom Identify named, at now (ns, the firewall's
// monotonic clock). An allowed command is remembered: its id is refused from then
// on, unless it was a dry run.
func (g *Guard) Check(v Verdict, c *events.Command, now int64) (Verdict, []netip.Prefix) {
	if !v.Allowed() {
		return v, nil
	}
	no := func(reason, format string, args ...any) (Verdict, []netip.Prefix) {
		v.Reason, v.Text = reason, fmt.Sprintf(format, args...)
		return v, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	prefixes, err := wellFormed(c)
	zone, ours := uint16(0), true
	if c.Realm != "" {
		zone, ours = events.ZoneOf(c.Realm, g.cfg.Realm)
	}
	harms := c.Verb != events.VerbUnblock
	switch {
	case err != nil:
		return no(Malformed, "%v", err)
	case c.Firewall != g.cfg.Firewall:
		return no(WrongFirewall, "the command is for %s, this is %s", c.Firewall, g.cfg.Firewall)
	case !ours:
		return no(WrongRealm, "the command is for realm %s, this firewall is of %s", c.Realm, g.cfg.Realm)
	case zone != 0 && c.Verb != events.VerbFlush:
		return no(InZone, "realm %s is a conntrack zone: packets are dropped before their zone is known, so that a block hits the same addresses of other realms", c.Realm)
	case c.Boot != g.cfg.Boot:
		return no(WrongBoot, "the command is for another run of this producer")
	case c.Expires <= now:
		// Clamped: an expiry may be any number.
		return no(Expired, "the command expired %s ago", time.Duration(now-max(c.Expires, 0)).Round(time.Millisecond))
	case c.Expires > now+int64(MaxLife):
		return no(TooFarAhead, "the command would live for %s, at most %s is allowed", time.Duration(c.Expires-now).Round(time.Second), MaxLife)
	case harms && !g.ready:
		return no(NotReady, "what this host cannot live without is not known yet")
	}
	v.allow = &allowlist.List{}
	if harms && g.cfg.Allowlist != nil {
		if v.allow, err = g.cfg.Allowlist(cmp.Or(c.Realm, g.cfg.Realm)); err != nil {
			return no(Unread, "the live allowlist is not known: %v", err)
		}
	}
	if g.cfg.Now != nil {
		switch server := g.cfg.Now(); {
		case server.IsZero():
			return no(NotReady, "what the server's clock says is not known yet")
		case server.Sub(time.UnixMilli(c.Issued)).Abs() > MaxSkew:
			return no(WrongTime, "the command was made at another time: %s", time.UnixMilli(c.Issued).UTC().Format(time.DateTime))
		}
	}
	for id, expires := range g.seen {
		if expires <= now {
			delete(g.seen, id)
		}
	}
	if harms && owes(v.Actor, c) && len(prefixes) > 1 {
		return no(Malformed, "addresses: %d, a command that is not an operator's own names one: what is here of one must not vouch for another", len(prefixes))
	}
	if _, ok := g.seen[c.ID]; ok {
		return no(Replayed, "a command with this id was carried out already")
	}
	for _, p := range prefixes {
		if reason, text := g.spare(v.allow, c.Verb, p); reason != "" {
			return no(reason, "%s", text)
		}
	}
	if !c.DryRun {
		if harms && !g.take(len(prefixes), now) {
			return no(RateLimited, "no more than %d addresses and prefixes within a minute are allowed here", g.limits.PerMinute)
		}
		// For as long as any command may live: the same one with a later end is the
		// same one.
		g.seen[c.ID] = max(c.Expires, now+int64(MaxLife))
	}
	v.Zone, v.at = zone, now
	return v, prefixes
}

// wellFormed returns the prefixes of a command that makes sense.
func wellFormed(c *events.Command) ([]netip.Prefix, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	prefixes, err := c.Prefixes()
	if err != nil {
		return nil, err
	}
	towards, err := c.TowardsPrefix()
	if err != nil {
		return nil, err
	}
	if towards.IsValid() && !slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Addr().Is4() == towards.Addr().Is4() }) {
		return nil, fmt.Errorf("towards %s: none of the addresses is of its family", events.FormatPrefix(towards))
	}
	return prefixes, nil
}

// unblockable are what no host does without, whoever its peers are: routers find
// one another by them, and IPv6 its neighbours. A flush does not hurt them.
var unblockable = allowlist.New(slices.Concat(
	allowlist.Prefixes("unspecified", netip.MustParsePrefix("0.0.0.0/8"), netip.MustParsePrefix("::/128")),
	allowlist.Prefixes("link-local", netip.MustParsePrefix("169.254.0.0/16"), netip.MustParsePrefix("fe80::/10")),
	allowlist.Prefixes("multicast", netip.MustParsePrefix("224.0.0.0/4"), netip.MustParsePrefix("ff00::/8")),
	allowlist.Prefixes("broadcast", netip.MustParsePrefix("255.255.255.255/32")),
)...)

// spare names the reason why a prefix must be left alone, or "".
func (g *Guard) spare(allow *allowlist.List, verb string, p netip.Prefix) (reason, text string) {
	least := g.cfg.MinBits4
	if p.Addr().Is6() {
		least = g.cfg.MinBits6
	}
	if p.Bits() < least {
		return TooWide, fmt.Sprintf("%s is wider than /%d, the widest that is allowed here", p, least)
	}
	if verb == events.VerbUnblock {
		return "", ""
	}
	if e, ok := g.protected.Covers(p); ok {
		return Protected, fmt.Sprintf("%s is protected: %s", p, e.Why)
	}
	if e, ok := allow.Covers(p); ok {
		return Allowlisted, fmt.Sprintf("%s is on the allowlist: %s (%s)", p, e.Prefix, e.Why)
	}
	if verb != events.VerbBlock {
		return "", ""
	}
	if e, ok := unblockable.Covers(p); ok {
		return Protected, fmt.Sprintf("%s is protected: %s", p, e.Why)
	}
	for _, list := range []*allowlist.List{g.protected, unblockable} {
		if e, ok := list.Within(p); ok {
			return Protected, fmt.Sprintf("%s within %s is protected, and a block cannot go round it: %s", e.Prefix, p, e.Why)
		}
	}
	if e, ok := allow.Within(p); ok {
		return Allowlisted, fmt.Sprintf("%s within %s is on the allowlist, and a block cannot go round it: %s", e.Prefix, p, e.Why)
	}
	return "", ""
}

// GiveBack returns what an allowed command took of the rate, when its claim does not
// hold: forged sources must not use up what true ones, and operators, may need.
func (g *Guard) GiveBack(v Verdict) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if i := slices.Index(g.recent, v.at); i >= 0 {
		g.recent = slices.Delete(g.recent, i, i+1) // who owes a claim names one address
	}
}

// take uses up n of the addresses that are allowed within a minute.
func (g *Guard) take(n int, now int64) bool {
	if g.limits.PerMinute == 0 {
		return true
	}
	g.recent = slices.DeleteFunc(g.recent, func(at int64) bool { return now-at >= int64(time.Minute) })
	if len(g.recent)+n > g.limits.PerMinute {
		return false
	}
	for range n {
		g.recent = append(g.recent, now)
	}
	return true
}

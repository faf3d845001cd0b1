package events

import (
	"fmt"
	"net/netip"
)

// Verbs of commands.
const (
	VerbFlush   = "flush"
	VerbBlock   = "block"
	VerbUnblock = "unblock"
	VerbResync  = "resync"
	VerbStatus  = "status"
)

// Sides of a flow that an address is matched against: its original source, its
// original destination, or either.
const (
	BySrc    = "src"
	ByDst    = "dst"
	ByEither = "either"
)

// Command asks one firewall for something, on ct.v1.cmd.<firewall>.<verb>. The
// firewall decides by itself whether it may.
type Command struct {
	Head     `msgpack:",inline"`
	ID       string `msgpack:"id" json:"id"` // of an alert's command: a hash of alert, firewall and action, so that two responders make one
	Verb     string `msgpack:"verb" json:"verb"`
	Firewall string `msgpack:"firewall" json:"firewall"`
	Boot     string `msgpack:"boot" json:"boot"` // the run of the producer that it is meant for
	// Expires is when the command is void, in ns of the firewall's own
	// monotonic clock (known from its health), at most 30 s ahead.
	Expires int64 `msgpack:"expires" json:"expires"`
	// Issued is when it was made, Unix ms by the server's clock. Expires is learned
	// from whoever says that he is the firewall; this is not.
	Issued int64  `msgpack:"issued" json:"issued"`
	Actor  string `msgpack:"actor" json:"actor"` // responder or operator
	Reason string `msgpack:"reason" json:"reason"`
	Alert  string `msgpack:"alert,omitempty" json:"alert,omitempty"` // the alert behind it
	Rule   string `msgpack:"rule,omitempty" json:"rule,omitempty"`

	// Realm is whose entries are meant: the firewall's own (also when empty),
	// or that of one of its conntrack zones. A flush never crosses realms.
	Realm     string   `msgpack:"realm,omitempty" json:"realm,omitempty"`
	Addresses []string `msgpack:"addresses,omitempty" json:"addresses,omitempty"` // addresses or prefixes
	By        string   `msgpack:"by,omitempty" json:"by,omitempty"`               // src, dst or either
	DryRun    bool     `msgpack:"dry_run,omitempty" json:"dry_run,omitempty"`
	// Unanswered: only entries that have had no answer (TCP: without a completed
	// handshake) are meant.
	Unanswered bool `msgpack:"unanswered,omitempty" json:"unanswered,omitempty"`
	// Towards: only entries whose other side is this address, or lies within this
	// prefix, are meant.
	Towards string `msgpack:"towards,omitempty" json:"towards,omitempty"`
	// Most is how many entries may be deleted; 0: no limit.
	Most uint64 `msgpack:"most,omitempty" json:"most,omitempty"`

	// BlockS is for how many seconds a block is to last. Flush: what the blocked
	// addresses have in the table is deleted then, by either side.
	BlockS int64 `msgpack:"block_s,omitempty" json:"block_s,omitempty"`
	Flush  bool  `msgpack:"flush,omitempty" json:"flush,omitempty"`
}

// MaxCommandAddresses bounds one flush.
const MaxCommandAddresses = 1024

func (c *Command) Validate() error {
	if err := CheckFirewall(c.Firewall); err != nil {
		return err
	}
	if err := oneOf("verb", c.Verb, VerbFlush, VerbBlock, VerbUnblock, VerbResync, VerbStatus); err != nil {
		return err
	}
	if err := checkRealmOrNone(c.Realm); err != nil {
		return err
	}
	if len(c.Addresses) > MaxCommandAddresses {
		return fmt.Errorf("addresses: %d, at most %d are allowed", len(c.Addresses), MaxCommandAddresses)
	}
	if err := c.validateDeed(); err != nil {
		return err
	}
	return checkText([2]string{"id", c.ID}, [2]string{"boot", c.Boot}, [2]string{"actor", c.Actor},
		[2]string{"reason", c.Reason}, [2]string{"alert", c.Alert}, [2]string{"rule", c.Rule})
}

// validateDeed checks what commands that change something need.
func (c *Command) validateDeed() error {
	switch c.Verb {
	case VerbFlush:
		if err := oneOf("by", c.By, BySrc, ByDst, ByEither); err != nil {
			return err
		}
	case VerbBlock:
		// Who may be forged would be blocked in another's name.
		if c.Unanswered || c.Towards != "" {
			return fmt.Errorf("a block is of all that an address sends: neither unanswered nor towards goes with it")
		}
		if c.BlockS < 1 || c.BlockS > MaxBlockS {
			return fmt.Errorf("block_s: %d is not within 1 to %d", c.BlockS, MaxBlockS)
		}
	case VerbUnblock:
	default:
		return nil
	}
	if c.ID == "" {
		return fmt.Errorf("id: is empty")
	}
	if _, err := c.TowardsPrefix(); err != nil {
		return err
	}
	_, err := c.Prefixes()
	return err
}

// MaxBlockS is the longest block, in seconds: a day. What is to last longer is a
// rule, which somebody should write.
const MaxBlockS = 24 * 60 * 60

// TowardsPrefix returns Towards parsed; the zero prefix where it is empty.
func (c *Command) TowardsPrefix() (netip.Prefix, error) {
	if c.Towards == "" {
		return netip.Prefix{}, nil
	}
	p, err := ParsePrefix(c.Towards)
	if err != nil {
		return p, fmt.Errorf("towards: %w", err)
	}
	return p, nil
}

// Prefixes returns Addresses parsed; a single address is a prefix of its full
// length.
func (c *Command) Prefixes() ([]netip.Prefix, error) {
	if len(c.Addresses) == 0 {
		return nil, fmt.Errorf("addresses: is empty")
	}
	out := make([]netip.Prefix, 0, len(c.Addresses))
	for _, s := range c.Addresses {
		p, err := ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("addresses: %w", err)
		}
		out = append(out, p)
	}
	return out, nil
}

// ParsePrefix reads "203.0.113.7", "203.0.113.0/24" or the IPv6 forms. An
// IPv4-mapped IPv6 address is taken as the IPv4 address that it is; a zone, an
// address with bits beyond its prefix and a mapped prefix are refused.
func ParsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%.60q: an address with a zone is not allowed", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, fmt.Errorf("%.60q is neither an address nor a prefix", s)
	case p.Addr().Is4In6():
		return netip.Prefix{}, fmt.Errorf("%.60q: write the IPv4 prefix", s)
	case p.Masked() != p:
		return netip.Prefix{}, fmt.Errorf("%.60q has bits beyond its length, %s is meant?", s, p.Masked())
	}
	return p, nil
}

package count

import (
	"net/netip"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Config of a [Counter].
type Config struct {
	// Windows are kept for every set but Active: 1 s to 1 h each.
	Windows []time.Duration
	// Sets to keep beside those that are always kept.
	Sets []Set
	// Levels are the values that someone judges: Apply reports a key as hot
	// when it could have reached one. A level's set need not be in Sets too.
	Levels []Level
	// MaxKeys bounds each table: one set on one firewall, or one set in one
	// realm. So a flood through one firewall cannot push out the others' keys.
	// 0 means DefaultMaxKeys.
	MaxKeys int
	// MaxFirewalls bounds how many senders are known at a time; batches of
	// others are refused. 0 means DefaultMaxFirewalls.
	MaxFirewalls int
}

// Level is a value worth judging.
type Level struct {
	Set    Set
	Scope  Scope
	Window time.Duration // one of Config.Windows; ignored for Active
	Count  uint64        // at least 1
}

// Defaults of Config, and the bound on zones.
const (
	DefaultMaxKeys      = 1 << 20
	DefaultMaxFirewalls = 4096
	// MaxZones is how many non-zero conntrack zones of one firewall are
	// counted; events of further ones are refused, and counted as such.
	MaxZones = 256
)

// Counter is the fleet's counts. It belongs to one goroutine.
type Counter struct{}

// New returns an empty counter, or an error naming what is wrong with cfg.
func New(cfg Config) (*Counter, error) { return &Counter{}, nil }

// Apply counts a batch of ct.v1.events.<firewall>. The name comes from the
// subject, stream is the stream's timestamp of the message in ns. It returns
// the keys that the batch made hot, each once; they are valid until the next
// call. A duplicate or a batch too old to tell is no error and changes nothing
// but the account; an error means that the batch was refused and counted so.
func (c *Counter) Apply(firewall string, b *events.Batch, stream int64) ([]Hot, error) {
	return nil, nil
}

// ApplySnapshot does the same with a batch of ct.v1.snapshots.<firewall>. Keys
// become hot when the snapshot is complete and thereby visible.
func (c *Counter) ApplySnapshot(firewall string, b *events.Batch, stream int64) ([]Hot, error) {
	return nil, nil
}

// Refuse counts a message of firewall that could not be decoded.
func (c *Counter) Refuse(firewall string) {}

// Now is the fleet's clock in Unix ns: the largest stream time seen, or what
// Advance made of it.
func (c *Counter) Now() int64 { return 0 }

// Advance moves the clock on (never back) and reclaims what has expired.
// Callers do so from local time a few times a second, so that counts fall when
// no batch arrives; in a replay they do not. Snapshots that waited for a live
// batch that did not come may become visible: their hot keys are returned.
func (c *Counter) Advance(now int64) []Hot { return nil }

// Value is the count of key now. For Active known is false while no firewall
// of the place has a complete snapshot; all other values are known. window is
// ignored for Active and must otherwise be one of Config.Windows; a set, place
// or window that is not kept has the value 0, unknown.
func (c *Counter) Value(set Set, scope Scope, place Place, key netip.Prefix, window time.Duration) (value uint64, known bool) {
	return 0, false
}

// Shares is what each firewall contributes to key in the realm; firewalls
// without any are left out.
func (c *Counter) Shares(set Set, realm string, key netip.Prefix, window time.Duration) map[string]uint64 {
	return nil
}

// Entry is one row of Top.
type Entry struct {
	Key   netip.Prefix
	Value uint64
}

// Top returns the largest keys of a place, largest first, ties by key.
func (c *Counter) Top(set Set, place Place, window time.Duration, limit int) []Entry { return nil }

// UnrepliedShare is the part, 0 to 1, of key's flows that ended within the
// window without an answer; nil when none has ended.
func (c *Counter) UnrepliedShare(track Track, place Place, key netip.Prefix, window time.Duration) *float64 {
	return nil
}

// Sample returns the most frequent peers (the other side's addresses) and
// destination ports of key among the realm's recent NEW events, largest first,
// at most limit each. It is a sample: the ring holds the last few thousand.
func (c *Counter) Sample(track Track, place Place, key netip.Prefix, limit int) (peers, ports []events.Share) {
	return nil, nil
}

// Unknown names the firewalls of a place whose active count is not known, in
// order.
func (c *Counter) Unknown(place Place) []string { return nil }

// Lossy reports whether a firewall of the place lost events, as its producer
// or a gap says, within the window before now.
func (c *Counter) Lossy(place Place, window time.Duration) bool { return false }

// Partial reports whether counting began less than window ago.
func (c *Counter) Partial(window time.Duration) bool { return true }

// Places lists where something is counted: every realm, then every firewall in
// every realm that it has events of, in order.
func (c *Counter) Places() []Place { return nil }

// Account is what is known of one sender and of how completely it was heard.
// All numbers are since this counter first heard it, over all its boots.
type Account struct {
	Firewall string
	Realm    string      // of its newest boot
	Boot     events.Boot // the newest
	Boots    uint64      // runs of its producer seen
	Rivals   bool        // two producers use the name at the same time

	Seq        uint64 // highest live sequence of the newest boot
	Events     uint64 // counted from live batches
	Batches    uint64 // live batches applied
	Lost       uint64 // as its producers know
	Missing    uint64 // sent, by the producers' totals, but never arrived here
	Duplicates uint64 // batches seen before
	TooOld     uint64 // batches too far behind to tell whether they were seen
	Refused    uint64 // messages that could not be read or made no sense
	ZoneEvents uint64 // events refused because of MaxZones
	LastHeard  int64  // stream time of the newest batch, Unix ns
	LastLoss   int64  // stream time when Lost or Missing last grew, 0: never

	Epoch       uint32 // the epoch that Active counts
	Active      uint64 // flows held, all realms and zones
	ActiveKnown bool   // a snapshot has been completed
	// Approximate: the active count may differ from the table until the next
	// complete snapshot (events of its epoch are missing, or its producer
	// restarted). A resync mends it.
	Approximate bool
	// Pending: a newer snapshot is on its way here. Since is when it began, or
	// when the first sign of it was seen; one that takes long was lost.
	Pending      bool
	PendingSince int64
}

// Firewalls returns every sender's account by name.
func (c *Counter) Firewalls() []Account { return nil }

// Account returns the account of one sender.
func (c *Counter) Account(firewall string) (Account, bool) { return Account{}, false }

// Forget drops a firewall and all it contributed: its active flows leave the
// fleet's sum at once, its events leave the fleet's windows as they expire.
func (c *Counter) Forget(firewall string) {}

// Stats is what the counter holds, for metrics.
type Stats struct {
	Firewalls, Places int
	Keys              int    // in all tables
	Bytes             int    // of all tables
	Evicted           uint64 // keys pushed out at MaxKeys
	TooLate           uint64 // events older than the longest window when they came
}

// Stats sums over all tables; it costs a pass over the places.
func (c *Counter) Stats() Stats { return Stats{} }

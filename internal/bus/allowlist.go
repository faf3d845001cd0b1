package bus

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/seal"
)

// Allowlist is the live allowlist as the bus has it.
type Allowlist struct {
	mirror *Mirror
	live   *allowlist.Live
}

// NewAllowlist returns the live allowlist of those whom trust names. Entries that are
// not believed go to refuse; see [allowlist.Live] for what becomes of them.
func (c *Conn) NewAllowlist(trust *seal.Trust, refuse func(kind, subject string, err error)) *Allowlist {
	live := allowlist.NewLive(trust)
	return &Allowlist{live: live, mirror: c.NewMirror(BucketAllowlist, Reflection{
		Begin: live.Begin,
		Put: func(m Msg) {
			if err := live.Put(BucketKey(BucketAllowlist, m.Subject), m.Subject, m.Data, m.Seal); err != nil {
				refuse("allowlist entry", m.Subject, err)
			}
		},
		Done: live.Done,
	})}
}

// Run follows the entries until ctx ends.
func (a *Allowlist) Run(ctx context.Context) error { return a.mirror.Run(ctx) }

// Again reads all entries anew: whose are believed may have changed.
func (a *Allowlist) Again() { a.mirror.Again() }

// Current returns nil when all entries are known; see [Mirror.Current].
func (a *Allowlist) Current() error { return a.mirror.Current() }

// Now is what the server's clock says, by which entries end; see [Mirror.Now].
func (a *Allowlist) Now() time.Time { return a.mirror.Now() }

// List is what is in force in a realm, or why that is not known: whoever has not
// read it must not act.
func (a *Allowlist) List(realm string) (*allowlist.List, error) {
	if err := a.Current(); err != nil {
		return nil, err
	}
	return a.Heard(realm), nil
}

// Heard is List as far as it was heard: enough to show, not to act.
func (a *Allowlist) Heard(realm string) *allowlist.List { return a.live.List(realm, a.Now()) }

package responder

import (
	"fmt"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/bus"
)

// allowed is the live allowlist of a realm, or why it is not known.
func (r *Responder) allowed(realm string) (*allowlist.List, error) {
	if err := r.mirror.Current(); err != nil {
		return nil, err
	}
	return r.allow.List(realm, r.mirror.Now()), nil
}

// allowEntry takes an entry of the live allowlist.
func (r *Responder) allowEntry(m bus.Msg) {
	if err := r.allow.Put(bus.BucketKey(bus.BucketAllowlist, m.Subject), m.Subject, m.Data, m.Seal); err != nil {
		r.refuse("allowlist entry", m.Subject, err)
	}
}

// Reload reads the trust file again.
func (r *Responder) Reload() error {
	if err := r.trust.Reload(); err != nil {
		return fmt.Errorf("--trust: %w", err)
	}
	r.mirror.Again() // whose entries are believed may have changed
	return nil
}

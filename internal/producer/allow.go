package producer

import (
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/bus"
)

// allowed is the live allowlist of a realm, or why it is not known: whoever has
// not read it must not act.
func (p *Producer) allowed(realm string) (*allowlist.List, error) {
	if err := p.mirror.Current(); err != nil {
		return nil, err
	}
	return p.allow.List(realm, p.mirror.Now()), nil
}

// fleetNow is what the server's clock says. Nothing is judged by it before the live
// allowlist, and with it the clock, was read.
func (p *Producer) fleetNow() time.Time { return p.mirror.Now() }

// allowEntry takes an entry of the live allowlist.
func (p *Producer) allowEntry(m bus.Msg) {
	if err := p.allow.Put(bus.BucketKey(bus.BucketAllowlist, m.Subject), m.Subject, m.Data, m.Seal); err != nil {
		p.refuse("allowlist entry", m.Subject, err)
	}
}

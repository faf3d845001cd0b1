package guard

import (
	"net/netip"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// owes reports whether a command must make a claim that holds here.
func owes(actor string, c *events.Command) bool {
	return actor != events.ActorOperator || c.Alert != ""
}

// Claim says what must hold in this firewall's own table before an allowed command
// is carried out: so many entries, and that one of them was answered. The counts
// behind an alert come from other firewalls, one of which may lie; and whoever
// sends packets may write another's address into them. An operator has looked.
//
// It is of what the address opened, so of a block's flows those whose source it is,
// and a block always needs answered ones: whoever is forged would be cut off.
func (g *Guard) Claim(v Verdict, c *events.Command) (least uint64, answered bool) {
	if !owes(v.Actor, c) {
		return 0, false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limits.MinLocal, c.Verb == events.VerbBlock || c.By != events.ByDst && !c.Unanswered
}

// Keep returns a function that names the reason why one entry of an allowed
// flush must stay, or "". by is the side that was matched: what a protected client
// has opened stays also where its destination was.
func (g *Guard) Keep(v Verdict, by string) func(*events.Event) string {
	g.mu.Lock()
	protected := g.protected
	g.mu.Unlock()
	listed := func(a netip.Addr) string {
		if _, ok := protected.Contains(a); ok {
			return Protected
		}
		if v.allow.Len() > 0 {
			if _, ok := v.allow.Contains(a); ok {
				return Allowlisted
			}
		}
		return ""
	}
	return func(e *events.Event) string {
		reason := listed(e.Src())
		if reason == "" && by != events.BySrc {
			reason = listed(e.Dst())
		}
		return reason
	}
}

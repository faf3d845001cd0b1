package guard

import (
	"net/netip"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestLimit: limits that are changed hold for the next command, and what the host
// itself needs stays protected whatever they say.
func TestLimit(t *testing.T) {
	g := newGuard(config())
	is := func(id, address, want string) {
		t.Helper()
		v, _ := check(g, command(func(c *events.Command) { c.ID, c.Addresses = id, []string{address} }), Sealed{}, now)
		if v.Reason != want {
			t.Errorf("%s: %q (%s), want %q", address, v.Reason, v.Text, want)
		}
	}
	is("1", "198.18.3.1", Protected)
	is("2", "198.18.4.1", "")
	g.Limit(Limits{Protect: []netip.Prefix{netip.MustParsePrefix("198.18.4.0/24")}, PerMinute: 2, MinLocal: 7})
	is("3", "198.18.4.1", Protected)
	is("4", "198.18.3.1", "")
	is("5", "192.0.2.1", Protected) // its own
	is("6", "203.0.113.4", Protected)
	is("7", "198.18.3.2", "")
	is("8", "198.18.3.3", RateLimited)
	if least, _ := g.Claim(Verdict{Actor: events.ActorResponder}, command(nil)); least != 7 {
		t.Errorf("a claim needs %d entries, want 7", least)
	}
	g.Protect(nil) // the host's own change, the limits stay
	is("9", "198.18.4.1", Protected)

	// A guard that knows nothing of its host yet does not become ready by this.
	fresh := New(config())
	fresh.Limit(Limits{})
	v, _ := check(fresh, command(nil), Sealed{}, now)
	if v.Reason != NotReady {
		t.Errorf("%q, want %q", v.Reason, NotReady)
	}
}

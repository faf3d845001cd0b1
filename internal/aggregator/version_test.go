package aggregator

import (
	"testing"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestNewer(t *testing.T) {
	f := func(a, b string, want bool) {
		t.Helper()
		if got := newer(a, b); got != want {
			t.Errorf("%s is newer than %s: %t", a, b, got)
		}
		if want && newer(b, a) {
			t.Errorf("%s is newer than %s, and older", b, a)
		}
	}
	f("v1.2.3", "v1.2.3", false)
	f("1.2.3", "v1.2.3", false)
	f("v1.2.10", "v1.2.9", true)
	f("v2.0.0", "v1.99.99", true)
	f("v1.2.3", "v1.2.3-rc.1", true)
	f("v1.2.3-rc.10", "v1.2.3-rc.9", true)
	f("v1.2.3-rc.1.1", "v1.2.3-rc.1", true)
	f("v1.2.3-rc", "v1.2.3-1", true)
	f("v1.2.3+build", "v1.2.3", false)
	f("v0.0.1", "devel-0123456789ab", true)
	f("devel-0123456789ab", "devel-ba9876543210", false)
	f("", "v1.0.0", false)
	f("v1.0", "devel", false)
	f("v1.0.x", "devel", false)
}

func TestMarkBehind(t *testing.T) {
	defer func(v string) { daemon.Version = v }(daemon.Version)
	firewall := func(name, version, config, source string) events.FirewallStatus {
		return events.FirewallStatus{Health: events.Health{Firewall: name, Version: version, Config: config, Source: source}}
	}
	f := func(centre string, newest, config, behind, differs string, firewalls ...events.FirewallStatus) {
		t.Helper()
		daemon.Version = centre
		r := &events.FirewallsReply{Firewalls: firewalls}
		markBehind(r)
		gotBehind, gotDiffers := "", ""
		for i := range r.Firewalls {
			if r.Firewalls[i].Behind {
				gotBehind += r.Firewalls[i].Firewall
			}
			if r.Firewalls[i].Differs {
				gotDiffers += r.Firewalls[i].Firewall
			}
		}
		if r.Version != centre || r.Newest != newest || r.Config != config || gotBehind != behind || gotDiffers != differs {
			t.Errorf("centre %s: newest %s, config %s, behind %q, differs %q, want %s, %s, %q, %q", centre, r.Newest, r.Config, gotBehind, gotDiffers, newest, config, behind, differs)
		}
	}
	f("v1.1.0", "v1.1.0", "", "", "")
	f("v1.1.0", "v1.1.0", "c1", "a", "c", firewall("a", "v1.0.0", "c1", ""), firewall("b", "v1.1.0", "c1", ""), firewall("c", "v1.1.0", "c2", ""))
	f("v1.1.0", "v1.2.0", "", "a", "", firewall("a", "v1.1.0", "c1", ""), firewall("b", "v1.2.0", "c2", ""))       // no two are the same: nobody differs
	f("devel-1", "devel-1", "c1", "b", "", firewall("a", "devel-1", "c1", ""), firewall("b", "devel-2", "c1", "")) // no releases: the centre's
	f("v1.0.0", "v1.0.0", "c1", "", "", firewall("a", "v1.0.0", "c1", ""), firewall("b", "v1.0.0", "x", "replay"))
}

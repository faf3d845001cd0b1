//go:build linux

package producer

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestClaim: what an alert says of an address must be true of this table, too, or
// its command does nothing here. An operator's does.
func TestClaim(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true, MinLocal: 50, PerMinute: 4}) // what is refused takes nothing of the rate
	few, forged, answered, halfOpen := "198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"
	r.flood(udp4(few+"/32", 0, 49))
	r.flood(udp4(forged+"/32", 0, 60))
	f := udp4(answered+"/32", 0, 60)
	f.Answer = true
	r.flood(f)
	f.Protocol, f.Sources, f.Port = 6, netip.MustParsePrefix(halfOpen+"/32"), 443 // a SYN and the server's answer to it
	r.flood(f)
	r.until("all flows", func() bool { return r.new == 49+60+60+60 })
	n := 0
	is := func(what string, c events.Command, deleted uint64, refused string) {
		t.Helper()
		n++
		c.ID = fmt.Sprint("c", n)
		rec := r.flush(c)
		why := ""
		if len(rec.Refused) > 0 {
			why = rec.Refused[0].Reason
		}
		if rec.Error != "" || rec.Unanswered != c.Unanswered || rec.Deleted != deleted || why != refused {
			t.Errorf("%s: %+v, want %d deleted, refused %q", what, rec, deleted, refused)
		}
	}
	alert := func(address string, unanswered bool) events.Command {
		return events.Command{Actor: events.ActorResponder, Alert: "a", Addresses: []string{address}, Unanswered: unanswered}
	}
	is("an address framed by another firewall", alert(few, false), 0, conntrack.RefusedFew)
	is("the same, flows without an answer", alert(few, true), 0, conntrack.RefusedFew)
	is("a forged source", alert(forged, false), 0, conntrack.RefusedUnanswered)
	is("a forged source that a server answers", alert(halfOpen, false), 0, conntrack.RefusedUnanswered)
	is("the same, handshakes that were not completed", alert(halfOpen, true), 60, "")
	is("an operator who passes an alert on", events.Command{Alert: "a", Addresses: []string{forged}}, 0, conntrack.RefusedUnanswered)
	is("a forged source, flows without an answer", alert(forged, true), 60, "")
	is("a real one, flows without an answer", alert(answered, true), 0, "")
	is("a real one", alert(answered, false), 60, "")
	is("an operator", events.Command{Addresses: []string{few}}, 49, "")

	// A conversation in each of TCP and UDP: both are answered.
	talk := traffic.Talk{Clients: []netip.Addr{netip.MustParseAddr("198.18.0.5")}, Servers: traffic.Addresses(lab.ServerPrefix4, 1), Kept: 1}
	talkers, err := traffic.Start(t.Context(), r.fw, talk)
	if err != nil {
		t.Fatal(err)
	}
	defer talkers.Close()
	for unanswered, want := range map[bool]uint64{false: 2, true: 0} {
		if rec := r.flush(events.Command{ID: "dry", Addresses: []string{"198.18.0.5"}, DryRun: true, Unanswered: unanswered}); rec.Matched != want {
			t.Errorf("a conversation, unanswered %t: %+v, want %d matched", unanswered, rec, want)
		}
	}
}

// TestTowardsAndMost: a flush of what many have towards one, no more than is said,
// and never what a protected client has.
func TestTowardsAndMost(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true, Protect: []netip.Prefix{netip.MustParsePrefix("198.18.1.0/28")}})
	victim, other := "203.0.113.7", "203.0.113.8"
	for _, dst := range []string{victim, other} {
		f := udp4("198.18.1.0/24", 0, 256)
		f.Destinations = netip.MustParsePrefix(dst + "/32")
		r.flood(f)
	}
	r.until("all flows", func() bool { return r.new == 512 })
	is := func(c events.Command, matched, deleted uint64, refused ...events.Refusal) {
		t.Helper()
		rec := r.flush(c)
		if rec.Error != "" || rec.Matched != matched || rec.Deleted != deleted || fmt.Sprint(rec.Refused) != fmt.Sprint(refused) || rec.Towards != c.Towards || rec.Most != c.Most {
			t.Errorf("%s: %+v, want %d of %d deleted, refused %v", c.ID, rec, deleted, matched, refused)
		}
	}
	is(events.Command{ID: "one source", Addresses: []string{"198.18.1.99"}, Towards: victim}, 1, 1)
	is(events.Command{ID: "its other flow", Addresses: []string{"198.18.1.99"}, DryRun: true}, 1, 0)
	is(events.Command{ID: "nobody's", Addresses: []string{"198.18.1.98"}, Towards: "203.0.113.9"}, 0, 0)
	is(events.Command{ID: "some", Addresses: []string{"198.18.1.128/25"}, Towards: victim, Most: 28}, 128, 28, events.Refusal{Reason: conntrack.RefusedBudget, Count: 100})
	is(events.Command{ID: "by destination", Addresses: []string{victim}, By: events.ByDst}, 227, 211, events.Refusal{Reason: "protected", Count: 16})
	is(events.Command{ID: "towards a source", Addresses: []string{other}, By: events.ByDst, Towards: "198.18.1.128/25"}, 128, 128)
	if rec := r.flush(events.Command{ID: "wrong", Addresses: []string{"198.18.1.1"}, Towards: "2001:db8::1"}); len(rec.Refused) != 1 || rec.Refused[0].Reason != "malformed" {
		t.Errorf("towards another family: %+v", rec)
	}
}

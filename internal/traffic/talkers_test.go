//go:build linux

package traffic_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

// bothFamilies is talk between clients and servers over IPv4 and IPv6.
func bothFamilies(clients int) traffic.Talk {
	return traffic.Talk{
		Clients:  append(traffic.Addresses(prefix("198.18.0.0/24"), clients), traffic.Addresses(prefix("2001:db8:18::/64"), clients)...),
		Servers:  append(traffic.Addresses(prefix("203.0.113.16/28"), 2), traffic.Addresses(prefix("2001:db8:113::/64"), 2)...),
		Kept:     2,
		Interval: 20 * time.Millisecond,
		Timeout:  time.Second,
	}
}

// eventually waits until ok, with a limit far beyond what it should take.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not after 10 s: %s", what)
		}
	}
}

func TestTalkersKeepTalking(t *testing.T) {
	fw := one(t, lab.FirewallSpec{IPv6: true})
	talk := bothFamilies(3)
	talkers, err := traffic.Start(t.Context(), fw, talk)
	if err != nil {
		t.Fatal(err)
	}
	defer talkers.Close()
	kept := uint64(len(talk.Clients) * talk.Kept * 2)
	if got := talkers.Stats(); got.Opened != kept || got.Echoed < kept {
		t.Errorf("at the start: %+v, want %d conversations opened and as many echoes", got, kept)
	}
	eventually(t, "five echoes in every conversation", func() bool { return talkers.Stats().Echoed >= 5*kept })

	flows := dump(t, fw)
	if len(flows) != int(kept) {
		t.Errorf("%d entries, want one for each of %d conversations", len(flows), kept)
	}
	perClient := map[netip.Addr]int{}
	for _, f := range flows {
		perClient[f.TupleOrig.IP.SourceAddress]++
		if !f.Status.SeenReply() || !slices.Contains(talk.Servers, f.TupleOrig.IP.DestinationAddress) {
			t.Errorf("entry %v: not an answered flow to one of %v", f, talk.Servers)
		}
	}
	for _, c := range talk.Clients {
		if want := 2 * talk.Kept; perClient[c] != want {
			t.Errorf("client %s has %d entries, want %d", c, perClient[c], want)
		}
	}
	talkers.Close()
	if got := talkers.Stats(); got.Broken != 0 || got.Opened != kept {
		t.Errorf("at the end: %+v, want none broken and %d opened", got, kept)
	}
}

func TestTalkersOpenNewConversations(t *testing.T) {
	fw := one(t, lab.FirewallSpec{IPv6: true})
	talk := bothFamilies(2)
	talk.Kept, talk.NewPerSecond = 0, 200
	talkers, err := traffic.Start(t.Context(), fw, talk)
	if err != nil {
		t.Fatal(err)
	}
	defer talkers.Close()
	eventually(t, "40 echoes", func() bool { return talkers.Stats().Echoed >= 40 })
	talkers.Close()
	stats := talkers.Stats()
	if stats.Broken != 0 {
		t.Errorf("%d conversations broken", stats.Broken)
	}
	seen := map[uint8]map[bool]int{unix.IPPROTO_TCP: {}, unix.IPPROTO_UDP: {}}
	flows := dump(t, fw)
	for _, f := range flows {
		seen[f.TupleOrig.Proto.Protocol][f.TupleOrig.IP.SourceAddress.Is6()]++
	}
	for protocol, families := range seen {
		if families[false] == 0 || families[true] == 0 {
			t.Errorf("protocol %d: flows by IPv6 or not: %v, want both", protocol, families)
		}
	}
	if len(flows) < int(stats.Echoed) {
		t.Errorf("%d entries, and %d conversations had their echo", len(flows), stats.Echoed)
	}
}

func TestTalkersSurviveAFlood(t *testing.T) {
	fw := one(t, lab.FirewallSpec{IPv6: true})
	talkers, err := traffic.Start(t.Context(), fw, bothFamilies(3))
	if err != nil {
		t.Fatal(err)
	}
	defer talkers.Close()
	before := len(dump(t, fw))
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: prefix("198.19.0.66/32"), Destinations: oneServer4, Port: 53, Count: 20000, Rate: 50000}
	if _, err := f.Run(t.Context(), fw); err != nil {
		t.Fatal(err)
	}
	if got, err := fw.Entries(); err != nil || got != before+f.Count {
		t.Errorf("%d entries (%v), want %d conversations and %d flows", got, err, before, f.Count)
	}
	if stats := talkers.Stats(); stats.Broken != 0 {
		t.Errorf("%d conversations broken by the flood", stats.Broken)
	}
}

// A conversation whose entry is deleted breaks where the firewall does not pick up
// connections half way. This is what a demonstration that flushes too much would
// do, so it must show.
func TestTalkersNoticeABrokenConversation(t *testing.T) {
	fw := one(t, lab.FirewallSpec{Sysctls: map[string]string{"net.netfilter.nf_conntrack_tcp_loose": "0"}})
	talk := traffic.Talk{
		Clients: traffic.Addresses(prefix("198.18.0.0/24"), 1), Servers: traffic.Addresses(prefix("203.0.113.16/28"), 1),
		Kept: 1, Interval: 10 * time.Millisecond, Timeout: 200 * time.Millisecond,
	}
	talkers, err := traffic.Start(t.Context(), fw, talk)
	if err != nil {
		t.Fatal(err)
	}
	defer talkers.Close()
	c, err := conntrack.Dial(&netlink.Config{NetNS: fw.NS.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, f := range dump(t, fw) {
		if f.TupleOrig.Proto.Protocol == unix.IPPROTO_TCP {
			if err := c.Delete(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "the TCP conversation is counted as broken and opened anew", func() bool {
		stats := talkers.Stats()
		return stats.Broken == 1 && stats.Opened == 3
	})
	echoed := talkers.Stats().Echoed
	eventually(t, "both go on", func() bool { return talkers.Stats().Echoed > echoed+10 })
}

func TestTalkersRefuse(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	client, server := traffic.Addresses(prefix("198.18.0.0/24"), 1), traffic.Addresses(prefix("203.0.113.16/28"), 1)
	for _, c := range []struct {
		want string
		talk traffic.Talk
	}{
		{"not at the client side", traffic.Talk{Clients: server, Servers: server}},
		{"not at the server side", traffic.Talk{Clients: client, Servers: client}},
		{"does not forward IPv6", traffic.Talk{Clients: traffic.Addresses(oneClient6, 1), Servers: traffic.Addresses(oneServer6, 1)}},
		{"no server of its address family", traffic.Talk{Clients: client}},
		{"without clients", traffic.Talk{Servers: server, NewPerSecond: 1}},
		{"negative", traffic.Talk{Clients: client, Servers: server, Kept: -1}},
	} {
		talkers, err := traffic.Start(t.Context(), fw, c.talk)
		if err == nil {
			talkers.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one with %q", c.talk, err, c.want)
		}
	}
}

//go:build linux

package traffic_test

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	vnetlink "github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

// one builds a lab of one firewall.
func one(t testing.TB, spec lab.FirewallSpec) *lab.Firewall {
	t.Helper()
	spec.Name = "fw-a"
	return labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{spec}}).Firewall("fw-a")
}

// dump reads the firewall's table.
func dump(t testing.TB, fw *lab.Firewall) []conntrack.Flow {
	t.Helper()
	c, err := conntrack.Dial(&netlink.Config{NetNS: fw.NS.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	flows, err := c.Dump(nil)
	if err != nil {
		t.Fatal(err)
	}
	return flows
}

var (
	oneClient4, oneServer4 = prefix("198.18.0.9/32"), prefix("203.0.113.7/32")
	oneClient6, oneServer6 = prefix("2001:db8:18::9/128"), prefix("2001:db8:113::7/128")
)

func TestFloodMakesExactlyItsFlows(t *testing.T) {
	for _, c := range []struct {
		name         string
		flood        traffic.Flood
		sources      int
		destinations int
	}{
		{"UDP", traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: prefix("198.18.0.0/16"), SourceCount: 10, Destinations: prefix("203.0.113.0/24"), DestinationCount: 3, Port: 53, Ports: 2, Count: 2400}, 10, 3},
		{"TCP", traffic.Flood{Protocol: unix.IPPROTO_TCP, Sources: oneClient4, Destinations: oneServer4, Port: 443, Count: 1000}, 1, 1},
		{"ICMP", traffic.Flood{Protocol: unix.IPPROTO_ICMP, Sources: oneClient4, Destinations: oneServer4, Count: 500}, 1, 1},
		{"SCTP", traffic.Flood{Protocol: unix.IPPROTO_SCTP, Sources: oneClient4, Destinations: oneServer4, Port: 3868, Count: 300}, 1, 1},
		{"GRE", traffic.Flood{Protocol: unix.IPPROTO_GRE, Sources: prefix("198.18.1.0/24"), Destinations: prefix("203.0.113.0/24"), DestinationCount: 2, Count: 512}, 256, 2},
		{"UDP over IPv6", traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: prefix("2001:db8:18::/64"), SourceCount: 10, Destinations: prefix("2001:db8:113::/48"), DestinationCount: 3, Port: 53, Ports: 2, Count: 2400}, 10, 3},
		{"TCP over IPv6", traffic.Flood{Protocol: unix.IPPROTO_TCP, Sources: oneClient6, Destinations: oneServer6, Port: 443, Count: 1000}, 1, 1},
		{"ICMPv6", traffic.Flood{Protocol: unix.IPPROTO_ICMPV6, Sources: oneClient6, Destinations: oneServer6, Count: 500}, 1, 1},
		{"SCTP over IPv6", traffic.Flood{Protocol: unix.IPPROTO_SCTP, Sources: oneClient6, Destinations: oneServer6, Port: 3868, Count: 300}, 1, 1},
		{"GRE over IPv6", traffic.Flood{Protocol: unix.IPPROTO_GRE, Sources: prefix("2001:db8:18:1::/64"), SourceCount: 256, Destinations: prefix("2001:db8:113::/48"), DestinationCount: 2, Count: 512}, 256, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			fw := one(t, lab.FirewallSpec{IPv6: true})
			t.Run("silent", func(t *testing.T) {
				report, err := c.flood.Run(t.Context(), fw)
				if err != nil {
					t.Fatal(err)
				}
				if report.Sent != c.flood.Count || report.Answered != 0 || report.Lost != 0 {
					t.Errorf("%+v, want %d sent, none lost, none answered", report, c.flood.Count)
				}
				expectFlows(t, fw, c.flood, c.sources, c.destinations)
			})
			t.Run("answered", func(t *testing.T) {
				// The same flows once more: no new entries, but now each has a reply.
				flood := c.flood
				flood.Answer = true
				report, err := flood.Run(t.Context(), fw)
				if err != nil {
					t.Fatal(err)
				}
				if report.Sent != flood.Count || report.Answered != flood.Count {
					t.Errorf("sent %d packets and answered %d, want %d of both", report.Sent, report.Answered, flood.Count)
				}
				expectFlows(t, fw, flood, c.sources, c.destinations)
			})
		})
	}
}

// expectFlows checks that the table holds the flood's flows and nothing else.
func expectFlows(t *testing.T, fw *lab.Firewall, f traffic.Flood, sources, destinations int) {
	t.Helper()
	flows := dump(t, fw)
	if len(flows) != f.Count {
		t.Errorf("%d entries in the table, want %d", len(flows), f.Count)
	}
	bySource, byDestination, wrongReply := map[netip.Addr]int{}, map[netip.Addr]int{}, 0
	for _, flow := range flows {
		o := flow.TupleOrig
		bySource[o.IP.SourceAddress]++
		byDestination[o.IP.DestinationAddress]++
		if flow.Status.SeenReply() != f.Answer {
			wrongReply++
		}
		if o.Proto.Protocol != f.Protocol || !f.Sources.Contains(o.IP.SourceAddress) || !f.Destinations.Contains(o.IP.DestinationAddress) {
			t.Fatalf("entry %v is not of the flood", flow)
		}
	}
	if wrongReply > 0 {
		t.Errorf("%d entries do not have \"seen reply\" = %v", wrongReply, f.Answer)
	}
	expectEven(t, "sources", bySource, sources, f.Count)
	expectEven(t, "destinations", byDestination, destinations, f.Count)
}

func expectEven(t *testing.T, what string, counts map[netip.Addr]int, addresses, total int) {
	t.Helper()
	if len(counts) != addresses {
		t.Errorf("flows of %d %s, want %d", len(counts), what, addresses)
	}
	for addr, n := range counts {
		if n != total/addresses {
			t.Errorf("%s: %d flows of %s, want %d", what, n, addr, total/addresses)
		}
	}
}

func TestFloodsThatContinueOneAnotherShareNoFlow(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 700}
	for i := range 3 {
		f.First = i * f.Count
		if _, err := f.Run(t.Context(), fw); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := fw.Entries(); err != nil || got != 3*f.Count {
		t.Errorf("%d entries (%v), want %d", got, err, 3*f.Count)
	}
}

func TestFloodAtARate(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 1000, Rate: 5000}
	report, err := f.Run(t.Context(), fw)
	if err != nil {
		t.Fatal(err)
	}
	// Never faster: the last packet is due after Count/Rate. How much slower depends on the machine.
	if least := time.Duration(float64(f.Count) / f.Rate * float64(time.Second)); report.Elapsed < least {
		t.Errorf("%d packets at %v/s in %v, faster than %v", report.Sent, f.Rate, report.Elapsed, least)
	}
	if report.Sent != f.Count {
		t.Errorf("sent %d, want %d", report.Sent, f.Count)
	}
	t.Logf("%d packets in %v", report.Sent, report.Elapsed)
}

func TestFloodOfARateAndADurationIsExact(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Rate: 3000, Duration: 200 * time.Millisecond}
	report, err := f.Run(t.Context(), fw)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := fw.Entries(); err != nil || entries != 600 || report.Sent != 600 {
		t.Errorf("sent %d, %d entries (%v), want 600 of 3000/s in 200 ms", report.Sent, entries, err)
	}
}

func TestFloodOfADurationOnlyEnds(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Duration: 10 * time.Millisecond}
	report, err := f.Run(t.Context(), fw)
	if err != nil {
		t.Fatal(err)
	}
	if entries, err := fw.Entries(); err != nil || entries != report.Sent || entries == 0 {
		t.Errorf("sent %d, %d entries (%v), want as many, and some", report.Sent, entries, err)
	}
}

// Two floods at once through one firewall, both answered: each flow gets one answer.
func TestFloodsSideBySide(t *testing.T) {
	fw := one(t, lab.FirewallSpec{IPv6: true, Sysctls: map[string]string{"net.netfilter.nf_conntrack_acct": "1"}})
	var floods sync.WaitGroup
	for i, f := range []traffic.Flood{
		{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 1000, Answer: true},
		{Protocol: unix.IPPROTO_TCP, Sources: oneClient4, Destinations: oneServer4, Port: 443, Count: 1000, Answer: true},
		{Protocol: unix.IPPROTO_UDP, Sources: oneClient6, Destinations: oneServer6, Port: 53, Count: 1000, Answer: true},
		{Protocol: unix.IPPROTO_UDP, Sources: oneClient6, Destinations: oneServer6, Port: 80, Count: 1000, Answer: true},
	} {
		floods.Go(func() {
			report, err := f.Run(t.Context(), fw)
			if err != nil || report.Sent != f.Count || report.Answered != f.Count || report.Lost != 0 {
				t.Errorf("flood %d: %+v, %v; want %d sent and answered", i, report, err, f.Count)
			}
		})
	}
	floods.Wait()
	flows := dump(t, fw)
	if len(flows) != 4000 {
		t.Errorf("%d entries, want 4000", len(flows))
	}
	for _, f := range flows {
		if there, back := f.CountersOrig.Packets, f.CountersReply.Packets; there != 1 || back != 1 {
			t.Fatalf("%d packets one way and %d the other, want one each: %v", there, back, f)
		}
	}
}

// The answers find their way back through address translation.
func TestFloodThroughNAT(t *testing.T) {
	fw := one(t, lab.FirewallSpec{Masquerade: true, DNAT: []lab.DNAT{
		{Protocol: unix.IPPROTO_UDP, From: netip.MustParseAddrPort("203.0.113.7:53"), To: netip.MustParseAddrPort("203.0.113.70:5353")},
	}})
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: prefix("198.18.0.0/30"), Destinations: oneServer4, Port: 53, Count: 400, Answer: true}
	report, err := f.Run(t.Context(), fw)
	if err != nil || report.Answered != f.Count {
		t.Errorf("%+v, %v; want %d answered", report, err, f.Count)
	}
	expectFlows(t, fw, f, 4, 1)
	for _, flow := range dump(t, fw) {
		back := flow.TupleReply
		if back.IP.SourceAddress != netip.MustParseAddr("203.0.113.70") || back.Proto.SourcePort != 5353 || !slices.Contains(fw.Addrs, back.IP.DestinationAddress) {
			t.Fatalf("reply tuple %v, want from 203.0.113.70:5353 to one of %v", back, fw.Addrs)
		}
	}
}

func TestFloodEndsWithItsContext(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 60000, Rate: 1000}
	report, err := f.Run(ctx, fw)
	if err != nil {
		t.Fatal(err)
	}
	if report.Sent == 0 || report.Sent > 1000 {
		t.Errorf("sent %d packets in 100 ms at 1000/s", report.Sent)
	}
	if got, err := fw.Entries(); err != nil || got != report.Sent {
		t.Errorf("%d entries (%v), and %d were reported", got, err, report.Sent)
	}
}

// A link that is down must end the flood with an error, not hold it up.
func TestFloodOverALinkThatIsDown(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	err := fw.Client.Do(func() error {
		link, err := vnetlink.LinkByName(fw.ClientLink.Name)
		if err != nil {
			return err
		}
		return vnetlink.LinkSetDown(link)
	})
	if err != nil {
		t.Fatal(err)
	}
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 10}
	if report, err := f.Run(t.Context(), fw); !errors.Is(err, unix.ENETDOWN) || report.Sent != 0 {
		t.Errorf("%+v, %v; want none sent and %v", report, err, unix.ENETDOWN)
	}
}

// A firewall that lets nothing through leaves the flood without answers, which must
// not hold it up either.
func TestFloodWithoutAnswersGoesOn(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	if err := fw.SetSysctl("net.ipv4.ip_forward", "0"); err != nil {
		t.Fatal(err)
	}
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 200, Answer: true}
	report, err := f.Run(t.Context(), fw)
	if err != nil || report.Sent != f.Count || report.Answered != 0 {
		t.Errorf("%+v, %v; want all sent and none answered", report, err)
	}
}

func TestFloodRefuses(t *testing.T) {
	fw := one(t, lab.FirewallSpec{})
	good := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: oneClient4, Destinations: oneServer4, Port: 53, Count: 1}
	for _, c := range []struct {
		want   string
		change func(*traffic.Flood)
	}{
		{"protocol 50", func(f *traffic.Flood) { f.Protocol = 50 }},
		{"not the ICMP of this address family", func(f *traffic.Flood) { f.Protocol = unix.IPPROTO_ICMPV6 }},
		{"not at the client side", func(f *traffic.Flood) { f.Sources = prefix("192.0.2.0/24") }},
		{"not at the client side", func(f *traffic.Flood) { f.Sources = netip.Prefix{} }},
		{"not at the client side", func(f *traffic.Flood) { f.SourceCount = 2 }},
		{"not at the server side", func(f *traffic.Flood) { f.Destinations = oneServer6 }},
		{"not at the server side", func(f *traffic.Flood) { f.Destinations = prefix("0.0.0.0/0") }},
		{"does not forward IPv6", func(f *traffic.Flood) { f.Sources, f.Destinations = oneClient6, oneServer6 }},
		{"negative", func(f *traffic.Flood) { f.Rate = -1 }},
		{"beyond 65535", func(f *traffic.Flood) { f.Port, f.Ports = 65535, 2 }},
		{"no end", func(f *traffic.Flood) { f.Count, f.Rate = 0, 10 }},
		{"make 64512", func(f *traffic.Flood) { f.Count = 64513 }},
		{"make 64512", func(f *traffic.Flood) { f.Count, f.First = 64512, 1 }},
		{"has no ports", func(f *traffic.Flood) { f.Protocol = unix.IPPROTO_GRE }},
	} {
		f := good
		c.change(&f)
		report, err := f.Run(t.Context(), fw)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one with %q", f, err, c.want)
		}
		if report.Sent != 0 {
			t.Errorf("%+v: sent %d packets", f, report.Sent)
		}
	}
}

// BenchmarkFlood measures the kernel more than the generator: each packet is
// forwarded and tracked within the call that sends it.
func BenchmarkFlood(b *testing.B) {
	for _, c := range []struct {
		name                  string
		sources, destinations netip.Prefix
		answer                bool
	}{
		{"ipv4", prefix("198.18.0.0/24"), oneServer4, false},
		{"ipv6", prefix("2001:db8:18::/120"), oneServer6, false},
		{"answered", prefix("198.18.0.0/24"), oneServer4, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			fw := one(b, lab.FirewallSpec{IPv6: true})
			f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: c.sources, Destinations: c.destinations, Port: 53, Answer: c.answer}
			b.ReportAllocs()
			b.ResetTimer()
			f.Count = b.N
			report, err := f.Run(b.Context(), fw)
			if err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64(report.Sent)/report.Elapsed.Seconds(), "flows/s")
		})
	}
}

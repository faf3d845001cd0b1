//go:build linux

package conntrack

import (
	"context"
	"errors"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func flush(t testing.TB, c *Conn, m Match, opt FlushOptions) FlushResult {
	t.Helper()
	res, err := c.Flush(t.Context(), m, opt)
	if err != nil {
		t.Fatal(err)
	}
	if !opt.DryRun {
		sum := res.Deleted + res.Gone
		for _, n := range res.Refused {
			sum += n
		}
		if sum != res.Matched {
			t.Errorf("matched %d, accounted for %d: %+v", res.Matched, sum, res)
		}
	}
	return res
}

func TestFlushDeletesWhatMatchesAndNothingElse(t *testing.T) {
	const each = 300 // more than one batch
	server8 := netip.MustParsePrefix("203.0.113.8/32")
	toServer8 := traffic.Flood{Protocol: unix.IPPROTO_TCP, Sources: client4, Destinations: server8, Port: 443, Count: each}
	// In the table: client4, other4, client6 and other6 to their servers, and
	// client4 to a second server.
	for _, c := range []struct {
		name  string
		match Match
		want  uint64
		left  func(*events.Event) bool
	}{
		{"IPv4 by source", bySrc(client4), 2 * each, func(e *events.Event) bool { return e.Src() != client4.Addr() }},
		{"IPv4 by destination", Match{Prefixes: []netip.Prefix{server4}, By: events.ByDst}, 2 * each, func(e *events.Event) bool { return e.Dst() != server4.Addr() }},
		{"IPv4 either side", Match{Prefixes: []netip.Prefix{server4}, By: events.ByEither}, 2 * each, func(e *events.Event) bool { return e.Dst() != server4.Addr() }},
		{"IPv4 prefix", bySrc(netip.MustParsePrefix("198.18.0.8/30")), 3 * each, func(e *events.Event) bool { return e.IPv6 }},
		{"IPv6 by source", bySrc(client6), each, func(e *events.Event) bool { return e.Src() != client6.Addr() }},
		{"IPv6 by destination", Match{Prefixes: []netip.Prefix{server6}, By: events.ByDst}, 2 * each, func(e *events.Event) bool { return !e.IPv6 }},
		{"IPv6 prefix", bySrc(netip.MustParsePrefix("2001:db8:18::/64")), 2 * each, func(e *events.Event) bool { return !e.IPv6 }},
		{"one of each family", bySrc(other4, client6), 2 * each, func(e *events.Event) bool { return e.Src() != other4.Addr() && e.Src() != client6.Addr() }},
		{"nobody", bySrc(netip.MustParsePrefix("198.18.0.99/32")), 0, func(*events.Event) bool { return true }},
		{"nobody of IPv6", bySrc(netip.MustParsePrefix("2001:db8:18::99/128")), 0, func(*events.Event) bool { return true }},
		{"a server as a source", bySrc(server4), 0, func(*events.Event) bool { return true }},
		{"IPv4 by source, towards one server", towards(server8, client4), each, func(e *events.Event) bool { return e.Dst() != server8.Addr() }},
		{"IPv4 by source, towards the other", towards(server4, client4), each, func(e *events.Event) bool { return e.Src() != client4.Addr() || e.Dst() != server4.Addr() }},
		{"IPv4 by source, towards both", towards(netip.MustParsePrefix("203.0.113.0/24"), client4), 2 * each, func(e *events.Event) bool { return e.Src() != client4.Addr() }},
		{"IPv4 by source, towards nobody", towards(netip.MustParsePrefix("203.0.113.9/32"), client4), 0, func(*events.Event) bool { return true }},
		{"IPv4 by source, towards itself", towards(client4, client4), 0, func(*events.Event) bool { return true }},
		{"IPv4 by destination, from one client", Match{Prefixes: []netip.Prefix{server4}, By: events.ByDst, Towards: other4}, each, func(e *events.Event) bool { return e.Src() != other4.Addr() }},
		{"IPv4 either side, with one server", Match{Prefixes: []netip.Prefix{client4}, By: events.ByEither, Towards: server8}, each, func(e *events.Event) bool { return e.Dst() != server8.Addr() }},
		{"IPv4 either side, with one client", Match{Prefixes: []netip.Prefix{server4}, By: events.ByEither, Towards: client4}, each, func(e *events.Event) bool { return e.Src() != client4.Addr() || e.Dst() != server4.Addr() }},
		{"IPv6 prefix, towards one server", towards(server6, netip.MustParsePrefix("2001:db8:18::8/126")), 2 * each, func(e *events.Event) bool { return !e.IPv6 }},
		{"IPv6 by source, towards nobody", towards(netip.MustParsePrefix("2001:db8:113::8/128"), client6), 0, func(*events.Event) bool { return true }},
		{"one of each family, towards one server", towards(server4, client4, client6), each, func(e *events.Event) bool { return e.Src() != client4.Addr() || e.Dst() != server4.Addr() }},
	} {
		t.Run(c.name, func(t *testing.T) {
			fw := firewall(t, lab.FirewallSpec{})
			conn := dial(t, fw.NS)
			for _, src := range []netip.Prefix{client4, other4, client6, other6} {
				flood(t, fw, udp(src, each))
			}
			flood(t, fw, toServer8)
			const all = 5 * each

			dry := flush(t, conn, c.match, FlushOptions{DryRun: true})
			if dry.Matched != c.want || dry.Deleted != 0 || dry.Gone != 0 {
				t.Errorf("dry run: %+v, want %d matched and nothing deleted", dry, c.want)
			}
			if left := len(entries(t, conn)); left != all {
				t.Fatalf("%d entries after a dry run, want all %d", left, all)
			}
			res := flush(t, conn, c.match, FlushOptions{})
			if res.Matched != c.want || res.Deleted != c.want || res.Gone != 0 || len(res.Refused) != 0 || res.Duration <= 0 {
				t.Errorf("%+v, want %d matched and deleted", res, c.want)
			}
			left := entries(t, conn)
			if len(left) != all-int(c.want) {
				t.Errorf("%d entries left, want %d", len(left), all-int(c.want))
			}
			for _, e := range left {
				if !c.left(&e) {
					t.Fatalf("%s to %s is still there", e.Src(), e.Dst())
				}
			}
		})
	}
}

// TestFlushDeletesEveryProtocol: each has its own attributes in a DELETE.
func TestFlushDeletesEveryProtocol(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	want := uint64(0)
	for _, protocol := range []uint8{unix.IPPROTO_UDP, unix.IPPROTO_TCP, unix.IPPROTO_SCTP, unix.IPPROTO_GRE, unix.IPPROTO_ICMP, unix.IPPROTO_ICMPV6} {
		for _, pair := range [][2]netip.Prefix{{client4, server4}, {client6, server6}} {
			if v6 := pair[0].Addr().Is6(); protocol == unix.IPPROTO_ICMP && v6 || protocol == unix.IPPROTO_ICMPV6 && !v6 {
				continue
			}
			f := traffic.Flood{Protocol: protocol, Sources: pair[0], Destinations: pair[1], Count: 3}
			if protocol == unix.IPPROTO_GRE {
				f.Count = 1 // nothing but the addresses tells its flows apart
			}
			flood(t, fw, f)
			want += uint64(f.Count)
		}
	}
	if err := o.Create(timo.NewFlow(unix.IPPROTO_ESP, 0, client4.Addr(), server4.Addr(), 0, 0, 60, 0)); err != nil {
		t.Fatal(err)
	}
	want++
	res := flush(t, c, bySrc(client4, client6), FlushOptions{})
	if res.Matched != want || res.Deleted != want {
		t.Errorf("%+v, want %d matched and deleted", res, want)
	}
	if left := entries(t, c); len(left) != 0 {
		t.Errorf("%d entries left, the first is %+v", len(left), left[0])
	}
}

func TestFlushFindsNATByTheOriginalTuple(t *testing.T) {
	vip := netip.MustParseAddrPort("203.0.113.80:80")
	fw := firewall(t, lab.FirewallSpec{Masquerade: true, DNAT: []lab.DNAT{{Protocol: unix.IPPROTO_TCP, From: vip, To: netip.MustParseAddrPort("203.0.113.7:8080")}}})
	c := dial(t, fw.NS)
	vipPrefix := netip.PrefixFrom(vip.Addr(), 32)
	flood(t, fw, traffic.Flood{Protocol: unix.IPPROTO_TCP, Sources: client4, Destinations: vipPrefix, Port: vip.Port(), Count: 20})
	for _, none := range []Match{bySrc(server4), {Prefixes: []netip.Prefix{server4}, By: events.ByEither}, {Prefixes: []netip.Prefix{netip.PrefixFrom(fw.Addrs[0], fw.Addrs[0].BitLen())}, By: events.ByEither}} {
		if res := flush(t, c, none, FlushOptions{}); res.Matched != 0 {
			t.Errorf("%v matched %d entries by their reply tuple", none.Prefixes, res.Matched)
		}
	}
	if res := flush(t, c, Match{Prefixes: []netip.Prefix{vipPrefix}, By: events.ByDst}, FlushOptions{}); res.Deleted != 20 {
		t.Errorf("%+v, want the 20 flows to the address before DNAT deleted", res)
	}
}

func TestFlushKeeps(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c := dial(t, fw.NS)
	flood(t, fw, udp(client4, 40))
	flood(t, fw, udp(other4, 60))
	keep := func(e *events.Event) string {
		if e.Src() == other4.Addr() {
			return "allowlist"
		}
		return ""
	}
	m := bySrc(netip.MustParsePrefix("198.18.0.0/24"))
	for _, dryRun := range []bool{true, false} {
		res := flush(t, c, m, FlushOptions{Keep: keep, DryRun: dryRun})
		want := uint64(40)
		if dryRun {
			want = 0
		}
		if res.Matched != 100 || res.Refused["allowlist"] != 60 || res.Deleted != want {
			t.Errorf("dry run %v: %+v, want 100 matched, 60 refused, %d deleted", dryRun, res, want)
		}
	}
	if left := len(entries(t, c)); left != 60 {
		t.Errorf("%d entries left, want the 60 that are kept", left)
	}
}

func TestFlushStaysWithinItsZone(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	for zone := range uint16(4) { // the same tuple in each
		f := timo.NewFlow(unix.IPPROTO_UDP, 0, client4.Addr(), server4.Addr(), 4000, 53, 60, 0)
		f.Zone = zone
		if err := o.Create(f); err != nil {
			t.Fatal(err)
		}
	}
	zones := func() (got []uint16) {
		for _, e := range entries(t, c) {
			got = append(got, e.Zone)
		}
		return got
	}
	m := bySrc(client4)
	m.Zone = 2
	if res := flush(t, c, m, FlushOptions{}); res.Matched != 1 || res.Deleted != 1 {
		t.Errorf("zone 2: %+v, want one entry", res)
	}
	for _, z := range zones() {
		if z == 2 {
			t.Errorf("zones left: %v, want all but 2", zones())
		}
	}
	if res := flush(t, c, bySrc(client4), FlushOptions{}); res.Deleted != 1 || len(zones()) != 2 {
		t.Errorf("zone 0: %+v and %v left, want one deleted and two left", res, zones())
	}
	m = bySrc(client4)
	m.AnyZone = true
	if res := flush(t, c, m, FlushOptions{}); res.Deleted != 2 || len(zones()) != 0 {
		t.Errorf("any zone: %+v and %v left, want the last two deleted", res, zones())
	}
}

// TestFlushCountsWhatIsGone: between its match and its delete, a flow ends, and
// another one between the same ports begins, which nobody has asked to delete.
func TestFlushCountsWhatIsGone(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, another, o := dial(t, fw.NS), dial(t, fw.NS), oracle(t, fw.NS)
	flow := func(port uint16) timo.Flow {
		return timo.NewFlow(unix.IPPROTO_UDP, 0, client4.Addr(), server4.Addr(), port, 53, 60, 0)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for port := range uint16(3) {
		must(o.Create(flow(4000 + port)))
	}
	var after uint32
	asked := 0
	res := flush(t, c, bySrc(client4), FlushOptions{Keep: func(e *events.Event) string {
		switch e.Orig.SrcPort {
		case 4001: // ends
			must(o.Delete(flow(4001)))
		case 4002: // ends, and begins again
			must(o.Delete(flow(4002)))
			after = again(t, another, o, flow(4002), e.ID)
		}
		asked++
		return ""
	}})
	if asked != 3 {
		t.Fatalf("asked about %d entries, want 3", asked)
	}
	left := 0
	for _, e := range entries(t, c) {
		if e.Src() == client4.Addr() && e.ID == after {
			left++
		}
	}
	if res.Matched != 3 || res.Deleted != 1 || res.Gone != 2 || left != 1 {
		t.Errorf("%+v and %d left, want 1 deleted, 2 gone, and the new flow left", res, left)
	}
}

// again creates the flow until it has another id than before. The id is a hash
// over the entry's place in memory and its tuple, so the same tuple in the same
// place has it again: flows of somebody else must take that place first, as
// they do on a busy firewall.
func again(t *testing.T, c *Conn, o *timo.Conn, f timo.Flow, before uint32) (id uint32) {
	t.Helper()
	for try := range uint16(50) {
		for i := range uint16(16) {
			if err := o.Create(timo.NewFlow(unix.IPPROTO_UDP, 0, other4.Addr(), server4.Addr(), 5000+16*try+i, 53, 60, 0)); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.Create(f); err != nil {
			t.Fatal(err)
		}
		for _, e := range entries(t, c) {
			if e.Orig == oracleTuple(&f.TupleOrig) && e.ID != before {
				return e.ID
			}
		}
		if err := o.Delete(f); err != nil {
			t.Fatal(err)
		}
	}
	t.Fatal("the new flow always got the id of the old one: nothing is tested")
	return 0
}

func TestFlushRefusesNonsense(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c := dial(t, fw.NS)
	flood(t, fw, udp(client4, 5))
	for _, m := range []Match{
		{},
		{By: events.BySrc},
		{Prefixes: []netip.Prefix{client4}},
		{Prefixes: []netip.Prefix{client4}, By: "source"},
		{Prefixes: []netip.Prefix{{}}, By: events.BySrc},
		{Prefixes: []netip.Prefix{netip.MustParsePrefix("::ffff:198.18.0.9/128")}, By: events.BySrc},
		towards(netip.PrefixFrom(server4.Addr(), 40), client4),
		towards(netip.MustParsePrefix("::ffff:203.0.113.7/128"), client4),
		towards(server6, client4),
	} {
		if res, err := c.Flush(t.Context(), m, FlushOptions{}); err == nil || res.Matched != 0 {
			t.Errorf("match %+v: %+v, error %v, want a refusal", m, res, err)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := c.Flush(cancelled, bySrc(client4), FlushOptions{})
	errorsIs(t, err, context.Canceled)
	broken := errors.New("broken")
	_, err = c.Flush(t.Context(), bySrc(client4), FlushOptions{Pressure: func() (int, int, error) { return 0, 0, broken }})
	errorsIs(t, err, broken)
	// A listener that has stopped draining must not hold the flush for ever.
	stalled, stop := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer stop()
	_, err = c.Flush(stalled, bySrc(client4), FlushOptions{Pressure: func() (int, int, error) { return 100, 100, nil }})
	errorsIs(t, err, context.DeadlineExceeded)
	if left := len(entries(t, c)); left != 5 {
		t.Errorf("%d entries left, want all 5", left)
	}
}

// TestFlushLosesNoEvent flushes thirty times what the listener's buffer holds,
// the buffer that an unprivileged user namespace grants, while the listener
// drains it at its usual pace.
func TestFlushLosesNoEvent(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	const rmemDefault = 212992 // net.core.rmem_max as the kernel sets it
	c, r := dial(t, fw.NS), open(t, fw.NS, rmemDefault)
	_, limit, err := r.Pressure()
	if err != nil {
		t.Fatal(err)
	}
	n := 30 * limit / eventCost

	var begun, ended atomic.Int64
	done := make(chan error, 1)
	go func() {
		for {
			_, err := r.Receive(time.Second, func(evs []events.Event) {
				for i := range evs {
					if evs[i].Type == events.New {
						begun.Add(1)
					} else {
						ended.Add(1)
					}
				}
			})
			if err != nil {
				done <- err
				return
			}
		}
	}()
	f := udp(client4, n)
	f.Rate = 20_000
	flood(t, fw, f)
	// On a machine that is busy with something else the flood itself may
	// overrun so small a buffer. It is the flush that must not.
	var before uint64
	eventually(t, "events of the flood", func() bool {
		before, err = r.Drops()
		return err == nil && uint64(begun.Load())+before == uint64(n)
	})

	highest := 0
	res := flush(t, c, bySrc(client4), FlushOptions{Pressure: func() (int, int, error) {
		used, limit, err := r.Pressure()
		highest = max(highest, used)
		return used, limit, err
	}})
	if res.Deleted != uint64(n) {
		t.Errorf("%+v, want %d deleted", res, n)
	}
	if drops, err := r.Drops(); drops != before || err != nil {
		t.Fatalf("%d events dropped in the flush (%v)", drops-before, err)
	}
	eventually(t, "events of the flush", func() bool { return ended.Load() == int64(n) })
	if highest > limit/2 {
		t.Errorf("%d of %d bytes were full at the worst, want at most half", highest, limit)
	}
	t.Logf("%d deletes in %s through a buffer of %d events, at most %d of %d bytes full", n, res.Duration, limit/eventCost, highest, limit)
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	errorsIs(t, <-done, ErrClosed)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not all there after %s", what, patience)
		}
	}
}

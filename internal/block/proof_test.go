//go:build linux

package block_test

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// firewall builds a lab of one, which picks up TCP connections half way.
func firewall(t *testing.T) *lab.Firewall {
	t.Helper()
	spec := lab.FirewallSpec{Name: "fw-a", IPv6: true, Sysctls: map[string]string{"net.netfilter.nf_conntrack_tcp_loose": "1"}}
	return labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{spec}}).Firewall("fw-a")
}

// table is a connection to the firewall's table.
func table(t *testing.T, fw *lab.Firewall) *conntrack.Conn {
	t.Helper()
	c, err := conntrack.Dial(fw.NS)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// talk keeps up conversations of the clients, one in TCP and one in UDP each.
func talk(t *testing.T, fw *lab.Firewall, port uint16, clients ...netip.Addr) *traffic.Talkers {
	t.Helper()
	talkers, err := traffic.Start(t.Context(), fw, traffic.Talk{
		Clients: clients, Servers: []netip.Addr{addr("203.0.113.16"), addr("2001:db8:113::16")}, Port: port,
		Kept: 1, Interval: 10 * time.Millisecond, Timeout: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(talkers.Close)
	return talkers
}

// flood sends n packets, each a flow of its own, from one address.
func flood(t *testing.T, fw *lab.Firewall, from netip.Addr, n int) {
	t.Helper()
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: single(from), Destinations: prefix("203.0.113.7/32"), Port: 53, Count: n}
	if from.Is6() {
		f.Destinations = prefix("2001:db8:113::7/128")
	}
	if report, err := f.Run(t.Context(), fw); err != nil || report.Lost != 0 {
		t.Fatalf("flood: %+v, %v", report, err)
	}
}

// entries counts the entries that have the address on either side.
func entries(t *testing.T, c *conntrack.Conn, a netip.Addr) (n int) {
	t.Helper()
	err := c.Dump(t.Context(), func(rows []events.Event) error {
		for i := range rows {
			if rows[i].Src() == a || rows[i].Dst() == a {
				n++
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAFlushAloneStopsNobodyAndAfterABlockItDoes(t *testing.T) {
	t.Parallel()
	fw := firewall(t)
	c := table(t, fw)
	b := blocker(t, block.Config{Namespace: fw.NS})
	offenders := []netip.Addr{addr("198.18.0.66"), addr("2001:db8:18::66")}
	others := talk(t, fw, 7, addr("198.18.0.1"), addr("198.18.0.67"), addr("2001:db8:18::1"), addr("2001:db8:18::67"))
	offending := talk(t, fw, 8, offenders...)
	flush := func() {
		t.Helper()
		for _, a := range offenders {
			// Either side: an entry that an answer under way made again has the server as its source.
			res, err := c.Flush(t.Context(), conntrack.Match{Prefixes: []netip.Prefix{single(a)}, By: events.ByEither}, conntrack.FlushOptions{})
			if err != nil || res.Deleted != 2 {
				t.Errorf("flush of %s: %+v, %v, want its TCP and its UDP entry deleted", a, res, err)
			}
		}
	}

	flush()
	before := offending.Stats().Echoed
	eventually(t, "the offenders' conversations go on", func() bool { return offending.Stats().Echoed > before+40 })
	if got := offending.Stats().Broken; got != 0 {
		t.Fatalf("%d conversations broken by a flush alone", got)
	}
	for _, a := range offenders {
		if n := entries(t, c, a); n != 2 {
			t.Errorf("%d entries of %s after a flush alone, want those two that its next packets make", n, a)
		}
	}

	for _, a := range offenders {
		add(t, b, single(a).String(), time.Minute, time.Minute)
	}
	stopped := offending.Stats().Echoed // but for echoes that have arrived and were not counted yet
	flush()
	undisturbed := others.Stats().Echoed
	// Each offender tries again and again, and its servers send their last answers again.
	eventually(t, "the offenders' conversations break", func() bool { return offending.Stats().Broken >= 4 })
	eventually(t, "others go on", func() bool { return others.Stats().Echoed > undisturbed+80 })
	if got := offending.Stats().Echoed; got > stopped+4 {
		t.Errorf("%d echoes after the block", got-stopped)
	}
	for _, a := range offenders {
		if n := entries(t, c, a); n != 0 {
			t.Errorf("%d entries of %s came back", n, a)
		}
	}
	if got := others.Stats().Broken; got != 0 {
		t.Errorf("%d conversations of others broken", got)
	}

	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "unblocked, they talk again", func() bool { return offending.Stats().Echoed > stopped+40 })
}

// Every kind of block drops what it should and nothing beside it.
func TestWhatIsBlockedMakesNoEntry(t *testing.T) {
	t.Parallel()
	fw := firewall(t)
	c := table(t, fw)
	b := blocker(t, block.Config{Namespace: fw.NS})
	for _, p := range []string{"198.18.1.1/32", "198.18.2.0/25", "198.19.0.0/17", "2001:db8:18:1::1/128", "2001:db8:18:2::/63", "203.0.113.200/32"} {
		add(t, b, p, time.Minute, time.Minute)
	}
	for a, want := range map[string]int{
		"198.18.1.1": 0, "198.18.1.0": 3, "198.18.1.2": 3,
		"198.18.2.0": 0, "198.18.2.127": 0, "198.18.1.255": 3, "198.18.2.128": 3,
		"198.19.0.0": 0, "198.19.127.255": 0, "198.19.128.0": 3,
		"2001:db8:18:1::1": 0, "2001:db8:18:1::2": 3,
		"2001:db8:18:2::": 0, "2001:db8:18:3:ffff:ffff:ffff:ffff": 0, "2001:db8:18:4::": 3,
	} {
		flood(t, fw, addr(a), 3)
		if got := entries(t, c, addr(a)); got != want {
			t.Errorf("3 packets from %s made %d entries, want %d", a, got, want)
		}
	}
	// What is sent to a blocked address, from one that is not.
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: prefix("198.18.3.1/32"), Destinations: prefix("203.0.113.200/32"), Port: 53, Count: 3}
	if _, err := f.Run(t.Context(), fw); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, c, addr("198.18.3.1")); got != 0 {
		t.Errorf("3 packets to a blocked address made %d entries", got)
	}

	if _, err := b.Delete(prefix("198.18.2.0/25")); err != nil {
		t.Fatal(err)
	}
	flood(t, fw, addr("198.18.2.1"), 3)
	if got := entries(t, c, addr("198.18.2.1")); got != 3 {
		t.Errorf("after the block, 3 packets made %d entries", got)
	}
	add(t, b, "198.18.2.0/25", time.Second, time.Second)
	time.Sleep(time.Second)
	flood(t, fw, addr("198.18.2.2"), 3)
	if got := entries(t, c, addr("198.18.2.2")); got != 3 {
		t.Errorf("after a block for 1 s has ended, 3 packets made %d entries", got)
	}
}

// While a block is prolonged over and over, nothing slips through.
func TestThereIsNoGapWhenABlockIsProlonged(t *testing.T) {
	t.Parallel()
	fw := firewall(t)
	c := table(t, fw)
	addSet(t, fw.NS, range4)
	conn := nft(t, fw.NS)
	chain := conn.AddChain(&nftables.Chain{
		Table: filter, Name: "raw", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
	})
	conn.AddRule(&nftables.Rule{Table: filter, Chain: chain, Exprs: dropBySource(&range4)})
	flush(t, conn)

	own := blocker(t, block.Config{Namespace: fw.NS})
	theirs := blocker(t, block.Config{Namespace: fw.NS, Sets: names(range4)})
	for _, x := range []struct {
		name   string
		b      *block.Blocker
		source string
		blocks []string
	}{
		{"an address in our own table", own, "198.18.0.66", []string{"198.18.0.66/32"}},
		{"a prefix in our own table", own, "198.18.1.66", []string{"198.18.1.0/24"}},
		{"an address in an operator's set", theirs, "198.18.2.66", []string{"198.18.2.66/32"}},
		{"prefixes around it in an operator's set", theirs, "198.18.3.66", []string{"198.18.3.0/24", "198.18.3.64/26", "198.18.3.66/32"}},
	} {
		for _, p := range x.blocks {
			add(t, x.b, p, time.Minute, time.Minute)
		}
		ctx, cancel := context.WithCancel(t.Context())
		sent := make(chan int)
		go func() {
			f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: single(addr(x.source)), Destinations: prefix("203.0.113.7/32"), Port: 53, Ports: 100, Duration: time.Minute}
			report, err := f.Run(ctx, fw)
			if err != nil {
				t.Error(err)
			}
			sent <- report.Sent
		}()
		for i := range 15 {
			d := time.Duration(i+2) * time.Minute
			for _, p := range x.blocks {
				d += time.Second
				if e, err := x.b.Add(prefix(p), d); err != nil || e.Left != d {
					t.Errorf("%s: prolonged to %s: %+v, %v", x.name, d, e, err)
				}
			}
		}
		cancel()
		n := <-sent
		if n < 500 {
			t.Errorf("%s: only %d packets were sent meanwhile", x.name, n)
		}
		if got := entries(t, c, addr(x.source)); got != 0 {
			t.Errorf("%s: %d of %d packets passed", x.name, got, n)
		}
	}
}

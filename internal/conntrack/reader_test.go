//go:build linux

package conntrack

import (
	"bytes"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestReaderHearsEveryKindOfFlow(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r, c := open(t, fw.NS, 0), dial(t, fw.NS)
	const n = 50
	for _, f := range []struct {
		name     string
		protocol uint8
		src, dst netip.Prefix
		port     uint16
	}{
		{"UDP", unix.IPPROTO_UDP, client4, server4, 53},
		{"TCP", unix.IPPROTO_TCP, client4, server4, 443},
		{"ICMP", unix.IPPROTO_ICMP, client4, server4, 0},
		{"SCTP", unix.IPPROTO_SCTP, client4, server4, 3868},
		{"GRE", unix.IPPROTO_GRE, netip.MustParsePrefix("198.18.1.0/24"), server4, 0},
		{"UDP over IPv6", unix.IPPROTO_UDP, client6, server6, 53},
		{"TCP over IPv6", unix.IPPROTO_TCP, client6, server6, 443},
		{"ICMPv6", unix.IPPROTO_ICMPV6, client6, server6, 0},
		{"SCTP over IPv6", unix.IPPROTO_SCTP, client6, server6, 3868},
		{"GRE over IPv6", unix.IPPROTO_GRE, netip.MustParsePrefix("2001:db8:18:1::/64"), server6, 0},
	} {
		t.Run(f.name, func(t *testing.T) {
			before := Monotonic()
			fl := traffic.Flood{Protocol: f.protocol, Sources: f.src, Destinations: f.dst, Port: f.port, Count: n}
			if !f.src.IsSingleIP() {
				fl.SourceCount = n
			}
			flood(t, fw, fl)
			begun := collect(t, r, n)
			if _, err := c.Flush(t.Context(), Match{Prefixes: []netip.Prefix{f.dst}, By: events.ByDst}, FlushOptions{}); err != nil {
				t.Fatal(err)
			}
			ended := collect(t, r, n)
			if len(begun) != n || len(ended) != n {
				t.Fatalf("%d events NEW and %d DESTROY, want %d of each", len(begun), len(ended), n)
			}
			live := map[events.Tuple]uint32{}
			last := before
			for _, e := range begun {
				if e.Type != events.New || e.Proto != f.protocol || !f.src.Contains(e.Src()) || e.Dst() != f.dst.Addr() || e.NAT || e.Replied() || e.ID == 0 {
					t.Fatalf("%+v is not a NEW from %s to %s", e, f.src, f.dst)
				}
				if e.Time < last {
					t.Fatalf("time %d after %d", e.Time, last)
				}
				last = e.Time
				live[e.Orig] = e.ID
			}
			if now := Monotonic(); last > now {
				t.Errorf("an event of time %d, now is %d", last, now)
			}
			for _, e := range ended {
				if id, ok := live[e.Orig]; e.Type != events.Destroy || !ok || id != e.ID {
					t.Fatalf("%+v is not the end of a flow that began (id %d)", e, id)
				}
				delete(live, e.Orig)
			}
			if len(live) != 0 {
				t.Errorf("%d of %d flows had no tuple of their own", len(live), n)
			}
		})
	}
	if drops, err := r.Drops(); drops != 0 || err != nil || r.Undecodable() != 0 {
		t.Errorf("dropped %d (%v), undecodable %d, want none", drops, err, r.Undecodable())
	}
}

func TestReaderSeesNATBothWays(t *testing.T) {
	vip := netip.MustParseAddrPort("203.0.113.80:80")
	real := netip.MustParseAddrPort("203.0.113.7:8080")
	fw := firewall(t, lab.FirewallSpec{Masquerade: true, DNAT: []lab.DNAT{{Protocol: unix.IPPROTO_TCP, From: vip, To: real}}})
	r := open(t, fw.NS, 0)
	flood(t, fw, traffic.Flood{Protocol: unix.IPPROTO_TCP, Sources: client4, Destinations: netip.PrefixFrom(vip.Addr(), 32), Port: vip.Port(), Count: 1})
	e := collect(t, r, 1)[0]
	if e.Src() != client4.Addr() || e.Dst() != vip.Addr() {
		t.Errorf("original tuple %s to %s, want the client before SNAT and the address before DNAT", e.Src(), e.Dst())
	}
	answeredBy, answeredTo := e.Reply.Src.Netip(false), e.Reply.Dst.Netip(false)
	own := false
	for _, a := range fw.Addrs {
		own = own || a == answeredTo
	}
	if !e.NAT || answeredBy != real.Addr() || e.Reply.SrcPort != real.Port() || !own {
		t.Errorf("reply tuple %s:%d to %s (NAT %v), want the real server %s to one of the firewall's %v", answeredBy, e.Reply.SrcPort, answeredTo, e.NAT, real, fw.Addrs)
	}
}

func TestReaderTellsInsertedFromNew(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r, o := open(t, fw.NS, 0), oracle(t, fw.NS)
	if err := o.Create(timo.NewFlow(unix.IPPROTO_UDP, 0, client4.Addr(), server4.Addr(), 4000, 53, 60, 0)); err != nil {
		t.Fatal(err)
	}
	if e := collect(t, r, 1)[0]; e.Type != events.Existing {
		t.Errorf("an entry that a program inserted is %s, want EXISTING: nobody has just connected", e.Type)
	}
}

func TestReaderCountsDropsExactly(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 64<<10)
	const n = 5000
	flood(t, fw, udp(client4, n))
	used, limit, err := r.Pressure()
	if err != nil {
		t.Fatal(err)
	}
	if used <= limit/2 || used > limit+eventCost {
		t.Errorf("%d of %d bytes used after an overrun, want it nearly full", used, limit)
	}
	received := 0
	for {
		got, err := r.Receive(0, func([]events.Event) {})
		if err != nil {
			t.Fatal(err)
		}
		if received += got; got == 0 {
			break
		}
	}
	drops, err := r.Drops()
	if err != nil {
		t.Fatal(err)
	}
	if uint64(received)+drops != n || drops == 0 {
		t.Errorf("%d received + %d dropped, want %d together, and drops", received, drops, n)
	}
	if per := limit / received; per < eventCost*9/10 || per > eventCost*11/10 {
		t.Errorf("%d events fitted into %d bytes: %d bytes each, the pacing of naps and deletes takes it for %d", received, limit, per, eventCost)
	}
	// The overrun is over: what comes now is heard.
	flood(t, fw, udp(other4, 10))
	collect(t, r, 10)
	if again, err := r.Drops(); again != drops || err != nil {
		t.Errorf("%d drops (%v) after the buffer was emptied, want %d still", again, err, drops)
	}
}

// TestDropsWiden feeds the widening of the kernel's 32 bits with wraps that
// would take four billion real drops.
func TestDropsWiden(t *testing.T) {
	var d dropCount
	for _, step := range []struct {
		kernel uint32
		want   uint64
	}{{5, 5}, {5, 5}, {1<<32 - 1, 1<<32 - 1}, {0, 1 << 32}, {7, 1<<32 + 7}, {6, 2<<32 + 6}} {
		if got := d.widen(step.kernel); got != step.want {
			t.Errorf("kernel's count %d: %d drops, want %d", step.kernel, got, step.want)
		}
	}
}

func TestReceiveDoesNotAllocate(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 0)
	// Enough for every run to find a full share: the flood must be over by
	// then, since it allocates.
	const runs = 4
	const n = (runs + 2) * vector * maxRounds
	labtest.RequireRoom(t, r.Room(), n)
	flood(t, fw, udp(client4, n))
	var seen int
	count := func(evs []events.Event) { seen += len(evs) }
	allocs := testing.AllocsPerRun(runs, func() {
		if _, err := r.Receive(time.Second, count); err != nil {
			t.Error(err)
		}
	})
	if allocs != 0 || seen < runs*vector*maxRounds {
		t.Errorf("%v allocations per Receive of %d events, want none", allocs, seen/(runs+1))
	}
}

// TestBacklogIsReadWithoutNaps: what more than one Receive takes is taken by
// those that follow at once, or the naps would bound the rate of events.
func TestBacklogIsReadWithoutNaps(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 0)
	const n = 5*vector*maxRounds + 10
	labtest.RequireRoom(t, r.Room(), n)
	flood(t, fw, udp(client4, n))
	r.nap = time.Minute
	for seen, start := 0, time.Now(); seen < n; {
		got, err := r.Receive(time.Minute, func([]events.Event) {})
		if err != nil {
			t.Fatal(err)
		}
		if seen += got; time.Since(start) > patience {
			t.Fatalf("%d of %d events after %s", seen, n, time.Since(start))
		}
	}
}

func TestReceiveWaits(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 0)
	const wait = 50 * time.Millisecond
	start := time.Now()
	n, err := r.Receive(wait, func(evs []events.Event) { t.Errorf("events in a quiet namespace: %+v", evs) })
	if took := time.Since(start); n != 0 || err != nil || took < wait {
		t.Errorf("%d events, error %v after %s, want none after %s", n, err, took, wait)
	}
}

// TestStopEndsWaits: after Stop nothing waits, and what is there is received.
func TestStopEndsWaits(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 0)
	ended := make(chan error)
	go func() {
		_, err := r.Receive(time.Minute, func([]events.Event) {})
		ended <- err
	}()
	time.Sleep(20 * time.Millisecond) // into the wait; stopping before it begins must work as well
	r.Stop()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Receive still waits")
	}
	for _, busy := range []bool{false, true} {
		r.busy = busy
		start := time.Now()
		if n, err := r.Receive(time.Minute, nil); n != 0 || err != nil || time.Since(start) > patience {
			t.Errorf("busy %t: %d events, %v after %s", busy, n, err, time.Since(start))
		}
	}
	flood(t, fw, udp(client4, 10))
	collect(t, r, 10)
}

func TestCloseEndsReceive(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	for _, c := range []struct {
		name string
		busy bool
	}{{"waiting", false}, {"napping", true}} {
		t.Run(c.name, func(t *testing.T) {
			r := open(t, fw.NS, 0)
			r.busy = c.busy
			ended := make(chan error)
			go func() {
				_, err := r.Receive(time.Minute, func([]events.Event) {})
				ended <- err
			}()
			if !c.busy {
				time.Sleep(20 * time.Millisecond) // into the wait; closing before it begins must work as well
			}
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
			select {
			case err := <-ended:
				errorsIs(t, err, ErrClosed)
			case <-time.After(patience):
				t.Fatal("Receive still waits")
			}
			_, err := r.Receive(0, nil)
			errorsIs(t, err, ErrClosed)
			_, err = r.Drops()
			errorsIs(t, err, ErrClosed)
			_, _, err = r.Pressure()
			errorsIs(t, err, ErrClosed)
		})
	}
}

// TestReaderFromManySides is for the race detector: one receives, others ask,
// and one closes.
func TestReaderFromManySides(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 0)
	var all sync.WaitGroup
	for _, ask := range []func() error{
		func() error { _, err := r.Receive(time.Second, func([]events.Event) {}); return err },
		func() error { _, err := r.Drops(); return err },
		func() error { _, _, err := r.Pressure(); return err },
	} {
		all.Go(func() {
			for {
				_ = r.Undecodable()
				if err := ask(); err != nil {
					errorsIs(t, err, ErrClosed)
					return
				}
			}
		})
	}
	flood(t, fw, udp(client4, 2000))
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	all.Wait()
}

func TestReaderOutlivesWhatItCannotDecode(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	r := open(t, fw.NS, 0)

	// Another program sends us a perfect event: it is not the kernel.
	foreign, err := openSocket(fw.NS, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.close()
	if err := unix.Sendto(foreign.fd, stored(t)["udp4-plain-new"], 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: r.sock.port}); err != nil {
		t.Fatal(err)
	}
	// The kernel sends us what is no conntrack event: a change of the ruleset.
	const groupNFTables = 7 // NFNLGRP_NFTABLES
	if err := unix.SetsockoptInt(r.sock.fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, groupNFTables); err != nil {
		t.Fatal(err)
	}
	nft, err := nftables.New(nftables.WithNetNSFd(fw.NS.FD()))
	if err != nil {
		t.Fatal(err)
	}
	nft.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "noise"})
	if err := nft.Flush(); err != nil {
		t.Fatal(err)
	}
	flood(t, fw, udp(client4, 5))
	if got := collect(t, r, 5); len(got) != 5 {
		t.Errorf("%d events, want 5", len(got))
	}
	if n := r.Undecodable(); n < 2 {
		t.Errorf("%d messages undecodable, want the foreign one and the ruleset's", n)
	}
}

func TestNapFollowsTheBuffer(t *testing.T) {
	for _, limit := range []int{1, 4096, 2 * 212992, 8 << 20, 2 * DefaultBuffer} {
		nap := napFor(limit)
		if nap < minNap || nap > maxNap {
			t.Errorf("%d bytes: nap of %s, want %s to %s", limit, nap, minNap, maxNap)
		}
		if in := float64(peakRate) * nap.Seconds(); nap > minNap && in > float64(limit/eventCost)/3 {
			t.Errorf("%d bytes: %0.f events in a nap of %s, a third of what it holds is too many", limit, in, nap)
		}
	}
	if napFor(2*DefaultBuffer) != maxNap {
		t.Errorf("the default buffer allows %s, want the longest nap", napFor(2*DefaultBuffer))
	}
}

func TestNewReaderRefusesNonsense(t *testing.T) {
	for _, bytes := range []int{-1, 1 << 31} {
		if r, err := NewReader(ReaderConfig{BufferBytes: bytes}); err == nil {
			t.Errorf("a buffer of %d bytes was accepted", bytes)
			_ = r.Close()
		}
	}
}

// FuzzDatagram: whatever is in a datagram, each message in it is delivered or
// counted, and none is invented.
func FuzzDatagram(f *testing.F) {
	msgs := stored(f)
	one, two := msgs["udp4-plain-new"], msgs["tcp6-acct-destroy"]
	f.Add(one)
	f.Add(append(bytes.Clone(one), two...))
	f.Add(append(bytes.Clone(one), 1, 2, 3))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, datagram []byte) {
		var c chunk
		seen := 0
		count := func(evs []events.Event) { seen += len(evs) }
		delivered, bad := c.add(datagram, count)
		delivered += c.deliver(count)
		if delivered != seen || delivered+bad > 1+len(datagram)/nlmsgHeader {
			t.Errorf("%d delivered, %d seen, %d bad in %d bytes", delivered, seen, bad, len(datagram))
		}
		if len(datagram) > 0 && delivered+bad == 0 {
			t.Error("bytes that nobody accounts for")
		}
	})
}

func TestDatagramOfSeveralMessages(t *testing.T) {
	msgs := stored(t)
	datagram := bytes.Clone(msgs["udp4-plain-new"])
	foreign := bytes.Clone(msgs["tcp4-plain-new"])
	foreign[5] = 10 // of another subsystem
	datagram = append(append(datagram, foreign...), msgs["tcp6-acct-destroy"]...)
	var c chunk
	var got []events.Type
	types := func(evs []events.Event) {
		for _, e := range evs {
			got = append(got, e.Type)
		}
	}
	delivered, bad := c.add(datagram, types)
	delivered += c.deliver(types)
	if delivered != 2 || bad != 1 || len(got) != 2 || got[0] != events.New || got[1] != events.Destroy {
		t.Errorf("%d delivered (%v), %d bad, want NEW and DESTROY around one that is not ours", delivered, got, bad)
	}
}

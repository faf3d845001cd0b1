//go:build linux

package block_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/block"
)

func TestTheFirstAddMakesTheTable(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	wantList(t, b)
	unblock(t, b, "192.0.2.1/32", false)
	if got := ruleset(t, ns, ""); got != "" {
		t.Errorf("before the first block there is:\n%s", got)
	}

	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	add(t, b, "192.0.2.77/24", 2*time.Minute, 2*time.Minute)
	add(t, b, "2001:db8::1/64", time.Hour, time.Hour)
	add(t, b, "255.255.255.255/32", 1500*time.Millisecond, 1500*time.Millisecond)
	got := ruleset(t, ns, "")
	for _, want := range []string{
		"1/ctfleet flags 0",
		" chain prerouting filter hook 0 priority -450\n",
		" set ipv4_32 ipv4_addr interval false timeout true size 65536\n",
		"  [192 0 2 1] end false timeout 1m0s comment \"\"\n",
		"  [255 255 255 255] end false timeout 1.5s comment \"\"\n",
		" set ipv4_24 ipv4_addr interval false timeout true size 65536\n  [192 0 2 0] end false timeout 2m0s comment \"\"\n",
		" set ipv6_64 ipv6_addr interval false timeout true size 65536\n  [32 1 13 184 0 0 0 0 0 0 0 0 0 0 0 0] end false timeout 1h0m0s comment \"\"\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if n := strings.Count(got, "\n  rule "); n != 6 {
		t.Errorf("%d rules, want two for each length:\n%s", n, got)
	}

	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, ""); got != "" {
		t.Errorf("after Clear there is:\n%s", got)
	}
	wantList(t, b)
	if err := b.Clear(); err != nil {
		t.Errorf("Clear again: %v", err)
	}
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
}

func TestABlockIsProlongedAndNeverShortened(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	for _, p := range []string{"192.0.2.1/32", "2001:db8::/48"} {
		add(t, b, p, 10*time.Minute, 10*time.Minute)
		add(t, b, p, time.Minute, 10*time.Minute)
		add(t, b, p, 20*time.Minute, 20*time.Minute)
		add(t, b, p, block.MinFor, 20*time.Minute)
	}
	wantList(t, b, "192.0.2.1/32", 20*time.Minute, "2001:db8::/48", 20*time.Minute)
	// The library reads the same.
	c := nft(t, ns)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: block.Table}
	el := must[[]nftables.SetElement](t)(c.GetSetElements(&nftables.Set{Table: table, Name: "ipv4_32"}))
	if len(el) != 1 || el[0].Timeout != 20*time.Minute || !about(el[0].Expires, 20*time.Minute) {
		t.Errorf("the kernel holds %+v", el)
	}
}

// A prefix, one inside it and an address inside both each have an end of their own.
func TestBlocksOverlap(t *testing.T) {
	t.Parallel()
	b, _ := own(t)
	add(t, b, "192.0.2.0/24", 10*time.Minute, 10*time.Minute)
	add(t, b, "192.0.2.128/25", time.Hour, time.Hour)
	add(t, b, "192.0.2.129/32", time.Minute, time.Minute)
	add(t, b, "192.0.0.0/16", 5*time.Minute, 5*time.Minute)
	add(t, b, "2001:db8::1/128", time.Hour, time.Hour)
	add(t, b, "2001:db8::/32", time.Minute, time.Minute)
	wantList(t, b,
		"192.0.0.0/16", 5*time.Minute, "192.0.2.0/24", 10*time.Minute, "192.0.2.128/25", time.Hour, "192.0.2.129/32", time.Minute,
		"2001:db8::/32", time.Minute, "2001:db8::1/128", time.Hour)
	unblock(t, b, "192.0.2.0/24", true)
	unblock(t, b, "192.0.2.0/24", false)
	unblock(t, b, "192.0.2.130/32", false) // only a prefix covers it
	wantList(t, b,
		"192.0.0.0/16", 5*time.Minute, "192.0.2.128/25", time.Hour, "192.0.2.129/32", time.Minute,
		"2001:db8::/32", time.Minute, "2001:db8::1/128", time.Hour)
}

func TestBlocksSurviveARestart(t *testing.T) {
	t.Parallel()
	before, ns := own(t)
	add(t, before, "192.0.2.1/32", time.Minute, time.Minute)
	add(t, before, "2001:db8::/32", time.Minute, time.Minute)
	was := ruleset(t, ns, "")

	b := blocker(t, block.Config{Namespace: ns})
	wantList(t, b, "192.0.2.1/32", time.Minute, "2001:db8::/32", time.Minute)
	if got := ruleset(t, ns, ""); got != was {
		t.Errorf("New made of\n%s\nthis:\n%s", was, got)
	}
	add(t, b, "192.0.2.2/32", time.Minute, time.Minute)
	add(t, b, "192.0.2.1/32", time.Hour, time.Hour)
	if got := ruleset(t, ns, ""); strings.Count(got, "\n  rule ") != 4 {
		t.Errorf("not the rules that were there:\n%s", got)
	}
	wantList(t, b, "192.0.2.1/32", time.Hour, "192.0.2.2/32", time.Minute, "2001:db8::/32", time.Minute)
}

func TestOtherTablesAreLeftAlone(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	c := nft(t, ns)
	// One has our name in another family, one has sets of our names.
	for i, table := range []*nftables.Table{{Family: nftables.TableFamilyIPv4, Name: block.Table}, {Family: nftables.TableFamilyINet, Name: "other"}} {
		c.AddTable(table)
		set := &nftables.Set{Table: table, Name: "ipv4_32", KeyType: nftables.TypeIPAddr, HasTimeout: true, ID: uint32(100 + i)}
		if err := c.AddSet(set, []nftables.SetElement{{Key: addr("192.0.2.1").AsSlice(), Timeout: time.Hour}}); err != nil {
			t.Fatal(err)
		}
		chain := c.AddChain(&nftables.Chain{
			Table: table, Name: "prerouting", Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw,
		})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dropBySource(set)})
	}
	flush(t, c)
	was := ruleset(t, ns, "")

	wantList(t, b)
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	add(t, b, "192.0.2.0/24", time.Minute, time.Minute)
	if _, err := b.Delete(prefix("192.0.2.1/32")); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, "1/ctfleet"); got != was {
		t.Errorf("blocks made of\n%s\nthis:\n%s", was, got)
	}
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, ""); got != was {
		t.Errorf("Clear made of\n%s\nthis:\n%s", was, got)
	}
}

// Others flush rulesets, when they reload theirs.
func TestTheTableIsMadeAgain(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	c := nft(t, ns)
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: block.Table}
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	add(t, b, "192.0.2.0/24", time.Minute, time.Minute)

	c.FlushRuleset()
	flush(t, c)
	wantList(t, b)
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	if got := ruleset(t, ns, ""); strings.Count(got, "\n  rule ") != 2 {
		t.Errorf("after `nft flush ruleset`:\n%s", got)
	}

	c.FlushTable(table)
	flush(t, c)
	add(t, b, "192.0.2.2/32", time.Minute, time.Minute)
	if got := ruleset(t, ns, ""); strings.Count(got, "\n  rule ") != 2 {
		t.Errorf("after `nft flush table`:\n%s", got)
	}
	wantList(t, b, "192.0.2.1/32", time.Minute, "192.0.2.2/32", time.Minute)
}

func TestATableThatIsNotOurs(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	c := nft(t, ns)
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: block.Table})
	c.AddChain(&nftables.Chain{
		Table: table, Name: "prerouting", Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter,
	})
	flush(t, c)
	_, err := b.Add(prefix("192.0.2.1/32"), time.Minute)
	if err == nil || !strings.Contains(err.Error(), "table inet ctfleet is not of our making") {
		t.Errorf("block: %v", err)
	}
	if got := ruleset(t, ns, ""); strings.Contains(got, " set ") || strings.Contains(got, "  rule ") {
		t.Errorf("half of it was made:\n%s", got)
	}
	wantList(t, b)
}

func TestABlockEnds(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	start := time.Now()
	add(t, b, "192.0.2.1/32", time.Second, time.Second)
	add(t, b, "2001:db8::/64", time.Second, time.Second)
	add(t, b, "192.0.2.2/32", time.Minute, time.Minute)
	eventually(t, "two of three end", func() bool {
		list, err := b.List()
		return err != nil || len(list) == 1
	})
	const tick = 10 * time.Millisecond // at most, in which the kernel counts
	if took := time.Since(start); took < time.Second-tick || took > 2*time.Second {
		t.Errorf("blocks for 1 s lasted %s", took)
	}
	wantList(t, b, "192.0.2.2/32", time.Minute)
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute) // though the kernel may not have collected it yet
	wantList(t, b, "192.0.2.1/32", time.Minute, "192.0.2.2/32", time.Minute)
	if got := ruleset(t, ns, ""); strings.Count(got, "\n  [192 0 2 1]") != 1 {
		t.Errorf("the kernel holds:\n%s", got)
	}
}

func TestFull(t *testing.T) {
	t.Parallel()
	b, _ := own(t)
	b.SetMax(3)
	add(t, b, "192.0.2.1/32", time.Second, time.Second)
	add(t, b, "192.0.2.0/24", time.Minute, time.Minute)
	add(t, b, "2001:db8::1/128", time.Minute, time.Minute)
	add(t, b, "192.0.2.0/24", time.Hour, time.Hour) // is none more
	if _, err := b.Add(prefix("192.0.2.2/32"), time.Minute); !errors.Is(err, block.ErrFull) {
		t.Errorf("a fourth block of three: %v", err)
	}
	wantList(t, b, "192.0.2.0/24", time.Hour, "192.0.2.1/32", time.Second, "2001:db8::1/128", time.Minute)
	eventually(t, "there is room when one has ended", func() bool {
		_, err := b.Add(prefix("192.0.2.2/32"), time.Minute)
		return err == nil
	})
	unblock(t, b, "192.0.2.2/32", true)
	add(t, b, "192.0.2.3/32", time.Minute, time.Minute)
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	f := func(p netip.Prefix, d time.Duration, want string) {
		t.Helper()
		if _, err := b.Add(p, d); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("block %s for %s: %v, want an error with %q", p, d, err, want)
		}
	}
	f(netip.Prefix{}, time.Minute, "not a prefix")
	f(single(addr("::ffff:192.0.2.1")), time.Minute, "write the IPv4 prefix")
	f(prefix("0.0.0.0/0"), time.Minute, "that is every address")
	f(prefix("2001:db8::/0"), time.Minute, "that is every address")
	f(prefix("192.0.2.1/32"), 0, "want 1s to 24h0m0s")
	f(prefix("192.0.2.1/32"), -time.Minute, "want 1s to 24h0m0s")
	f(prefix("192.0.2.1/32"), block.MinFor-1, "want 1s to 24h0m0s")
	f(prefix("192.0.2.1/32"), block.MaxFor+1, "want 1s to 24h0m0s")
	if _, err := b.Delete(single(addr("::ffff:192.0.2.1"))); err == nil {
		t.Error("an IPv4-mapped address was looked for")
	}
	if got := ruleset(t, ns, ""); got != "" {
		t.Errorf("refusals made:\n%s", got)
	}
	add(t, b, "192.0.2.1/32", block.MaxFor, block.MaxFor)
	add(t, b, "192.0.2.2/32", block.MinFor, block.MinFor)
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	b, _ := own(t)
	var work sync.WaitGroup
	for i := range 4 {
		work.Go(func() {
			for j := range 10 {
				p := single(netip.AddrFrom4([4]byte{192, 0, 2, byte(j)}))
				d := time.Duration(1+i*10+j) * time.Minute
				if e, err := b.Add(p, d); err != nil || e.Left < d-10*time.Second {
					t.Errorf("block %s for %s: %+v, %v", p, d, e, err)
				}
				if _, err := b.Add(prefix("2001:db8::1/128"), d); err != nil {
					t.Error(err)
				}
				if _, err := b.List(); err != nil {
					t.Error(err)
				}
				if _, err := b.Delete(prefix("2001:db8::1/128")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	work.Wait()
	var want []any
	for j := range 10 {
		want = append(want, fmt.Sprintf("192.0.2.%d/32", j), time.Duration(1+30+j)*time.Minute)
	}
	wantList(t, b, want...)
}

func TestManyBlocks(t *testing.T) {
	t.Parallel()
	b, ns := own(t)
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	// Many more than one message of a dump holds, put there at once.
	c := nft(t, ns)
	set := &nftables.Set{Table: &nftables.Table{Family: nftables.TableFamilyINet, Name: block.Table}, Name: "ipv4_32", HasTimeout: true}
	for i := range 20 {
		var el []nftables.SetElement
		for j := range 250 {
			el = append(el, nftables.SetElement{Key: []byte{198, 18, byte(i), byte(j)}, Timeout: time.Hour})
		}
		if err := c.SetAddElements(set, el); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, c)

	// And somebody who commits all the time, which interrupts dumps.
	stop := make(chan struct{})
	var work sync.WaitGroup
	work.Go(func() {
		other := nft(t, ns)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
			}
			other.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: fmt.Sprint("t", i%10)})
			if err := other.Flush(); err != nil {
				t.Error(err)
			}
		}
	})
	for range 10 {
		list, err := b.List()
		if err != nil {
			t.Error(err)
			break
		}
		list = slices.CompactFunc(list, func(x, y block.Entry) bool { return x.Prefix == y.Prefix })
		if len(list) != 5001 {
			t.Errorf("%d blocks are listed, want 5001", len(list))
		}
	}
	close(stop)
	work.Wait()
	add(t, b, "192.0.2.1/32", time.Hour, time.Hour)
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	wantList(t, b)
}

func TestTheProcessOwnNamespace(t *testing.T) {
	ns := namespace(t)
	err := ns.Do(func() error {
		b, err := block.New(block.Config{})
		if err != nil {
			return err
		}
		_, err = b.Add(prefix("192.0.2.1/32"), time.Minute)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	wantList(t, blocker(t, block.Config{Namespace: ns}), "192.0.2.1/32", time.Minute)
	if err := ns.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := block.New(block.Config{Namespace: ns}); err == nil || errors.Is(err, unix.EBADF) {
		t.Errorf("in a closed namespace: %v", err)
	}
}

//go:build linux

package block_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/host"
)

// The operator's table and sets. Each namespace has its own.
var (
	filter = &nftables.Table{Family: nftables.TableFamilyINet, Name: "filter"}

	hash4  = nftables.Set{Table: filter, Name: "blocked4", KeyType: nftables.TypeIPAddr, HasTimeout: true}
	hash6  = nftables.Set{Table: filter, Name: "blocked6", KeyType: nftables.TypeIP6Addr, HasTimeout: true}
	range4 = nftables.Set{Table: filter, Name: "nets4", KeyType: nftables.TypeIPAddr, HasTimeout: true, Interval: true}
	range6 = nftables.Set{Table: filter, Name: "nets6", KeyType: nftables.TypeIP6Addr, HasTimeout: true, Interval: true}
)

// addSet makes a set of the operator's, and its table where it is missing.
func addSet(t *testing.T, ns *host.Namespace, s nftables.Set, elements ...nftables.SetElement) {
	t.Helper()
	c := nft(t, ns)
	c.AddTable(s.Table)
	s.ID = 1 // the library takes it from a variable that it does not lock
	if err := c.AddSet(&s, elements); err != nil {
		t.Fatal(err)
	}
	flush(t, c)
}

// names are the names of sets in the operator's table.
func names(sets ...nftables.Set) (list []block.SetName) {
	for _, s := range sets {
		list = append(list, block.SetName{Family: "inet", Table: s.Table.Name, Set: s.Name})
	}
	return list
}

// operators is a Blocker for sets that are made first.
func operators(t *testing.T, sets ...nftables.Set) (*block.Blocker, *host.Namespace) {
	t.Helper()
	ns := namespace(t)
	for _, s := range sets {
		addSet(t, ns, s)
	}
	return blocker(t, block.Config{Namespace: ns, Sets: names(sets...)}), ns
}

// theirs is an element of the operator's.
func theirs(a string, timeout time.Duration, comment string) nftables.SetElement {
	return nftables.SetElement{Key: addr(a).AsSlice(), Timeout: timeout, Comment: comment}
}

func end(a string) nftables.SetElement {
	return nftables.SetElement{Key: addr(a).AsSlice(), IntervalEnd: true}
}

// dropBySource is: ip saddr @SET drop.
func dropBySource(set *nftables.Set) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

func TestOperatorsSetsThatDoNotDo(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	with := func(s nftables.Set, change func(*nftables.Set)) nftables.Set {
		change(&s)
		return s
	}
	ip6 := &nftables.Table{Family: nftables.TableFamilyIPv6, Name: "filter"}
	for _, s := range []nftables.Set{
		hash4, hash6, range4, range6,
		with(hash4, func(s *nftables.Set) { s.Name, s.HasTimeout = "plain4", false }),
		with(hash6, func(s *nftables.Set) { s.Name, s.HasTimeout = "plain6", false }),
		with(hash4, func(s *nftables.Set) { s.Name, s.KeyType = "ports", nftables.TypeInetService }),
		with(hash4, func(s *nftables.Set) {
			s.Name, s.Concatenation, s.KeyType = "pairs", true, nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetService)
		}),
		with(hash4, func(s *nftables.Set) { s.Name, s.IsMap, s.DataType = "marks", true, nftables.TypeMark }),
		with(hash4, func(s *nftables.Set) { s.Table = ip6 }),
	} {
		addSet(t, ns, s)
	}
	f := func(want string, sets ...string) {
		t.Helper()
		cfg := block.Config{Namespace: ns}
		for _, s := range sets {
			n, err := block.ParseSetName(s)
			if err != nil {
				t.Fatal(err)
			}
			cfg.Sets = append(cfg.Sets, n)
		}
		b, err := block.New(cfg)
		switch {
		case want == "" && err != nil:
			t.Errorf("%v: %v", sets, err)
		case want != "" && (err == nil || b != nil || err.Error() != "open block sets: "+want):
			t.Errorf("%v: error\n%v, want\n%v", sets, err, want)
		}
	}
	f("", "inet/filter/blocked4")
	f("", "inet/filter/blocked6", "inet/filter/blocked4")
	f("", "inet/filter/nets4", "inet/filter/nets6")
	f("set inet/filter/nosuch: there is no such set: `nft 'add set inet filter nosuch { type ipv4_addr; flags timeout; }'`", "inet/filter/blocked4", "inet/filter/nosuch")
	f("set inet/filter/no6: there is no such set: `nft 'add set inet filter no6 { type ipv6_addr; flags timeout; }'`", "inet/filter/no6")
	f("set ip6/none/blocked: there is no such set, nor table ip6 none: `nft 'add table ip6 none; add set ip6 none blocked { type ipv6_addr; flags timeout; }'`", "ip6/none/blocked")
	f("set inet/filter/plain4: it lacks the flag timeout: remove the rules that look at it, then `nft 'delete set inet filter plain4; add set inet filter plain4 { type ipv4_addr; flags timeout; }'`", "inet/filter/plain4")
	f("set inet/filter/plain6: it lacks the flag timeout: remove the rules that look at it, then `nft 'delete set inet filter plain6; add set inet filter plain6 { type ipv6_addr; flags timeout; }'`", "inet/filter/plain6")
	f("set inet/filter/ports: it is not of type ipv4_addr or ipv6_addr: remove the rules that look at it, then `nft 'delete set inet filter ports; add set inet filter ports { type ipv4_addr; flags timeout; }'`", "inet/filter/ports")
	f("set inet/filter/pairs: it is not of type ipv4_addr or ipv6_addr: remove the rules that look at it, then `nft 'delete set inet filter pairs; add set inet filter pairs { type ipv4_addr; flags timeout; }'`", "inet/filter/pairs")
	f("set inet/filter/marks: it is a map: remove the rules that look at it, then `nft 'delete map inet filter marks; add set inet filter marks { type ipv4_addr; flags timeout; }'`", "inet/filter/marks")
	f("set ip6/filter/blocked4: it is of type ipv4_addr, which a table of family ip6 never sees: remove the rules that look at it, then `nft 'delete set ip6 filter blocked4; add set ip6 filter blocked4 { type ipv6_addr; flags timeout; }'`", "ip6/filter/blocked4")
	f("sets inet/filter/blocked4 and inet/filter/nets4 are both of type ipv4_addr: give one per address family", "inet/filter/blocked4", "inet/filter/nets4")
	if _, err := block.New(block.Config{Namespace: ns, Sets: []block.SetName{{Family: "arp", Table: "filter", Set: "x"}}}); err == nil || !strings.Contains(err.Error(), `family "arp"`) {
		t.Errorf("a name that was not parsed: %v", err)
	}
}

func TestOperatorsHashSets(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	addSet(t, ns, hash4, theirs("198.51.100.1", 0, ""), theirs("198.51.100.2", time.Hour, "by hand"), theirs("198.51.100.3", time.Minute, "by hand"))
	addSet(t, ns, hash6)
	was := ruleset(t, ns, "")
	cfg := block.Config{Namespace: ns, Sets: names(hash4, hash6)}
	b := blocker(t, cfg)
	wantList(t, b)

	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	add(t, b, "192.0.2.1/32", time.Hour, time.Hour)
	add(t, b, "192.0.2.1/32", time.Minute, time.Hour)
	add(t, b, "2001:db8::1/128", time.Minute, time.Minute)
	add(t, b, "198.51.100.1/32", time.Minute, block.Forever) // stays theirs
	add(t, b, "198.51.100.2/32", time.Minute, time.Hour)     // stays theirs
	ours := []any{"192.0.2.1/32", time.Hour, "2001:db8::1/128", time.Minute}
	wantList(t, b, ours...)
	wantList(t, blocker(t, cfg), ours...) // found again by who comes next
	if got := ruleset(t, ns, ""); !strings.Contains(got, `[192 0 2 1] end false timeout 1h0m0s comment "ctfleet"`) || strings.Contains(got, "rule") {
		t.Errorf("the kernel holds:\n%s", got)
	}
	for _, p := range []string{"192.0.2.0/24", "2001:db8::/64"} {
		if _, err := b.Add(prefix(p), time.Minute); err == nil || !strings.Contains(err.Error(), "takes single addresses only: it lacks the flag interval") {
			t.Errorf("block %s: %v", p, err)
		}
		unblock(t, b, p, false)
	}
	for p, want := range map[string]bool{"198.51.100.2/32": false, "192.0.2.9/32": false, "2001:db8::1/128": true} {
		unblock(t, b, p, want)
	}
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, ""); got != was {
		t.Errorf("what is left of\n%s\nafter Clear is\n%s", was, got)
	}

	add(t, b, "198.51.100.3/32", time.Hour, time.Hour) // becomes ours
	wantList(t, b, "198.51.100.3/32", time.Hour)
}

func TestOperatorsIntervalSets(t *testing.T) {
	t.Parallel()
	ns := namespace(t)
	addSet(t, ns, range4,
		end("0.0.0.0"), // which nft adds
		theirs("198.51.100.0", 0, ""), end("198.51.101.0"),
		theirs("203.0.113.7", time.Minute, "by hand"), end("203.0.113.10"))
	addSet(t, ns, range6)
	was := ruleset(t, ns, "")
	cfg := block.Config{Namespace: ns, Sets: names(range4, range6)}
	b := blocker(t, cfg)

	// The same, shorter and longer.
	add(t, b, "192.0.2.0/24", 10*time.Minute, 10*time.Minute)
	add(t, b, "192.0.2.0/24", time.Minute, 10*time.Minute)
	add(t, b, "192.0.2.0/24", 20*time.Minute, 20*time.Minute)
	// Inside, shorter and longer.
	add(t, b, "192.0.2.1/32", time.Minute, 20*time.Minute)
	wantList(t, b, "192.0.2.0/24", 20*time.Minute)
	add(t, b, "192.0.2.128/25", time.Hour, time.Hour)
	wantList(t, b, "192.0.2.0/25", 20*time.Minute, "192.0.2.128/25", time.Hour)
	// Around, longer than one part and shorter than the other.
	add(t, b, "192.0.2.0/23", 30*time.Minute, 30*time.Minute)
	wantList(t, b, "192.0.2.0/25", 30*time.Minute, "192.0.2.128/25", time.Hour, "192.0.3.0/24", 30*time.Minute)
	// The ends of the address space.
	add(t, b, "255.255.255.0/24", time.Minute, time.Minute)
	add(t, b, "255.255.255.255/32", time.Hour, time.Hour)
	add(t, b, "0.0.0.0/8", time.Minute, time.Minute)
	add(t, b, "ffff::/16", time.Minute, time.Minute)
	add(t, b, "::/16", time.Hour, time.Hour)
	add(t, b, "2001:db8::1/128", time.Minute, time.Minute)
	add(t, b, "2001:db8::/32", time.Hour, time.Hour)
	tail := []any{
		"255.255.255.0/25", time.Minute, "255.255.255.128/26", time.Minute, "255.255.255.192/27", time.Minute, "255.255.255.224/28", time.Minute,
		"255.255.255.240/29", time.Minute, "255.255.255.248/30", time.Minute, "255.255.255.252/31", time.Minute, "255.255.255.254/32", time.Minute,
		"255.255.255.255/32", time.Hour,
		"::/16", time.Hour, "2001:db8::/32", time.Hour, "ffff::/16", time.Minute,
	}
	wantList(t, b, append([]any{"0.0.0.0/8", time.Minute, "192.0.2.0/25", 30 * time.Minute, "192.0.2.128/25", time.Hour, "192.0.3.0/24", 30 * time.Minute}, tail...)...)

	// What is theirs.
	add(t, b, "198.51.100.7/32", time.Minute, block.Forever)
	add(t, b, "198.51.100.0/23", time.Minute, time.Minute)
	if _, err := b.Add(prefix("203.0.113.0/24"), time.Hour); err == nil || !strings.Contains(err.Error(), "the set holds 203.0.113.7-203.0.113.9, which is not ours and ends sooner") {
		t.Errorf("block what would cut theirs: %v", err)
	}
	add(t, b, "203.0.113.9/32", time.Second, time.Minute)
	for p, want := range map[string]bool{"198.51.100.0/24": false, "203.0.113.9/32": false, "198.51.101.0/24": true, "192.0.2.64/26": true, "192.0.3.0/24": true} {
		unblock(t, b, p, want)
	}
	wantList(t, blocker(t, cfg), append([]any{"0.0.0.0/8", time.Minute, "192.0.2.0/26", 30 * time.Minute, "192.0.2.128/25", time.Hour}, tail...)...)
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, ""); got != was {
		t.Errorf("what is left of\n%s\nafter Clear is\n%s", was, got)
	}
}

func TestBlocksInAnIntervalSetEnd(t *testing.T) {
	t.Parallel()
	b, ns := operators(t, range4)
	add(t, b, "192.0.2.0/24", time.Second, time.Second)
	add(t, b, "192.0.2.7/32", time.Minute, time.Minute)
	add(t, b, "255.255.255.0/24", time.Second, time.Second)
	eventually(t, "two of three end", func() bool {
		list, err := b.List()
		return err != nil || len(list) == 1
	})
	wantList(t, b, "192.0.2.7/32", time.Minute)
	// Where the kernel has not yet collected what ended.
	add(t, b, "192.0.2.0/27", 30*time.Second, 30*time.Second)
	add(t, b, "255.255.0.0/16", time.Hour, time.Hour)
	wantList(t, b, "192.0.2.0/30", 30*time.Second, "192.0.2.4/31", 30*time.Second, "192.0.2.6/32", 30*time.Second, "192.0.2.7/32", time.Minute,
		"192.0.2.8/29", 30*time.Second, "192.0.2.16/28", 30*time.Second, "255.255.0.0/16", time.Hour)
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, ""); strings.Contains(got, "end") {
		t.Errorf("after Clear there is:\n%s", got)
	}
}

func TestOperatorsSetForOneFamily(t *testing.T) {
	t.Parallel()
	b, _ := operators(t, hash6)
	if _, err := b.Add(prefix("192.0.2.1/32"), time.Minute); err == nil || !strings.Contains(err.Error(), "no set of type ipv4_addr was given") {
		t.Errorf("block an IPv4 address: %v", err)
	}
	add(t, b, "2001:db8::1/128", time.Minute, time.Minute)
}

func TestOperatorsSetsThatAreFull(t *testing.T) {
	t.Parallel()
	small4, small6 := hash4, range6
	// Linux 6.18 takes the size of an interval set for intervals. Others may take it
	// for the two ends of each.
	small4.Size, small6.Size = 2, 4
	b, _ := operators(t, small4, small6)
	fill := func(least, most int, format string) (n int) {
		t.Helper()
		for {
			p := prefix(fmt.Sprintf(format, n+1))
			_, err := b.Add(p, time.Minute)
			if errors.Is(err, block.ErrFull) {
				break
			}
			if n++; err != nil || n > most {
				t.Fatalf("block %s: %v, and the set takes at most %d", p, err, most)
			}
			add(t, b, p.String(), time.Hour, time.Hour) // is none more
		}
		if n < least {
			t.Errorf("full after %d blocks, want %d", n, least)
		}
		return n
	}
	n := fill(2, 2, "192.0.2.%d/32") + fill(2, 4, "2001:db8:%d::/64")
	list, err := b.List()
	if err != nil || len(list) != n {
		t.Errorf("%d blocks are listed (%v), want %d", len(list), err, n)
	}
	for _, e := range list {
		if !about(e.Left, time.Hour) {
			t.Errorf("%s is left of %s", e.Left, e.Prefix)
		}
	}
}

// A reload of the operator's ruleset takes all elements with it.
func TestOperatorsSetsThatGo(t *testing.T) {
	t.Parallel()
	b, ns := operators(t, hash4)
	add(t, b, "192.0.2.1/32", time.Minute, time.Minute)
	c := nft(t, ns)
	c.FlushRuleset()
	flush(t, c)
	if _, err := b.Add(prefix("192.0.2.1/32"), time.Minute); err == nil || !strings.Contains(err.Error(), "there is no such set") {
		t.Errorf("block without the set: %v", err)
	}
	if err := b.Clear(); err != nil {
		t.Errorf("Clear without the set: %v", err)
	}
	// It comes back as another one.
	again := hash4
	again.Interval = true
	addSet(t, ns, again)
	wantList(t, b)
	add(t, b, "192.0.2.0/24", time.Minute, time.Minute)
}

func TestClearOfMany(t *testing.T) {
	t.Parallel()
	b, ns := operators(t, hash4, range6)
	c := nft(t, ns)
	n4, n6 := hash4, range6
	for i := range 4 {
		var el4, el6 []nftables.SetElement
		for j := range 200 {
			el4 = append(el4, nftables.SetElement{Key: []byte{192, 0, byte(i), byte(j)}, Timeout: time.Hour, Comment: "ctfleet"})
			a := netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, byte(i), byte(j), 0, 1})
			el6 = append(el6, nftables.SetElement{Key: a.AsSlice(), Timeout: time.Hour, Comment: "ctfleet"}, nftables.SetElement{Key: a.Next().AsSlice(), IntervalEnd: true})
		}
		if err := errors.Join(c.SetAddElements(&n4, el4), c.SetAddElements(&n6, el6)); err != nil {
			t.Fatal(err)
		}
	}
	flush(t, c)
	if list, err := b.List(); err != nil || len(list) != 1600 {
		t.Fatalf("%d blocks are listed (%v), want 1600", len(list), err)
	}
	if err := b.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := ruleset(t, ns, ""); strings.Contains(got, "end") {
		t.Errorf("after Clear there is:\n%s", got)
	}
}

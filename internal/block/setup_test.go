//go:build linux

package block_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

func addr(s string) netip.Addr         { return netip.MustParseAddr(s) }
func prefix(s string) netip.Prefix     { return netip.MustParsePrefix(s) }
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// namespace makes an empty network namespace.
func namespace(t *testing.T) *host.Namespace {
	t.Helper()
	labtest.Require(t)
	ns, err := host.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func blocker(t *testing.T, cfg block.Config) *block.Blocker {
	t.Helper()
	b, err := block.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// own is a Blocker with a table of its own in a namespace of its own.
func own(t *testing.T) (*block.Blocker, *host.Namespace) {
	t.Helper()
	ns := namespace(t)
	return blocker(t, block.Config{Namespace: ns}), ns
}

// add blocks, and checks what is said about it.
func add(t *testing.T, b *block.Blocker, p string, d, want time.Duration) {
	t.Helper()
	e, err := b.Add(prefix(p), d)
	if err != nil {
		t.Fatal(err)
	}
	if e.Prefix != prefix(p).Masked() || !about(e.Left, want) {
		t.Errorf("block %s for %s: %+v, want %s left", p, d, e, want)
	}
}

// unblock ends a block where there is one to end, which has to be known beforehand.
func unblock(t *testing.T, b *block.Blocker, p string, want bool) {
	t.Helper()
	if has, err := b.Has(prefix(p)); has != want || err != nil {
		t.Errorf("is there a block of %s to end: %v, %v", p, has, err)
	}
	if found, err := b.Delete(prefix(p)); found != want || err != nil {
		t.Errorf("unblock %s: %v, %v", p, found, err)
	}
}

// about allows for the time that a test takes.
func about(left, want time.Duration) bool {
	return left <= want && (left > want-10*time.Second || want < 10*time.Second && left > 0)
}

// wantList checks what is blocked: prefixes and what is left of them.
func wantList(t *testing.T, b *block.Blocker, want ...any) {
	t.Helper()
	list, err := b.List()
	if err != nil {
		t.Fatal(err)
	}
	ok := len(list) == len(want)/2
	for i := 0; ok && i < len(list); i++ {
		ok = list[i].Prefix.String() == want[2*i] && about(list[i].Left, want[2*i+1].(time.Duration))
	}
	if !ok {
		t.Errorf("blocked are %v, want %v", list, want)
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

// nft is the library alone, which says what the kernel really holds.
func nft(t *testing.T, ns *host.Namespace) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func flush(t *testing.T, c *nftables.Conn) {
	t.Helper()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// must is for what does not fail.
func must[T any](t *testing.T) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

// ruleset writes down all tables with what is in them, but for those in except.
func ruleset(t *testing.T, ns *host.Namespace, except string) string {
	t.Helper()
	c := nft(t, ns)
	var b strings.Builder
	for _, table := range must[[]*nftables.Table](t)(c.ListTables()) {
		name := fmt.Sprintf("%d/%s", table.Family, table.Name)
		if name == except {
			continue
		}
		fmt.Fprintf(&b, "%s flags %d use %d\n", name, table.Flags, table.Use)
		for _, s := range must[[]*nftables.Set](t)(c.GetSets(table)) {
			fmt.Fprintf(&b, " set %s %s interval %v timeout %v size %d\n", s.Name, s.KeyType.Name, s.Interval, s.HasTimeout, s.Size)
			var elements []string // a hash has no order to rely on
			for _, e := range must[[]nftables.SetElement](t)(c.GetSetElements(s)) {
				elements = append(elements, fmt.Sprintf("  %v end %v timeout %s comment %q\n", e.Key, e.IntervalEnd, e.Timeout, e.Comment))
			}
			slices.Sort(elements)
			b.WriteString(strings.Join(elements, ""))
		}
		for _, chain := range must[[]*nftables.Chain](t)(c.ListChainsOfTableFamily(table.Family)) {
			if chain.Table.Name != table.Name {
				continue
			}
			fmt.Fprintf(&b, " chain %s %s hook %d priority %d\n", chain.Name, chain.Type, *chain.Hooknum, *chain.Priority)
			for _, r := range must[[]*nftables.Rule](t)(c.GetRules(table, chain)) {
				exprs, err := json.Marshal(r.Exprs)
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(&b, "  rule %d %s\n", r.Handle, exprs)
			}
		}
	}
	return b.String()
}

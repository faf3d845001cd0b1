//go:build linux

package conntrack

import (
	"errors"
	"strconv"
	"testing"
	"unsafe"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	timo "github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

func TestStateAgreesWithTheOthers(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	const n = 700
	flood(t, fw, udp(client4, n))
	for range 2 { // a second State reuses the sockets
		s, err := c.State()
		if err != nil {
			t.Fatal(err)
		}
		if s.Count != n {
			t.Errorf("%d entries, want %d", s.Count, n)
		}
		for name, got := range map[string]uint64{"net.netfilter.nf_conntrack_max": s.Limit, "net.netfilter.nf_conntrack_buckets": s.Buckets} {
			text, err := fw.Sysctl(name)
			if err != nil {
				t.Fatal(err)
			}
			if want, err := strconv.ParseUint(text, 10, 64); err != nil || got != want || got == 0 {
				t.Errorf("%s: %d, want %s", name, got, text)
			}
		}
		cpus, err := o.Stats()
		if err != nil {
			t.Fatal(err)
		}
		want := KernelStats{ClashResolve: s.Stats.ClashResolve, ChainTooLong: s.Stats.ChainTooLong} // which the oracle does not read
		for _, cpu := range cpus {
			want.Found += uint64(cpu.Found)
			want.Invalid += uint64(cpu.Invalid)
			want.Insert += uint64(cpu.Insert)
			want.InsertFailed += uint64(cpu.InsertFailed)
			want.Drop += uint64(cpu.Drop)
			want.EarlyDrop += uint64(cpu.EarlyDrop)
			want.Error += uint64(cpu.Error)
			want.SearchRestart += uint64(cpu.SearchRestart)
		}
		if s.Stats != want {
			t.Errorf("counters %+v, the oracle has %+v", s.Stats, want)
		}
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	_, err := c.State()
	errorsIs(t, err, ErrClosed)
}

// TestKernelStatsByAttribute: each attribute has its own counter, in the
// kernel's numbering (enum ctattr_stats_cpu).
func TestKernelStatsByAttribute(t *testing.T) {
	var s KernelStats
	seen := map[*uint64]uint16{}
	for attr := range uint16(32) {
		c := s.counter(attr)
		if c == nil {
			continue
		}
		if other, twice := seen[c]; twice {
			t.Errorf("attributes %d and %d go into one counter", other, attr)
		}
		seen[c] = attr
		*c = uint64(attr)
	}
	want := KernelStats{Found: 2, Invalid: 4, Insert: 8, InsertFailed: 9, Drop: 10, EarlyDrop: 11, Error: 12, SearchRestart: 13, ClashResolve: 14, ChainTooLong: 15}
	if s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
}

// TestInsertsAreCounted makes a counter move, so that reading zeros is not
// enough to pass. Only programs' inserts count here, not packets'.
func TestInsertsAreCounted(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	for port := range uint16(7) {
		f := timo.NewFlow(17, 0, client4.Addr(), server4.Addr(), 4000+port, 53, 60, 0)
		if err := o.Create(f); err != nil {
			t.Fatal(err)
		}
	}
	s, err := c.State()
	if err != nil {
		t.Fatal(err)
	}
	if s.Stats.Insert != 7 || s.Count != 7 {
		t.Errorf("%d inserts, %d entries, want 7 of both", s.Stats.Insert, s.Count)
	}
}

func TestSysctls(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{Sysctls: map[string]string{
		"net.netfilter.nf_conntrack_acct":      "1",
		"net.netfilter.nf_conntrack_timestamp": "0",
		"net.netfilter.nf_conntrack_tcp_loose": "0",
		"net.netfilter.nf_conntrack_events":    "1",
	}})
	s, err := ReadSysctls(fw.NS)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		got  *int
		want int
	}{"acct": {s.Acct, 1}, "timestamp": {s.Timestamp, 0}, "tcp_loose": {s.TCPLoose, 0}, "events": {s.Events, 1}} {
		if c.got == nil || *c.got != c.want {
			t.Errorf("%s is %v, want %d", name, c.got, c.want)
		}
	}
	if s.Max == nil || s.Buckets == nil {
		t.Errorf("max %v, buckets %v, want both known", s.Max, s.Buckets)
	}
	if f, err := openSysctl("nf_conntrack_of_another_kernel"); f != nil || err != nil {
		t.Errorf("a setting that is not there opens as %v, %v, want unknown", f, err)
	}
	dir, err := openSysctl(".")
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if _, err := new(sysctlFiles).value(dir); err == nil {
		t.Error("a setting that cannot be read is no error")
	}
}

// TestEnabled: tracking comes and goes with the first and the last rule that
// needs it, family by family, in whatever way we learn of it.
func TestEnabled(t *testing.T) {
	labtest.Require(t)
	ways := map[string]func(*host.Namespace) (bool, bool, error){"enabled": Enabled, "by ruleset": enabledByRuleset, "by hooks": enabledByHooks}
	ns, err := host.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if _, _, err := enabledByHooks(ns); errors.Is(err, ErrUnknown) {
		t.Logf("this kernel cannot list its hooks (%v): only rulesets are tested", err)
		delete(ways, "by hooks")
	}
	expect := func(when string, want4, want6 bool) {
		t.Helper()
		for way, ask := range ways {
			ipv4, ipv6, err := ask(ns)
			if err != nil || ipv4 != want4 || ipv6 != want6 {
				t.Errorf("%s, %s: tracking is on for IPv4 %v, IPv6 %v (%v), want %v and %v", when, way, ipv4, ipv6, err, want4, want6)
			}
		}
	}
	expect("a new namespace", false, false)

	nft, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	apply := func() {
		t.Helper()
		if err := nft.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	add := func(family nftables.TableFamily, kind nftables.ChainType, exprs ...expr.Any) *nftables.Table {
		t.Helper()
		table := nft.AddTable(&nftables.Table{Family: family, Name: "filter"})
		chain := nft.AddChain(&nftables.Chain{Name: "c", Table: table, Type: kind,
			Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		nft.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		apply()
		return table
	}
	remove := func(table *nftables.Table) {
		t.Helper()
		nft.DelTable(table)
		apply()
		expect("no rule any more", false, false)
	}
	counter := &expr.Counter{}
	table := add(nftables.TableFamilyIPv4, nftables.ChainTypeFilter, counter)
	expect("a rule without conntrack", false, false)
	remove(table)

	table = add(nftables.TableFamilyIPv4, nftables.ChainTypeFilter, append([]expr.Any{counter}, ctStateNew()...)...)
	expect("a ct rule for IPv4", true, false)
	remove(table)

	table = add(nftables.TableFamilyIPv6, nftables.ChainTypeFilter, ctStateNew()...)
	expect("a ct rule for IPv6", false, true)
	remove(table)

	table = add(nftables.TableFamilyIPv4, nftables.ChainTypeNAT, &expr.Masq{})
	expect("a NAT rule", true, false)
	remove(table)

	table = add(nftables.TableFamilyIPv4, nftables.ChainTypeFilter, &expr.Match{Name: "state", Rev: 0, Info: (*xt.Unknown)(&[]byte{8, 0, 0, 0})})
	expect("iptables -m state", true, false)
	remove(table)

	set := &nftables.Set{Table: nft.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "filter"}), Name: "s", KeyType: nftables.TypeIPAddr, Dynamic: true}
	if err := nft.AddSet(set, nil); err != nil {
		t.Fatal(err)
	}
	table = add(nftables.TableFamilyIPv4, nftables.ChainTypeFilter,
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4},
		&expr.Dynset{SrcRegKey: 1, SetName: "s", Operation: uint32(unix.NFT_DYNSET_OP_ADD), Exprs: []expr.Any{&expr.Connlimit{Count: 10}}})
	expect("ct count in a set", true, false)
	remove(table)

	add(nftables.TableFamilyINet, nftables.ChainTypeFilter, ctStateNew()...)
	expect("a ct rule for both", true, true)
}

// TestHooksWithoutNames: a kernel without symbols still tells the priority.
func TestHooksWithoutNames(t *testing.T) {
	attr := func(kind uint16, data ...byte) netfilter.Attribute {
		return netfilter.Attribute{Type: kind, Data: data}
	}
	priority := attr(hookPriority, 0xff, 0xff, 0xff, 0x38)
	for _, c := range []struct {
		name  string
		attrs []netfilter.Attribute
		want  bool
	}{
		{"conntrack by name", []netfilter.Attribute{priority, attr(hookFunction, []byte("ipv4_conntrack_in\x00")...)}, true},
		{"conntrack of IPv6 by name", []netfilter.Attribute{attr(hookFunction, []byte("ipv6_conntrack_in\x00")...)}, true},
		{"another function at its priority", []netfilter.Attribute{priority, attr(hookFunction, []byte("nft_do_chain_ipv4\x00")...)}, false},
		{"conntrack by priority", []netfilter.Attribute{priority}, true},
		{"a chain at its priority", []netfilter.Attribute{priority, {Type: hookChain, Nested: true}}, false},
		{"another priority", []netfilter.Attribute{attr(hookPriority, 0, 0, 0, 0)}, false},
		{"nothing", nil, false},
	} {
		if got := isConntrack(c.attrs); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// FuzzRule: rules are written by others, and read back as the kernel keeps them.
func FuzzRule(f *testing.F) {
	var m message // an expression list: match state, as iptables-nft writes it
	expr := m.nest(listElem)
	m.attr(exprName, []byte("match\x00")...)
	data := m.nest(exprData)
	m.attr(xtName, []byte("state\x00")...)
	m.endNest(data)
	m.endNest(expr)
	if yes, err := listTracks(m.buf); !yes || err != nil {
		f.Fatalf("the seed is read as %v, %v", yes, err)
	}
	f.Add(m.buf)
	f.Fuzz(func(t *testing.T, list []byte) {
		yes, err := listTracks(list)
		if yes && err != nil {
			t.Errorf("both an answer and an error: %v", err)
		}
	})
}

// ctStateNew is the beginning of a rule: ct state new.
func ctStateNew() []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native.AppendUint32(nil, expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// TestEnabledDoesNotGuessAboutOldIptables: its rules are not nftables', and not
// read here.
func TestEnabledDoesNotGuessAboutOldIptables(t *testing.T) {
	labtest.Require(t)
	ns, err := host.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	err = ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// IPT_SO_GET_INFO, which is what iptables-legacy asks first, loads the
		// table. The answer is a struct ipt_getinfo, the name in front.
		const getInfo = 64
		info := [84]byte{}
		copy(info[:], "filter")
		size := uint32(len(info))
		if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_IP, getInfo, uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
			return errno
		}
		return nil
	})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOPROTOOPT) {
		labtest.Lacks(t, "a kernel with iptables-legacy: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = enabledByRuleset(ns)
	errorsIs(t, err, ErrUnknown)
}

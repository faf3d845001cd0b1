//go:build linux

package block

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	// Priority is where our chain comes in the prerouting hook, that of
	// NF_IP_PRI_RAW_BEFORE_DEFRAG: before conntrack (-200), so that a blocked
	// packet makes no entry; before the operator's raw rules (-300), since a drop
	// is final wherever it comes; and before fragments are put together (-400),
	// since each has the addresses, and a blocked one should cost no memory.
	Priority = -450

	chainName = "prerouting"
)

// ownTable is our own table. It has no state: every operation asks the kernel
// what is there.
type ownTable struct{}

// family is what our table says of an address family.
type family struct {
	nfproto byte
	bits    int // of an address
	keyType nftables.SetDatatype
	offsets [2]uint32 // of source and destination in the IP header
	prefix  string    // of the names of sets, followed by the length
}

var families4and6 = [2]family{
	{unix.NFPROTO_IPV4, 32, nftables.TypeIPAddr, [2]uint32{12, 16}, "ipv4_"},
	{unix.NFPROTO_IPV6, 128, nftables.TypeIP6Addr, [2]uint32{8, 24}, "ipv6_"},
}

func familyOf(a netip.Addr) *family {
	if a.Is4() {
		return &families4and6[0]
	}
	return &families4and6[1]
}

func (ownTable) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: Table}
}

// set is the set for prefixes of this family and length.
func (o ownTable) set(f *family, bits int) *nftables.Set {
	return &nftables.Set{
		Table: o.table(), Name: f.prefix + strconv.Itoa(bits),
		KeyType: f.keyType, HasTimeout: true, Size: MaxEntries,
		// Identifies the set within a batch, which has one at most. The library
		// would take the number from a variable that it does not lock.
		ID: 1,
	}
}

// length is the inverse of set: what the name of a set says. Sets that we did not
// make are left alone.
func length(s *set) (f *family, bits int, ok bool) {
	for i := range families4and6 {
		f := &families4and6[i]
		if len(s.name) <= len(f.prefix) || s.name[:len(f.prefix)] != f.prefix {
			continue
		}
		bits, err := strconv.Atoi(s.name[len(f.prefix):])
		return f, bits, err == nil && 0 < bits && bits <= f.bits && s.keyType == f.keyType.GetNFTMagic()
	}
	return nil, 0, false
}

func (ownTable) check(*kernel) error { return nil }

func (o ownTable) add(k *kernel, p netip.Prefix, d time.Duration, room func(int) error) (time.Duration, error) {
	f := familyOf(p.Addr())
	s := o.set(f, p.Bits())
	left, err := put(k, s, p.Addr(), d, "", room, func() error { return o.ensure(k, s, f, p.Bits()) })
	if errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EOPNOTSUPP) {
		err = fmt.Errorf("table inet %s is not of our making: %w: `nft delete table inet %s`", Table, err, Table)
	}
	return left, err
}

func (o ownTable) remove(k *kernel, p netip.Prefix) (bool, error) {
	s := o.set(familyOf(p.Addr()), p.Bits())
	if err := k.SetDeleteElements(s, []nftables.SetElement{{Key: p.Addr().AsSlice()}}); err != nil {
		return false, err
	}
	err := k.flush()
	if errors.Is(err, unix.ENOENT) { // of the table, the set, or the element
		return false, nil
	}
	return err == nil, err
}

func (o ownTable) has(k *kernel, p netip.Prefix) (bool, error) {
	_, found, err := k.element(o.set(familyOf(p.Addr()), p.Bits()), p.Addr())
	return found, err
}

func (o ownTable) list(k *kernel) ([]Entry, error) {
	sets, err := k.sets(o.table())
	if err != nil {
		return nil, err
	}
	var list []Entry
	for i := range sets {
		f, bits, ok := length(&sets[i])
		if !ok {
			continue
		}
		elements, err := k.elements(o.set(f, bits))
		if err != nil {
			return nil, err
		}
		for _, e := range elements {
			list = append(list, Entry{netip.PrefixFrom(e.addr, bits), e.left})
		}
	}
	return list, nil
}

func (o ownTable) clear(k *kernel) error {
	k.DelTable(o.table())
	if err := k.flush(); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// ensure queues whatever is missing of the set, its rules, the chain and the table.
// What is there is adopted: all of these are written in one batch, so where the
// rules are, the rest is. The rules are what is looked for, since they are the
// first to go: `nft flush table` leaves sets and chains. That another's commit
// may hide one from this dump does no harm: there are two then.
func (o ownTable) ensure(k *kernel, s *nftables.Set, f *family, bits int) error {
	chain := &nftables.Chain{
		Name: chainName, Table: o.table(), Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(Priority),
	}
	rules, err := k.GetRules(chain.Table, chain)
	if err != nil {
		return fmt.Errorf("list rules of table %s: %w", Table, err)
	}
	var missing []*nftables.Rule
	for _, offset := range f.offsets {
		if !slices.ContainsFunc(rules, func(r *nftables.Rule) bool { return drops(r, s.Name, offset) }) {
			missing = append(missing, &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: drop(s.Name, f, offset, bits)})
		}
	}
	if len(missing) == 0 {
		return nil
	}
	// The kernel adopts what exists, rules excepted, unless it is of another kind.
	k.AddTable(chain.Table)
	k.AddChain(chain)
	if err := k.AddSet(s, nil); err != nil {
		return fmt.Errorf("add set %s: %w", s.Name, err)
	}
	for _, r := range missing {
		k.AddRule(r)
	}
	return nil
}

// drop is: meta nfproto FAMILY ip saddr|daddr & MASK @SET counter drop.
func drop(name string, f *family, offset uint32, bits int) []expr.Any {
	size := uint32(f.bits / 8)
	rule := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.nfproto}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
	}
	if bits < f.bits {
		rule = append(rule, &expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: size,
			Mask: net.CIDRMask(bits, f.bits), Xor: make([]byte, size),
		})
	}
	return append(rule,
		&expr.Lookup{SourceRegister: 1, SetName: name},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	)
}

// drops reports whether the rule drops packets whose address at this offset is in
// the set.
func drops(r *nftables.Rule, name string, offset uint32) bool {
	loads, looks, drops := false, false, false
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Payload:
			loads = loads || e.Offset == offset
		case *expr.Lookup:
			looks = looks || e.SetName == name && !e.Invert
		case *expr.Verdict:
			drops = drops || e.Kind == expr.VerdictDrop
		}
	}
	return loads && looks && drops
}

// put sets the end of an element of a hash set to d from now, unless it is later
// already, and returns the time that is left. It calls prepare, which may queue
// what has to exist, before it adds.
//
// An element gets a new end by being deleted and added in one batch, which is one
// step for packets: there is no instant without it. Linux 6.12 would set a new end
// when the element is added again; older ones would do nothing, and say so to
// nobody.
func put(k *kernel, s *nftables.Set, addr netip.Addr, d time.Duration, comment string, room func(int) error, prepare func() error) (time.Duration, error) {
	for try := 0; ; try++ {
		e, found, err := k.element(s, addr)
		if err != nil {
			return 0, err
		}
		if found && e.left >= d {
			return e.left, nil
		}
		if !found {
			if err := room(1); err != nil {
				return 0, err
			}
		}
		if err := prepare(); err != nil {
			return 0, err
		}
		el := []nftables.SetElement{{Key: addr.AsSlice(), Timeout: d, Comment: comment}}
		if found {
			err = k.SetDeleteElements(s, el)
		}
		if err == nil {
			err = k.SetAddElements(s, el)
		}
		if err == nil {
			err = k.flush()
		}
		switch {
		case err == nil:
			return d, nil
		case errors.Is(err, unix.ENOENT) && try < maxRetries:
			// The element ended, or somebody flushed the ruleset, since it was read.
		case errors.Is(err, unix.ENFILE):
			return 0, fmt.Errorf("set %s: %w (%w)", s.Name, ErrFull, err)
		default:
			return 0, err
		}
	}
}

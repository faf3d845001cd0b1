//go:build linux

package block

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// operatorSets are sets that the operator owns. They are looked up anew in every
// operation: a reload of the operator's ruleset makes other sets of the same names.
type operatorSets []SetName

// operatorSet is one of them, as it was found.
type operatorSet struct {
	name SetName
	nft  *nftables.Set
	ipv6 bool
}

// table is the one that the set is in.
func (n SetName) table() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamily(families[n.Family]), Name: n.Table}
}

func (o operatorSets) check(k *kernel) error {
	for _, n := range o {
		if err := n.validate(); err != nil {
			return fmt.Errorf("set %q: %w", n, err)
		}
	}
	found, err := o.find(k)
	if err != nil {
		return err
	}
	for i, s := range found {
		for _, other := range found[:i] {
			if s.ipv6 == other.ipv6 {
				return fmt.Errorf("sets %s and %s are both of type %s: give one per address family", other.name, s.name, addrType(s.ipv6))
			}
		}
	}
	return nil
}

// find looks all sets up.
func (o operatorSets) find(k *kernel) ([]operatorSet, error) {
	var list []operatorSet
	for _, n := range o {
		s, err := n.find(k)
		if err != nil {
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// of returns the set for the address family of p.
func (o operatorSets) of(k *kernel, p netip.Prefix) (operatorSet, error) {
	list, err := o.find(k)
	if err != nil {
		return operatorSet{}, err
	}
	for _, s := range list {
		if s.ipv6 == p.Addr().Is6() {
			return s, nil
		}
	}
	return operatorSet{}, fmt.Errorf("no set of type %s was given", addrType(p.Addr().Is6()))
}

var errMissing = errors.New("there is no such set")

// find looks the set up and tells what is wrong with it.
func (n SetName) find(k *kernel) (operatorSet, error) {
	s, err := k.set(n.table(), n.Set)
	ipv6 := s.keyType == nftables.TypeIP6Addr.GetNFTMagic()
	if errors.Is(err, unix.ENOENT) {
		// The type is a guess, from the names that people give.
		add := n.add(n.Family == "ip6" || n.Family == "inet" && strings.Contains(n.Set, "6"))
		if _, err := k.ListTableOfFamily(n.Table, n.table().Family); errors.Is(err, unix.ENOENT) {
			return operatorSet{}, fmt.Errorf("set %s: %w, nor table %s %s: `nft 'add table %s %s; %s'`", n, errMissing, n.Family, n.Table, n.Family, n.Table, add)
		}
		return operatorSet{}, fmt.Errorf("set %s: %w: `nft '%s'`", n, errMissing, add)
	}
	if err != nil {
		return operatorSet{}, fmt.Errorf("set %s: %w", n, err)
	}
	wrong, kind, want6 := "", "set", ipv6
	switch {
	case s.dataType:
		wrong, kind = "it is a map", "map"
	case !ipv6 && s.keyType != nftables.TypeIPAddr.GetNFTMagic():
		wrong, want6 = "it is not of type ipv4_addr or ipv6_addr", n.Family == "ip6"
	case ipv6 && n.Family == "ip" || !ipv6 && n.Family == "ip6":
		wrong, want6 = fmt.Sprintf("it is of type %s, which a table of family %s never sees", addrType(ipv6), n.Family), !ipv6
	case s.flags&unix.NFT_SET_CONSTANT != 0:
		wrong = "it has the flag constant"
	case s.flags&unix.NFT_SET_TIMEOUT == 0:
		wrong = "it lacks the flag timeout"
	}
	if wrong != "" {
		// The kernel deletes no set that a rule looks at.
		return operatorSet{}, fmt.Errorf("set %s: %s: remove the rules that look at it, then `nft 'delete %s %s; %s'`", n, wrong, kind, n.text(), n.add(want6))
	}
	nft := &nftables.Set{Table: n.table(), Name: n.Set, HasTimeout: true, Interval: s.interval()}
	return operatorSet{name: n, nft: nft, ipv6: ipv6}, nil
}

// add is the nft command that makes the set.
func (n SetName) add(ipv6 bool) string {
	return "add set " + n.text() + " { type " + addrType(ipv6) + "; flags timeout; }"
}

func addrType(ipv6 bool) string {
	if ipv6 {
		return nftables.TypeIP6Addr.Name
	}
	return nftables.TypeIPAddr.Name
}

func (o operatorSets) add(k *kernel, p netip.Prefix, d time.Duration, room func(int) error) (time.Duration, error) {
	s, err := o.of(k, p)
	switch {
	case err != nil:
		return 0, err
	case s.nft.Interval:
		return s.addInterval(k, p, d, room)
	case !p.IsSingleIP():
		return 0, fmt.Errorf("set %s takes single addresses only: it lacks the flag interval", s.name)
	}
	return put(k, s.nft, p.Addr(), d, comment, room, func() error { return nil })
}

func (o operatorSets) remove(k *kernel, p netip.Prefix) (bool, error) {
	s, err := o.of(k, p)
	if err != nil {
		return false, err
	}
	if s.nft.Interval {
		return s.removeInterval(k, p)
	}
	if found, err := s.has(k, p); err != nil || !found {
		return false, err
	}
	if err := k.SetDeleteElements(s.nft, []nftables.SetElement{{Key: p.Addr().AsSlice()}}); err != nil {
		return false, err
	}
	err = k.flush()
	if errors.Is(err, unix.ENOENT) { // it ended meanwhile
		return false, nil
	}
	return err == nil, err
}

func (o operatorSets) has(k *kernel, p netip.Prefix) (bool, error) {
	s, err := o.of(k, p)
	if err != nil {
		return false, err
	}
	return s.has(k, p)
}

func (s operatorSet) has(k *kernel, p netip.Prefix) (bool, error) {
	if s.nft.Interval {
		held, err := s.spans(k)
		return len(unblock(held, p).remove) > 0, err
	}
	if !p.IsSingleIP() {
		return false, nil
	}
	e, found, err := k.element(s.nft, p.Addr())
	return found && e.ours, err
}

func (o operatorSets) list(k *kernel) ([]Entry, error) {
	sets, err := o.find(k)
	if err != nil {
		return nil, err
	}
	var list []Entry
	for _, s := range sets {
		spans, err := s.spans(k)
		if err != nil {
			return nil, err
		}
		for _, x := range spans {
			if x.ours {
				for _, p := range x.prefixes() {
					list = append(list, Entry{p, x.left})
				}
			}
		}
	}
	return list, nil
}

func (o operatorSets) clear(k *kernel) error {
	var errs []error
	for _, n := range o {
		s, err := n.find(k)
		if err == nil {
			if err = s.clear(k); err != nil {
				err = fmt.Errorf("set %s: %w", n, err)
			}
		}
		if !errors.Is(err, errMissing) { // what is gone holds nothing of ours
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// clearChunk is how many elements go in one message, which has room for 64 KiB of
// them.
const clearChunk = 256

// clear deletes our elements, some at a time. Where one of them ends before its
// turn comes, the kernel refuses all that were to go with it, so these are read
// again.
func (s operatorSet) clear(k *kernel) error {
	for try := 0; ; try++ {
		spans, err := s.spans(k)
		if err != nil {
			return err
		}
		var elements []nftables.SetElement
		for _, x := range spans {
			if x.ours {
				elements = append(elements, s.elements(x)...)
			}
		}
		for len(elements) > 0 && err == nil {
			n := min(len(elements), clearChunk)
			if err = k.SetDeleteElements(s.nft, elements[:n]); err == nil {
				err = k.flush()
			}
			elements = elements[n:]
		}
		if err == nil || !errors.Is(err, unix.ENOENT) || try == maxRetries {
			return err
		}
	}
}

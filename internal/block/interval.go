//go:build linux

package block

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// An operator's interval set holds each address once, since the kernel refuses
// intervals that overlap. So there, a block is what it adds to what is blocked
// already: it goes round what lives longer, and what ends sooner makes way for it.
// Every address stays blocked until the latest of all ends that were asked for,
// and no longer.
//
// What the operator has put into the set is gone round when it lives longer. When
// it ends sooner, it would have to be cut to make way, and is not ours to cut: then
// the block is refused.

// span is an interval of addresses, both ends included.
type span struct {
	from, to netip.Addr
	left     time.Duration
	ours     bool
}

func (x span) String() string {
	if p := x.prefixes(); len(p) == 1 {
		return p[0].String()
	}
	return x.from.String() + "-" + x.to.String()
}

// spanOf is the span of a prefix.
func spanOf(p netip.Prefix) span {
	return span{from: p.Addr(), to: last(p)}
}

// last is the last address of a prefix.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (x span) overlaps(y span) bool {
	return !x.to.Less(y.from) && !y.to.Less(x.from)
}

// without is what is left of x around hole.
func (x span) without(hole span) []span {
	if !x.overlaps(hole) {
		return []span{x}
	}
	var rest []span
	if x.from.Less(hole.from) {
		below := x
		below.to = hole.from.Prev()
		rest = append(rest, below)
	}
	if hole.to.Less(x.to) {
		above := x
		above.from = hole.to.Next()
		rest = append(rest, above)
	}
	return rest
}

// prefixes are the fewest prefixes that make up the span.
func (x span) prefixes() []netip.Prefix {
	var list []netip.Prefix
	for from := x.from; from.IsValid() && !x.to.Less(from); {
		p := netip.PrefixFrom(from, from.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(from, p.Bits()-1)
			if wider.Masked() != wider || x.to.Less(last(wider)) {
				break
			}
			p = wider
		}
		list = append(list, p)
		from = last(p).Next()
	}
	return list
}

// spansOf pairs the elements of an interval set, which come in any order. An
// interval that no element ends goes on until the next one begins, or the last
// address.
func spansOf(elements []element) []span {
	slices.SortFunc(elements, func(x, y element) int {
		// Where one interval ends and another begins, the end comes first.
		return cmp.Or(x.addr.Compare(y.addr), cmp.Compare(btoi(y.end), btoi(x.end)))
	})
	var list []span
	open := false
	for _, e := range elements {
		if open {
			list[len(list)-1].to = e.addr.Prev()
		}
		if open = !e.end; open {
			list = append(list, span{from: e.addr, to: last(netip.PrefixFrom(e.addr, 0)), left: e.left, ours: e.ours})
		}
	}
	return list
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// spans reads the set. An element of a hash set is a span of one address.
func (s operatorSet) spans(k *kernel) ([]span, error) {
	elements, err := k.elements(s.nft)
	if err != nil {
		return nil, err
	}
	if s.nft.Interval {
		return spansOf(elements), nil
	}
	var list []span
	for _, e := range elements {
		list = append(list, span{e.addr, e.addr, e.left, e.ours})
	}
	return list, nil
}

// elements are what the kernel keeps of a span of ours: where it begins, with end
// and comment, and where the next address is that it does not contain. There is
// none behind the last address.
func (s operatorSet) elements(x span) []nftables.SetElement {
	list := []nftables.SetElement{{Key: x.from.AsSlice(), Timeout: x.left, Comment: comment}}
	if next := x.to.Next(); s.nft.Interval && next.IsValid() {
		list = append(list, nftables.SetElement{Key: next.AsSlice(), IntervalEnd: true})
	}
	return list
}

// change is what a block does to an interval set.
type change struct {
	remove, add []span
	left        time.Duration // of the block's address that ends first
}

// block works out the change that blocks p for d, given what the set holds.
func block(held []span, p netip.Prefix, d time.Duration) (change, error) {
	want := spanOf(p)
	want.left, want.ours = d, true
	c := change{left: d}
	pieces := []span{want}
	longer := Forever // of what lives longer, the least that is left
	for _, x := range held {
		switch {
		case !x.overlaps(want):
		case x.left >= d:
			longer = min(longer, x.left)
			var rest []span
			for _, piece := range pieces {
				rest = append(rest, piece.without(x)...)
			}
			pieces = rest
		case x.ours || x.from == want.from && x.to == want.to:
			c.remove = append(c.remove, x)
			c.add = append(c.add, x.without(want)...)
		default:
			return change{}, fmt.Errorf("the set holds %s, which is not ours and ends sooner: delete it, or add it with a later end", x)
		}
	}
	if len(pieces) == 0 {
		c.left = longer
	}
	c.add = append(c.add, pieces...)
	return c, nil
}

// unblock works out the change that takes p out of what is ours.
func unblock(held []span, p netip.Prefix) change {
	want := spanOf(p)
	var c change
	for _, x := range held {
		if x.ours && x.overlaps(want) {
			c.remove = append(c.remove, x)
			c.add = append(c.add, x.without(want)...)
		}
	}
	return c
}

func (s operatorSet) addInterval(k *kernel, p netip.Prefix, d time.Duration, room func(int) error) (left time.Duration, err error) {
	err = s.change(k, func(held []span) (change, error) {
		c, err := block(held, p, d)
		if more := len(c.add) - len(c.remove); err == nil && more > 0 {
			err = room(more)
		}
		left = c.left
		return c, err
	})
	return left, err
}

func (s operatorSet) removeInterval(k *kernel, p netip.Prefix) (found bool, err error) {
	err = s.change(k, func(held []span) (change, error) {
		c := unblock(held, p)
		found = len(c.remove) > 0
		return c, nil
	})
	return found, err
}

// change reads the set and carries out what fn makes of it, in one batch. Where an
// element ends before its turn comes, the kernel refuses the batch, and it begins
// anew.
func (s operatorSet) change(k *kernel, fn func(held []span) (change, error)) error {
	for try := 0; ; try++ {
		held, err := s.spans(k)
		if err != nil {
			return err
		}
		c, err := fn(held)
		if err != nil || len(c.remove) == 0 && len(c.add) == 0 {
			return err
		}
		for _, x := range c.remove {
			if err := k.SetDeleteElements(s.nft, s.elements(x)); err != nil {
				return err
			}
		}
		for _, x := range c.add {
			if err := k.SetAddElements(s.nft, s.elements(x)); err != nil {
				return err
			}
		}
		err = k.flush()
		switch {
		case errors.Is(err, unix.ENFILE):
			return fmt.Errorf("set %s: %w (%w)", s.name, ErrFull, err)
		case err == nil || !errors.Is(err, unix.ENOENT) || try == maxRetries:
			return err
		}
	}
}

//go:build linux

package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

const (
	// answerTimeout bounds an operation. The kernel answers within the system call
	// that asks; a longer wait means that nothing will come.
	answerTimeout = 10 * time.Second

	// maxRetries is how often an operation begins anew because the kernel's state
	// changed beneath it.
	maxRetries = 16

	nfgenmsg = 4 // bytes of the header of every message of nfnetlink
)

// kernel is a connection to the nftables of one namespace, for one operation.
//
// Writes go through the library, reads do not. Of google/nftables v0.3.0, the
// function GetSetElements returns part of a set without a word when somebody
// else commits meanwhile (it drops NLM_F_DUMP_INTR), there is none for a single
// element, both it and GetSetByName panic when a program has left malformed user
// data in an element or set, and GetSets fails on data types it has not heard of.
type kernel struct {
	*nftables.Conn
	nl *netlink.Conn // the same socket
}

// setsOf returns the sets that cfg names, or our own table.
func setsOf(cfg *Config) sets {
	if len(cfg.Sets) > 0 {
		return operatorSets(slices.Clone(cfg.Sets))
	}
	return ownTable{}
}

// open connects to the nftables of ns.
func open(ns *host.Namespace) (*kernel, error) {
	k := &kernel{}
	own := func(nl *netlink.Conn) error {
		k.nl = nl
		return nl.SetDeadline(time.Now().Add(answerTimeout))
	}
	err := ns.Do(func() (err error) {
		k.Conn, err = nftables.New(nftables.AsLasting(), nftables.WithSockOptions(own))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	return k, nil
}

func (k *kernel) close() {
	_ = k.CloseLasting()
}

// set is what the kernel says of a set.
type set struct {
	name     string
	flags    uint32 // NFT_SET_...
	keyType  uint32 // in the numbers of nft
	dataType bool   // a map
}

func (s *set) interval() bool { return s.flags&unix.NFT_SET_INTERVAL != 0 }

// element is an element of a set, or in an interval set one of the two ends of an
// interval.
type element struct {
	addr netip.Addr
	end  bool          // the interval that began below addr does not contain addr
	left time.Duration // Forever where it has no end
	ours bool          // has our comment
}

// sets returns the sets of a table, none where there is no such table.
func (k *kernel) sets(table *nftables.Table) ([]set, error) {
	msgs, err := k.ask(unix.NFT_MSG_GETSET, netlink.Dump, table, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_TABLE, table.Name)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list sets of table %s: %w", table.Name, err)
	}
	var list []set
	for _, m := range msgs {
		s, err := decodeSet(m.Data)
		if err != nil {
			return nil, fmt.Errorf("list sets of table %s: %w", table.Name, err)
		}
		list = append(list, s)
	}
	return list, nil
}

// set looks up one set. An error of ENOENT says that the set or its table is
// missing.
func (k *kernel) set(table *nftables.Table, name string) (set, error) {
	msgs, err := k.ask(unix.NFT_MSG_GETSET, 0, table, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_TABLE, table.Name)
		ae.String(unix.NFTA_SET_NAME, name)
	})
	if err != nil {
		return set{}, err
	}
	if len(msgs) != 1 {
		return set{}, fmt.Errorf("%d answers about one set", len(msgs))
	}
	return decodeSet(msgs[0].Data)
}

// elements returns all unexpired elements of a set in the kernel's order, none
// where there is no such set.
func (k *kernel) elements(s *nftables.Set) ([]element, error) {
	msgs, err := k.ask(unix.NFT_MSG_GETSETELEM, netlink.Dump, s.Table, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		ae.String(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list set %s: %w", s.Name, err)
	}
	var list []element
	for _, m := range msgs {
		if list, err = decodeElements(m.Data, list); err != nil {
			return nil, fmt.Errorf("list set %s: %w", s.Name, err)
		}
	}
	return list, nil
}

// element looks up one element of a hash set.
func (k *kernel) element(s *nftables.Set, addr netip.Addr) (e element, found bool, err error) {
	msgs, err := k.ask(unix.NFT_MSG_GETSETELEM, 0, s.Table, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
		ae.String(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
		nest(ae, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(ae *netlink.AttributeEncoder) {
			nest(ae, unix.NFTA_LIST_ELEM, func(ae *netlink.AttributeEncoder) {
				nest(ae, unix.NFTA_SET_ELEM_KEY, func(ae *netlink.AttributeEncoder) {
					ae.Bytes(unix.NFTA_DATA_VALUE, addr.AsSlice())
				})
			})
		})
	})
	if errors.Is(err, unix.ENOENT) { // of the table, the set, or the element
		return element{}, false, nil
	}
	var list []element
	for _, m := range msgs {
		if err == nil {
			list, err = decodeElements(m.Data, list)
		}
	}
	if err == nil && (len(list) != 1 || list[0].addr != addr) {
		err = fmt.Errorf("asked for one element, got %v", list)
	}
	if err != nil {
		return element{}, false, fmt.Errorf("look up %s in set %s: %w", addr, s.Name, err)
	}
	return list[0], true, nil
}

// ask sends a request and returns the answers. A dump that was interrupted by
// somebody's commit is asked for again.
func (k *kernel) ask(kind uint16, flags netlink.HeaderFlags, table *nftables.Table, attrs func(*netlink.AttributeEncoder)) ([]netlink.Message, error) {
	ae := netlink.NewAttributeEncoder()
	attrs(ae)
	data, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	m := netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, data...),
	}
	for range maxRetries {
		msgs, err := k.nl.Execute(m)
		if err != nil {
			return nil, host.NeedsNetAdmin(err)
		}
		interrupted := false
		for _, m := range msgs {
			interrupted = interrupted || m.Header.Flags&netlink.DumpInterrupted != 0
		}
		if !interrupted {
			return msgs, nil
		}
	}
	return nil, fmt.Errorf("the ruleset changed during each of %d attempts to read it", maxRetries)
}

// flush carries out what was queued, all of it or nothing.
func (k *kernel) flush() error {
	return host.NeedsNetAdmin(k.Flush())
}

func nest(ae *netlink.AttributeEncoder, kind uint16, fn func(*netlink.AttributeEncoder)) {
	ae.Nested(kind, func(ae *netlink.AttributeEncoder) error {
		ae.ByteOrder = binary.BigEndian
		fn(ae)
		return nil
	})
}

// walk calls fn for each attribute behind the header of a message, or within an
// attribute where header is 0.
func walk(b []byte, header int, fn func(*netlink.AttributeDecoder)) error {
	if len(b) < header {
		return errors.New("a message without a header")
	}
	ad, err := netlink.NewAttributeDecoder(b[header:])
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		fn(ad)
	}
	return ad.Err()
}

func decodeSet(b []byte) (set, error) {
	var s set
	err := walk(b, nfgenmsg, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_SET_NAME:
			s.name = ad.String()
		case unix.NFTA_SET_FLAGS:
			s.flags = ad.Uint32()
		case unix.NFTA_SET_KEY_TYPE:
			s.keyType = ad.Uint32()
		case unix.NFTA_SET_DATA_TYPE:
			s.dataType = true
		}
	})
	if err != nil {
		return set{}, fmt.Errorf("decode set: %w", err)
	}
	return s, nil
}

// decodeElements appends the elements of a message to list. Elements that are no
// addresses are an error.
func decodeElements(b []byte, list []element) ([]element, error) {
	err := walk(b, nfgenmsg, func(ad *netlink.AttributeDecoder) {
		if ad.Type() != unix.NFTA_SET_ELEM_LIST_ELEMENTS {
			return
		}
		ad.Do(func(b []byte) error {
			return walk(b, 0, func(ad *netlink.AttributeDecoder) {
				ad.Do(func(b []byte) error {
					e, err := decodeElement(b)
					list = append(list, e)
					return err
				})
			})
		})
	})
	if err != nil {
		return nil, fmt.Errorf("decode elements: %w", err)
	}
	return list, nil
}

func decodeElement(b []byte) (element, error) {
	e := element{left: Forever}
	err := walk(b, 0, func(ad *netlink.AttributeDecoder) {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Do(func(b []byte) error {
				return walk(b, 0, func(ad *netlink.AttributeDecoder) {
					if ad.Type() == unix.NFTA_DATA_VALUE {
						e.addr, _ = netip.AddrFromSlice(ad.Bytes())
					}
				})
			})
		case unix.NFTA_SET_ELEM_FLAGS:
			e.end = ad.Uint32()&unix.NFT_SET_ELEM_INTERVAL_END != 0
		case unix.NFTA_SET_ELEM_EXPIRATION:
			// The attribute TIMEOUT would not tell: it is left out where it is the
			// set's default.
			e.left = milliseconds(ad.Uint64())
		case unix.NFTA_SET_ELEM_USERDATA:
			e.ours = commented(ad.Bytes())
		}
	})
	if err == nil && !e.addr.IsValid() {
		err = errors.New("an element that is no address")
	}
	return e, err
}

func milliseconds(ms uint64) time.Duration {
	if ms > uint64(math.MaxInt64/time.Millisecond) {
		return Forever
	}
	return time.Duration(ms) * time.Millisecond
}

// commented reports whether user data, a list of type, length and value, has our
// comment. The library's decoder panics when a length is not true, and what is
// there may come from any program.
func commented(b []byte) bool {
	for len(b) >= 2 {
		n := 2 + int(b[1])
		if n > len(b) {
			return false
		}
		if userdata.Type(b[0]) == userdata.NFTNL_UDATA_SET_ELEM_COMMENT {
			return bytes.Equal(b[2:n], []byte(comment+"\x00"))
		}
		b = b[n:]
	}
	return false
}

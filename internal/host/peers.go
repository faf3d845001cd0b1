//go:build linux

package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Peers lists the remote addresses of the established TCP connections to the
// local ports, in ns (nil: the process's own): with the SSH server's port, who
// is logged in. Peers on loopback are left out, a connection over IPv4 to a
// socket of IPv6 counts as one of IPv4. Port 0 is nobody's.
//
// The kernel selects by state and port. It walks its table of connections once
// for each family and port, and hands over only what is asked for.
func Peers(ns *Namespace, ports ...uint16) ([]netip.Addr, error) {
	var peers []netip.Addr
	err := ns.Do(func() error {
		for _, port := range ports {
			if port == 0 { // the kernel would take it for any
				continue
			}
			for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
				found, err := whole(func() ([]netip.Addr, error) { return peersOf(family, port) })
				if err != nil {
					return err
				}
				peers = append(peers, found...)
			}
		}
		return nil
	})
	if err != nil {
		hint := ""
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) {
			hint = " (is this kernel built with tcp_diag?)"
		}
		return nil, fmt.Errorf("list TCP connections: %w%s", err, hint)
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	return slices.Compact(peers), nil
}

// Layout of struct inet_diag_req_v2 and of what is read here of struct
// inet_diag_msg (linux/inet_diag.h). The library knows both, but asks for all
// sockets in any state, with all that is known of each.
const (
	diagRequest       = 56
	diagRequestStates = 4
	diagRequestPort   = 8
	diagRequestCookie = 48

	diagMessage     = 72
	diagMessagePort = 4
	diagMessagePeer = 24

	established = unix.BPF_TCP_ESTABLISHED
)

// peersOf asks for the connections of one family to one port, in the calling
// thread's namespace.
func peersOf(family uint8, port uint16) ([]netip.Addr, error) {
	b := make([]byte, diagRequest)
	b[0], b[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(b[diagRequestStates:], 1<<established)
	binary.BigEndian.PutUint16(b[diagRequestPort:], port)
	binary.NativeEndian.PutUint64(b[diagRequestCookie:], ^uint64(0)) // INET_DIAG_NOCOOKIE
	req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddRawData(b)
	var peers []netip.Addr
	err := req.ExecuteIter(unix.NETLINK_INET_DIAG, nl.SOCK_DIAG_BY_FAMILY, func(msg []byte) bool {
		if a, ok := peerOf(msg, port); ok {
			peers = append(peers, a)
		}
		return true
	})
	return peers, err
}

// peerOf reads the remote address of a connection, and looks again whether it was
// asked for.
func peerOf(msg []byte, port uint16) (a netip.Addr, ok bool) {
	if len(msg) < diagMessage || msg[1] != established || binary.BigEndian.Uint16(msg[diagMessagePort:]) != port {
		return a, false
	}
	switch remote := msg[diagMessagePeer:]; msg[0] {
	case unix.AF_INET:
		a = netip.AddrFrom4([4]byte(remote))
	case unix.AF_INET6:
		a = netip.AddrFrom16([16]byte(remote)).Unmap()
	default:
		return a, false
	}
	return a, !a.IsLoopback()
}

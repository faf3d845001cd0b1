//go:build linux

package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/ti-mo/netfilter"

	"github.com/ctfleet/ctfleet/internal/host"
)

// Numbers of linux/netfilter/nf_tables.h.
const (
	msgGetRule = 7 // NFT_MSG_GETRULE

	ruleExpressions = 4
	listElem        = 1
	exprName        = 1
	exprData        = 2

	xtName         = 1 // NFTA_MATCH_NAME and NFTA_TARGET_NAME
	objrefType     = 1
	dynsetExpr     = 7
	dynsetExprList = 10
)

var (
	// trackingExpressions are nftables' own that need the flow of a packet.
	trackingExpressions = []string{"ct", "connlimit", "nat", "masq", "redir", "flow_offload", "synproxy"}
	// trackingExtensions are iptables' matches and targets that do, as
	// iptables-nft writes them into nftables.
	trackingExtensions = []string{
		"conntrack", "state", "connbytes", "connlabel", "connlimit", "connmark", "helper",
		"CT", "CONNMARK", "CONNSECMARK", "DNAT", "MASQUERADE", "NETMAP", "REDIRECT", "SNAT", "SYNPROXY",
	}
	// trackingObjects are the named objects that do: ct helper, connlimit, ct
	// timeout, ct expectation, synproxy (NFT_OBJECT_…).
	trackingObjects = []uint32{3, 5, 7, 9, 10}
)

// enabledByRuleset reads from the rules of ns whether one of them needs
// tracking. It knows nftables, and iptables where that writes nftables.
func enabledByRuleset(ns *host.Namespace) (ipv4, ipv6 bool, err error) {
	conn, err := openQuery(ns)
	if err != nil {
		return false, false, err
	}
	rules, err := query(conn, netfilter.Header{SubsystemID: netfilter.NFSubsysNFTables, MessageType: msgGetRule})
	if err = errors.Join(err, conn.Close()); err != nil {
		return false, false, err
	}
	for _, rule := range rules {
		if len(rule.Data) < nfHeader {
			return false, false, errTruncated
		}
		needs, err := anyOf(rule.Data[nfHeader:], ruleExpressions, listTracks)
		if err != nil {
			return false, false, err
		}
		family := netfilter.ProtoFamily(rule.Data[0])
		ipv4 = ipv4 || needs && (family == netfilter.ProtoIPv4 || family == netfilter.ProtoInet)
		ipv6 = ipv6 || needs && (family == netfilter.ProtoIPv6 || family == netfilter.ProtoInet)
	}
	if ipv4 && ipv6 {
		return true, true, nil
	}
	// Old iptables keeps its tables elsewhere, and they cannot be read this way.
	legacy, err := legacyTables(ns)
	if err == nil && legacy {
		err = fmt.Errorf("%w: rules of iptables-legacy are loaded", ErrUnknown)
	}
	return ipv4, ipv6, err
}

func legacyTables(ns *host.Namespace) (loaded bool, err error) {
	err = ns.Do(func() error {
		// thread-self: /proc/net is the namespace of the process's first thread.
		for _, name := range []string{"ip_tables_names", "ip6_tables_names"} {
			names, err := os.ReadFile("/proc/thread-self/net/" + name)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
			loaded = loaded || len(names) > 0
		}
		return nil
	})
	return loaded, err
}

// anyOf reports whether tracks holds for any attribute of one kind.
func anyOf(p []byte, kind uint16, tracks func([]byte) (bool, error)) (bool, error) {
	for attrs := (attributes{p}); ; {
		k, v, ok, err := attrs.next()
		if err != nil || !ok {
			return false, err
		}
		if k != kind {
			continue
		}
		if yes, err := tracks(v); yes || err != nil {
			return yes, err
		}
	}
}

// listTracks reports whether any expression of a list needs tracking.
func listTracks(list []byte) (bool, error) { return anyOf(list, listElem, expressionTracks) }

func expressionTracks(expr []byte) (bool, error) {
	var name string
	var data []byte
	for attrs := (attributes{expr}); ; {
		kind, v, ok, err := attrs.next()
		if err != nil {
			return false, err
		}
		if !ok {
			break
		}
		switch kind {
		case exprName:
			name = text(v)
		case exprData:
			data = v
		}
	}
	switch name {
	case "match", "target":
		return anyOf(data, xtName, func(v []byte) (bool, error) { return slices.Contains(trackingExtensions, text(v)), nil })
	case "objref":
		return anyOf(data, objrefType, func(v []byte) (bool, error) {
			return len(v) == 4 && slices.Contains(trackingObjects, network.Uint32(v)), nil
		})
	case "dynset": // adds to a set, with expressions for the new element
		if yes, err := anyOf(data, dynsetExpr, expressionTracks); yes || err != nil {
			return yes, err
		}
		return anyOf(data, dynsetExprList, listTracks)
	}
	return slices.Contains(trackingExpressions, name), nil
}

// text is a string attribute without its terminator.
func text(v []byte) string {
	s, _, _ := bytes.Cut(v, []byte{0})
	return string(s)
}

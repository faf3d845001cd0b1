package conntrack

import "encoding/binary"

// Numbers of linux/netlink.h, linux/netfilter/nfnetlink.h and
// nfnetlink_conntrack.h that golang.org/x/sys/unix does not have, or on Linux only:
// what was read there is decoded anywhere.
const (
	subsysCTNetlink = 1 // NFNL_SUBSYS_CTNETLINK, the high byte of nlmsg_type

	// The low byte of nlmsg_type (IPCTNL_MSG_CT_…).
	msgNew       = 0
	msgGet       = 1
	msgDelete    = 2
	msgStatsCPU  = 4
	msgStats     = 5
	groupNew     = 1 // NFNLGRP_CONNTRACK_NEW
	groupDestroy = 3 // NFNLGRP_CONNTRACK_DESTROY

	nlmsgHeader = 16                     // struct nlmsghdr
	nfHeader    = 4                      // struct nfgenmsg: family, version, resource id
	headers     = nlmsgHeader + nfHeader // before the first attribute
	nlaHeader   = 4                      // struct nlattr: length, type
	nlaNested   = 1 << 15                // NLA_F_NESTED
	nlaTypeMask = 1<<14 - 1              // without NLA_F_NESTED and NLA_F_NET_BYTEORDER

	flagExclusive = 0x200 // NLM_F_EXCL
	flagCreate    = 0x400 // NLM_F_CREATE

	linuxINET  = 2  // AF_INET
	linuxINET6 = 10 // AF_INET6

	protoICMP   = 1
	protoICMPv6 = 58
)

// Attributes of a conntrack message (CTA_…) and, below, of its nests.
const (
	ctaTupleOrig     = 1
	ctaTupleReply    = 2
	ctaStatus        = 3
	ctaCountersOrig  = 9
	ctaCountersReply = 10
	ctaID            = 12
	ctaZone          = 18
	ctaFilter        = 25

	ctaTupleIP    = 1
	ctaTupleProto = 2
	ctaTupleZone  = 3

	ctaIPv4Src = 1
	ctaIPv4Dst = 2
	ctaIPv6Src = 3
	ctaIPv6Dst = 4

	ctaProtoNum        = 1
	ctaProtoSrcPort    = 2
	ctaProtoDstPort    = 3
	ctaProtoICMPID     = 4
	ctaProtoICMPType   = 5
	ctaProtoICMPCode   = 6
	ctaProtoICMPv6ID   = 7
	ctaProtoICMPv6Type = 8
	ctaProtoICMPv6Code = 9

	ctaCountersPackets = 1
	ctaCountersBytes   = 2

	ctaFilterOrigFlags = 1

	ctaStatsGlobalEntries    = 1
	ctaStatsGlobalMaxEntries = 2
)

// Netlink headers are in the machine's byte order, the values inside conntrack
// attributes in network order (with the exception of the filter's flags).
var (
	native  = binary.NativeEndian
	network = binary.BigEndian
)

// align rounds up to the four bytes on which netlink aligns everything.
func align(n int) int { return (n + 3) &^ 3 }

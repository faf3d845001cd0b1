//go:build linux

package traffic

import (
	"encoding/binary"
	"hash/crc32"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
)

// Header sizes and offsets, in bytes.
const (
	ethernetLen = 14
	ipv4Len     = 20
	ipv6Len     = 40

	ipv4ID       = ethernetLen + 4
	ipv4Checksum = ethernetLen + 10
	ipv4Source   = ethernetLen + 12
	ipv6Source   = ethernetLen + 8 // the destination follows the source in both families
)

// maxFrame is the longest frame that a template makes: SCTP INIT over IPv6.
const maxFrame = ethernetLen + ipv6Len + sctpHeaderLen + sctpInitLen

// Transport headers, as far as the generator fills them.
const (
	tcpLen        = 20
	udpLen        = 8
	icmpLen       = 8
	sctpHeaderLen = 12
	sctpInitLen   = 20
	greLen        = 4

	tcpSYN, tcpACK = 0x02, 0x10

	icmp4Echo, icmp4Reply = 8, 0
	icmp6Echo, icmp6Reply = 128, 129

	sctpInit, sctpInitAck = 1, 2
)

// transport describes where one protocol keeps what distinguishes flows.
type transport struct {
	len          int
	sourcePort   int // offset of the 16 bits that tell flows of one pair of addresses apart; -1: nothing does
	destPort     int // -1: the protocol has none
	checksum     int // offset of the Internet checksum; -1: none, or another kind
	pseudoHeader bool
}

func transportOf(protocol uint8) (transport, bool) {
	switch protocol {
	case unix.IPPROTO_TCP:
		return transport{len: tcpLen, sourcePort: 0, destPort: 2, checksum: 16, pseudoHeader: true}, true
	case unix.IPPROTO_UDP:
		return transport{len: udpLen, sourcePort: 0, destPort: 2, checksum: 6, pseudoHeader: true}, true
	case unix.IPPROTO_ICMP:
		return transport{len: icmpLen, sourcePort: 4, destPort: -1, checksum: 2}, true // the echo's identifier
	case unix.IPPROTO_ICMPV6:
		return transport{len: icmpLen, sourcePort: 4, destPort: -1, checksum: 2, pseudoHeader: true}, true
	case unix.IPPROTO_SCTP:
		return transport{len: sctpHeaderLen + sctpInitLen, sourcePort: 0, destPort: 2, checksum: -1}, true
	case unix.IPPROTO_GRE:
		return transport{len: greLen, sourcePort: -1, destPort: -1, checksum: -1}, true
	}
	return transport{}, false
}

// template is a frame of which only addresses and ports are missing, with the
// checksums of all the rest.
type template struct {
	frame     []byte
	transport transport
	protocol  uint8
	addrLen   int // 4 or 16
	source    int // offset of the addresses
	l4        int // offset of the transport header
	ipSum     uint64
	l4Sum     uint64
}

// newTemplate makes the template of a flood. Its number, which every packet carries
// through the firewall in the IPv4 identification or the IPv6 flow label, tells it
// from others that are under way.
func newTemplate(protocol uint8, ipv6 bool, stamp lab.Stamp, number uint16, link lab.Link) *template {
	tr, _ := transportOf(protocol)
	t := &template{transport: tr, protocol: protocol}
	ipLen := ipv4Len
	if ipv6 {
		ipLen = ipv6Len
	}
	t.l4 = ethernetLen + ipLen
	t.frame = make([]byte, t.l4+tr.len)
	putEthernet(t.frame, link.MAC, link.Peer, ipv6)
	ip := t.frame[ethernetLen:t.l4]
	const hops = 64
	if ipv6 {
		t.addrLen, t.source = 16, ipv6Source
		binary.BigEndian.PutUint32(ip, 6<<28|uint32(stamp)<<22|uint32(number))
		binary.BigEndian.PutUint16(ip[4:], uint16(tr.len))
		ip[6], ip[7] = protocol, hops
	} else {
		t.addrLen, t.source = 4, ipv4Source
		ip[0], ip[1] = 4<<4|ipv4Len/4, byte(stamp)<<2
		binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+tr.len))
		binary.BigEndian.PutUint16(ip[4:], number)
		binary.BigEndian.PutUint16(ip[6:], 0x4000) // don't fragment
		ip[8], ip[9] = hops, protocol
		t.ipSum = sum(ip)
	}
	putTransport(t.frame[t.l4:], protocol)
	t.l4Sum = sum(t.frame[t.l4:])
	if tr.pseudoHeader {
		t.l4Sum += uint64(protocol) + uint64(tr.len)
	}
	return t
}

func putEthernet(frame []byte, from, to net.HardwareAddr, ipv6 bool) {
	copy(frame, to)
	copy(frame[6:], from)
	binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IP)
	if ipv6 {
		binary.BigEndian.PutUint16(frame[12:], unix.ETH_P_IPV6)
	}
}

// putTransport writes what the headers of all flows have in common. The kernel
// tracks only well-formed packets.
func putTransport(h []byte, protocol uint8) {
	switch protocol {
	case unix.IPPROTO_TCP:
		h[12], h[13] = tcpLen/4<<4, tcpSYN
		binary.BigEndian.PutUint32(h[4:], 1)      // sequence
		binary.BigEndian.PutUint16(h[14:], 65535) // window
	case unix.IPPROTO_UDP:
		binary.BigEndian.PutUint16(h[4:], udpLen)
	case unix.IPPROTO_ICMP:
		h[0] = icmp4Echo
	case unix.IPPROTO_ICMPV6:
		h[0] = icmp6Echo
	case unix.IPPROTO_SCTP:
		chunk := h[sctpHeaderLen:]
		chunk[0] = sctpInit
		binary.BigEndian.PutUint16(chunk[2:], sctpInitLen)
		binary.BigEndian.PutUint32(chunk[4:], 1)      // initiate tag
		binary.BigEndian.PutUint32(chunk[8:], 65535)  // receiver window
		binary.BigEndian.PutUint16(chunk[12:], 1)     // outbound streams
		binary.BigEndian.PutUint16(chunk[14:], 65535) // inbound streams
		binary.BigEndian.PutUint32(chunk[16:], 1)     // initial TSN
	case unix.IPPROTO_GRE:
		binary.BigEndian.PutUint16(h[2:], unix.ETH_P_IP) // what it carries: nothing
	}
}

// fill makes frame, which starts as a copy of the template's, the one of a flow.
func (t *template) fill(frame []byte, source, dest netip.Addr, sourcePort, destPort uint16) {
	if t.addrLen == 4 {
		s, d := source.As4(), dest.As4()
		copy(frame[t.source:], s[:])
		copy(frame[t.source+4:], d[:])
	} else {
		s, d := source.As16(), dest.As16()
		copy(frame[t.source:], s[:])
		copy(frame[t.source+16:], d[:])
	}
	addrs := sum(frame[t.source : t.source+2*t.addrLen])
	if t.addrLen == 4 {
		binary.BigEndian.PutUint16(frame[ipv4Checksum:], fold(t.ipSum+addrs))
	}
	l4, ports := frame[t.l4:], uint64(0)
	if o := t.transport.sourcePort; o >= 0 {
		binary.BigEndian.PutUint16(l4[o:], sourcePort)
		ports += uint64(sourcePort)
	}
	if o := t.transport.destPort; o >= 0 {
		binary.BigEndian.PutUint16(l4[o:], destPort)
		ports += uint64(destPort)
	}
	switch o := t.transport.checksum; {
	case o >= 0 && t.transport.pseudoHeader:
		binary.BigEndian.PutUint16(l4[o:], fold(t.l4Sum+addrs+ports))
	case o >= 0:
		binary.BigEndian.PutUint16(l4[o:], fold(t.l4Sum+ports))
	case t.protocol == unix.IPPROTO_SCTP:
		putSCTPChecksum(l4)
	}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// putSCTPChecksum writes the CRC32c of the packet with its own field zero, in
// little-endian order (RFC 9260, A).
func putSCTPChecksum(packet []byte) {
	clear(packet[8:12])
	binary.LittleEndian.PutUint32(packet[8:], crc32.Checksum(packet, castagnoli))
}

// sum adds up b, of even length, as big-endian 16-bit words: the first half of the
// Internet checksum (RFC 1071).
func sum(b []byte) uint64 {
	var s uint64
	for ; len(b) >= 4; b = b[4:] {
		v := binary.BigEndian.Uint32(b)
		s += uint64(v>>16) + uint64(v&0xffff)
	}
	if len(b) >= 2 {
		s += uint64(binary.BigEndian.Uint16(b))
	}
	return s
}

// fold finishes the checksum.
func fold(s uint64) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	if s == 0xffff {
		return 0xffff // as 0 it would mean "no checksum" in UDP
	}
	return ^uint16(s)
}

//go:build linux

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
)

// window is how many packets may be on their way without an answer: as many as the
// smallest receive buffer that a system grants (212992 bytes, of which a packet
// takes about 800) holds with room to spare.
const window = 128

// answers is the server side's part in a flood: it sends each stamped packet back
// as the protocol's first answer.
type answers struct {
	fd      int
	link    lab.Link
	sent    atomic.Int64
	stopped atomic.Bool
	done    chan struct{}
	err     error // valid once done is closed

	lost      int       // packets written off, for whose answers the sender waited in vain; owned by the sender
	lastSent  int64     // what sent was when the sender looked last,
	lastMoved time.Time // and since when it has been that
}

// startAnswers answers the packets of the flood of that number.
func startAnswers(fw *lab.Firewall, number uint16) (*answers, error) {
	fd, err := packetSocket(fw.Server, fw.ServerLink)
	if err != nil {
		return nil, err
	}
	a := &answers{fd: fd, link: fw.ServerLink, done: make(chan struct{}), lastMoved: time.Now()}
	if err := a.listen(number); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	go a.run()
	return a, nil
}

// listen makes the socket receive the packets of the flood, and nothing else.
func (a *answers) listen(number uint16) error {
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 12, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IP, SkipFalse: 5},
		bpf.LoadAbsolute{Off: ethernetLen + 1, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x3f << 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(lab.StampAnswer) << 2, SkipFalse: 7},
		bpf.LoadAbsolute{Off: ipv4ID, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(number), SkipTrue: 4, SkipFalse: 5},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.ETH_P_IPV6, SkipFalse: 4},
		bpf.LoadAbsolute{Off: ethernetLen, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0x3f<<22 | 0xfffff},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: uint32(lab.StampAnswer)<<22 | uint32(number), SkipFalse: 1},
		bpf.RetConstant{Val: maxFrame},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return fmt.Errorf("assemble packet filter: %w", err)
	}
	program := make([]unix.SockFilter, len(filter))
	for i, in := range filter {
		program[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	fprog := &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	if err := unix.SetsockoptSockFprog(a.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, fprog); err != nil {
		return fmt.Errorf("attach packet filter: %w", err)
	}
	if err := unix.SetsockoptInt(a.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w", err)
	}
	// So that run looks at stopped now and then.
	timeout := unix.NsecToTimeval((10 * time.Millisecond).Nanoseconds())
	if err := unix.SetsockoptTimeval(a.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		return fmt.Errorf("set receive timeout: %w", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(a.fd, &unix.SockaddrLinklayer{Ifindex: a.link.Index, Protocol: all}); err != nil {
		return fmt.Errorf("listen on %s: %w", a.link.Name, err)
	}
	return nil
}

func (a *answers) run() {
	defer close(a.done)
	b := newBatch(window, maxFrame)
	for !a.stopped.Load() {
		n, err := b.receive(a.fd)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			a.err = fmt.Errorf("receive packet: %w", err)
			return
		}
		for i := range n {
			packet := b.received(i)
			if answer(packet, a.link) {
				b.setLen(i, len(packet))
			}
		}
		for done := 0; done < n; {
			k, err := b.send(a.fd, done, n)
			if err != nil {
				a.err = fmt.Errorf("send answer: %w", err)
				return
			}
			done += k
			a.sent.Add(int64(k))
		}
	}
}

// room is how many packets may be sent now. It keeps the answering socket's buffer
// from overflowing. Answers that do not come (a firewall may refuse a flow) must
// not hold up the flood: after a while they are written off.
func (a *answers) room(sent int) int {
	answered := a.sent.Load()
	if answered != a.lastSent {
		a.lastSent, a.lastMoved = answered, time.Now()
	}
	waiting := sent - int(answered) - a.lost
	if waiting >= window && time.Since(a.lastMoved) > patience {
		a.lost += waiting
		waiting = 0
	}
	return window - waiting
}

// await waits until all packets sent have been answered, or no more answers come.
func (a *answers) await(ctx context.Context, sent int) {
	last, since := a.sent.Load(), time.Now()
	for last < int64(sent) && time.Since(since) < patience && ctx.Err() == nil {
		time.Sleep(pause)
		if now := a.sent.Load(); now != last {
			last, since = now, time.Now()
		}
	}
}

// stop ends answering and returns how many answers were sent.
func (a *answers) stop() (int, error) {
	a.stopped.Store(true)
	<-a.done
	_ = unix.Close(a.fd)
	return int(a.sent.Load()), a.err
}

// answer turns a frame of a flood, as it arrived at link, into the answer to it. It
// reports false for a frame that it cannot answer, which it leaves alone.
func answer(frame []byte, link lab.Link) bool {
	if len(frame) < ethernetLen+ipv4Len {
		return false
	}
	ethertype := binary.BigEndian.Uint16(frame[12:])
	ipv6 := ethertype == unix.ETH_P_IPV6
	l4, source, addrLen, protocol := ethernetLen+ipv4Len, ipv4Source, 4, frame[ethernetLen+9]
	if ipv6 {
		l4, source, addrLen, protocol = ethernetLen+ipv6Len, ipv6Source, 16, frame[ethernetLen+6]
	}
	tr, known := transportOf(protocol)
	if !known || !ipv6 && ethertype != unix.ETH_P_IP || len(frame) < l4+tr.len {
		return false
	}
	putEthernet(frame, link.MAC, link.Peer, ipv6)
	swap(frame[source:source+addrLen], frame[source+addrLen:source+2*addrLen])
	h := frame[l4:]
	if tr.destPort >= 0 {
		swap(h[tr.sourcePort:tr.sourcePort+2], h[tr.destPort:tr.destPort+2])
	}
	switch protocol {
	case unix.IPPROTO_TCP:
		h[13] = tcpSYN | tcpACK
		binary.BigEndian.PutUint32(h[8:], binary.BigEndian.Uint32(h[4:])+1)
	case unix.IPPROTO_ICMP:
		h[0] = icmp4Reply
	case unix.IPPROTO_ICMPV6:
		h[0] = icmp6Reply
	case unix.IPPROTO_SCTP:
		copy(h[4:8], h[sctpHeaderLen+4:]) // the peer's initiate tag is our verification tag
		h[sctpHeaderLen] = sctpInitAck
		putSCTPChecksum(h[:tr.len])
	}
	if o := tr.checksum; o >= 0 {
		h[o], h[o+1] = 0, 0
		s := sum(h[:tr.len])
		if tr.pseudoHeader {
			s += sum(frame[source:source+2*addrLen]) + uint64(protocol) + uint64(tr.len)
		}
		binary.BigEndian.PutUint16(h[o:], fold(s))
	}
	return true
}

func swap(a, b []byte) {
	var kept [16]byte
	n := copy(kept[:], a)
	copy(a, b)
	copy(b, kept[:n])
}

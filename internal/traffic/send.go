package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
)

// sendBatch is how many packets one system call sends. Each crosses the firewall within the call, so this also bounds
// how long a call takes: about 2 ms.
const sendBatch = 256

// pause is how long the sender sleeps when nothing is due.
const pause = time.Millisecond

// sender makes the packets of one flood and sends them.
type sender struct {
	fd       int
	template *template
	batch    *batch
	next     int // number of the next flow

	sources, dests           addresses
	destPorts                int
	firstPort, firstDestPort uint16

	answers *answers // nil when nothing answers
}

func (f Flood) newSender(fw *lab.Firewall) (*sender, error) {
	fd, err := packetSocket(fw.Client, fw.ClientLink, 0)
	if err != nil {
		return nil, err
	}
	stamp := lab.StampSilent
	if f.Answer {
		stamp = lab.StampAnswer
	}
	d := f.dimensions()
	s := &sender{
		fd:            fd,
		template:      newTemplate(f.Protocol, f.Sources.Addr().Is6(), stamp, fw.ClientLink),
		next:          f.First,
		sources:       newAddresses(f.Sources, d[0]),
		dests:         newAddresses(f.Destinations, d[1]),
		destPorts:     d[2],
		firstDestPort: f.Port,
	}
	if s.template.transport.destPort >= 0 {
		s.firstPort = firstPort
	}
	s.batch = newBatch(sendBatch, len(s.template.frame))
	for i := range s.batch.len() {
		copy(s.batch.packet(i), s.template.frame)
	}
	return s, nil
}

func (s *sender) close() {
	_ = unix.Close(s.fd)
}

// fill writes flow number flow into packet i of the batch.
func (s *sender) fill(i, flow int) {
	source := s.sources.at(flow % s.sources.count)
	flow /= s.sources.count
	dest := s.dests.at(flow % s.dests.count)
	flow /= s.dests.count
	destPort := s.firstDestPort + uint16(flow%s.destPorts)
	flow /= s.destPorts
	s.template.fill(s.batch.packet(i), source, dest, s.firstPort+uint16(flow), destPort)
}

// send sends total packets, rate a second (0: at once), until ctx ends. It returns how many were sent.
func (s *sender) send(ctx context.Context, total int, rate float64, start time.Time) (int, error) {
	sent := 0
	for sent < total && ctx.Err() == nil {
		n := min(total-sent, s.batch.len())
		if rate > 0 {
			n = min(n, int(rate*time.Since(start).Seconds())-sent)
		}
		if s.answers != nil {
			n = min(n, s.answers.room(sent))
		}
		if n <= 0 {
			time.Sleep(pause)
			continue
		}
		for i := range n {
			s.fill(i, s.next+i)
		}
		s.next += n
		if err := s.flush(ctx, n, &sent); err != nil {
			return sent, fmt.Errorf("send packet: %w", err)
		}
	}
	return sent, nil
}

// flush sends the first n packets of the batch, those that the link refuses for the moment a little later.
func (s *sender) flush(ctx context.Context, n int, sent *int) error {
	for done := 0; done < n; {
		k, err := s.batch.send(s.fd, done, n)
		switch {
		case err == nil:
			done += k
			*sent += k
		case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EAGAIN):
			if ctx.Err() != nil {
				return nil
			}
			time.Sleep(pause)
		default:
			return err
		}
	}
	return nil
}

// packetSocket opens a packet socket on a link: for sending only if protocol is 0.
func packetSocket(ns *host.Namespace, link lab.Link, protocol uint16) (int, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		// Protocol 0 until it is bound: otherwise it would take in what arrives on any link.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	to := &unix.SockaddrLinklayer{Ifindex: link.Index, Protocol: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, protocol))}
	if err := unix.Bind(fd, to); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("bind packet socket to %s: %w", link.Name, err)
	}
	return fd, nil
}

// addresses is a run of addresses, counted from the first of a prefix.
type addresses struct {
	first  netip.Addr
	v4     uint32 // first, as numbers: the whole of an IPv4 address
	hi, lo uint64 // or both halves of an IPv6 address
	count  int
}

func newAddresses(p netip.Prefix, count int) addresses {
	a := addresses{first: p.Addr(), count: count}
	if a.first.Is4() {
		b := a.first.As4()
		a.v4 = binary.BigEndian.Uint32(b[:])
	} else {
		b := a.first.As16()
		a.hi, a.lo = binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])
	}
	return a
}

// at is address i. The lower half of an IPv6 address never overflows: counts are below 2³¹ and prefixes are aligned.
func (a *addresses) at(i int) netip.Addr {
	if a.first.Is4() {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], a.v4+uint32(i))
		return netip.AddrFrom4(b)
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo+uint64(i))
	return netip.AddrFrom16(b)
}

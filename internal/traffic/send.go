//go:build linux

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
)

// sendBatch is how many packets one system call sends. Each crosses the firewall
// within the call, so this also bounds how long a call takes: about 2 ms.
const sendBatch = 256

// pause is how long the sender sleeps when nothing is due.
const pause = time.Millisecond

// floods counts the floods of this process, which gives each its number.
var floods atomic.Uint32

// patience is how long a flood waits for something that does not come, a link that
// takes packets or an answer, before it goes on without.
const patience = 500 * time.Millisecond

// sender makes the packets of one flood and sends them.
type sender struct {
	fd       int
	template *template
	batch    *batch
	number   uint16 // of the flood
	next     int    // number of the next flow

	sources, dests           addresses
	destPorts                int
	firstPort, firstDestPort uint16

	answers *answers // nil when nothing answers
}

// sender makes the sender of a valid flood on a packet socket of link.
func (f Flood) sender(fd int, link lab.Link) *sender {
	stamp := lab.StampSilent
	if f.Answer {
		stamp = lab.StampAnswer
	}
	d := f.dimensions()
	s := &sender{
		fd:            fd,
		number:        uint16(floods.Add(1)),
		next:          f.First,
		sources:       newAddresses(f.Sources, d[0]),
		dests:         newAddresses(f.Destinations, d[1]),
		destPorts:     d[2],
		firstDestPort: f.Port,
	}
	s.template = newTemplate(f.Protocol, f.Sources.Addr().Is6(), stamp, s.number, link)
	if s.template.transport.destPort >= 0 {
		s.firstPort = firstPort
	}
	s.batch = newBatch(sendBatch, len(s.template.frame))
	for i := range s.batch.len() {
		copy(s.batch.packet(i), s.template.frame)
	}
	return s
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

// flush sends the first n packets of the batch, those that the link refuses for the
// moment a little later.
func (s *sender) flush(ctx context.Context, n int, sent *int) error {
	moved := time.Now()
	for done := 0; done < n; {
		k, err := s.batch.send(s.fd, done, n)
		switch {
		case err == nil:
			done += k
			*sent += k
			moved = time.Now()
		case !errors.Is(err, unix.ENOBUFS) && !errors.Is(err, unix.EAGAIN):
			return err
		case ctx.Err() != nil:
			return nil
		case time.Since(moved) > patience:
			return fmt.Errorf("the link takes no packets: %w", err)
		default:
			time.Sleep(pause)
		}
	}
	return nil
}

// packetSocket opens a packet socket on a link, which sends and receives nothing yet.
func packetSocket(ns *host.Namespace, link lab.Link) (int, error) {
	fd := -1
	err := ns.Do(func() (err error) {
		// Protocol 0 receives nothing.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: link.Index}); err != nil {
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

// at is address i. The lower half of an IPv6 address never overflows: counts are
// below 2³¹ and prefixes are aligned.
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

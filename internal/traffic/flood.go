//go:build linux

package traffic

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
)

// firstPort is the lowest source port of TCP, UDP and SCTP flows.
const firstPort = 1024

// Flood is a number of new flows, one packet each, from the client side of a
// firewall to its server side. Flow i always has the same addresses and ports:
// sources rotate fastest, then destinations, then destination ports, then source
// ports. So consecutive flows spread evenly over the sources, and no two of a flood
// are the same.
type Flood struct {
	// Protocol is the IP protocol number: TCP (a SYN each), UDP (an empty
	// datagram), ICMP and ICMPv6 (an echo request), SCTP (an INIT) or GRE (an empty
	// packet; only the addresses tell flows apart).
	Protocol uint8

	// Sources and Destinations are where flows come from and go to, within the
	// lab's client and server prefixes and of one address family. From the first
	// address of a prefix on, SourceCount and DestinationCount of it are used, all
	// of it where the count is 0.
	Sources, Destinations         netip.Prefix
	SourceCount, DestinationCount int

	// Port is the destination port, the first of Ports consecutive ones (0 means
	// one). ICMP and GRE have none.
	Port  uint16
	Ports int

	// First is the number of the first flow: floods that continue one another give
	// First the sum of the counts before.
	First int
	// Count is the exact number of flows. 0 means Rate × Duration, or without a
	// Rate whatever Duration permits.
	Count int
	// Rate is in flows per second, 0 for as fast as possible.
	Rate float64
	// Duration ends the flood even if some of Count are missing; 0 means that it
	// takes as long as Count and Rate need.
	Duration time.Duration

	// Answer makes the server side answer each packet, once: with a SYN-ACK, the
	// datagram itself, an echo reply, an INIT-ACK or a GRE packet back. The client
	// side takes no notice.
	Answer bool
}

// FloodReport says what a flood did.
type FloodReport struct {
	Sent     int           // packets handed to the link, one per flow
	Lost     int           // of these, what the kernel dropped before the firewall, for want of time: not in its table
	Answered int           // answers that the server side sent; 0 unless asked for
	Elapsed  time.Duration // of sending
}

// Capacity is the number of distinct flows that the addresses and ports can make.
func (f Flood) Capacity() int {
	total := 1
	for _, n := range f.dimensions() {
		if n > 0 && total > math.MaxInt/n {
			return math.MaxInt
		}
		total *= n
	}
	return total
}

// dimensions are the numbers of sources, destinations, destination ports and source ports.
func (f Flood) dimensions() [4]int {
	tr, _ := transportOf(f.Protocol)
	d := [4]int{addressCount(f.Sources, f.SourceCount), addressCount(f.Destinations, f.DestinationCount), 1, 1}
	if tr.destPort >= 0 {
		d[2], d[3] = max(f.Ports, 1), math.MaxUint16+1-firstPort
	} else if tr.sourcePort >= 0 {
		d[3] = math.MaxUint16 + 1
	}
	return d
}

// addressCount is the number of addresses of p to use.
func addressCount(p netip.Prefix, count int) int {
	if count > 0 {
		return count
	}
	return 1 << min(p.Addr().BitLen()-p.Bits(), 30)
}

// total is the number of flows to make.
func (f Flood) total() int {
	switch {
	case f.Count > 0:
		return f.Count
	case f.Rate > 0:
		return int(math.Round(f.Rate * f.Duration.Seconds()))
	}
	return f.Capacity() - f.First
}

func (f Flood) validate(fw *lab.Firewall) error {
	tr, known := transportOf(f.Protocol)
	ipv6 := f.Sources.Addr().Is6()
	clients, servers := lab.ClientPrefix4, lab.ServerPrefix4
	if ipv6 {
		clients, servers = lab.ClientPrefix6, lab.ServerPrefix6
	}
	switch {
	case !known:
		return fmt.Errorf("protocol %d: want ICMP, TCP, UDP, GRE, ICMPv6 or SCTP", f.Protocol)
	case f.Protocol == unix.IPPROTO_ICMP && ipv6, f.Protocol == unix.IPPROTO_ICMPV6 && !ipv6:
		return fmt.Errorf("protocol %d: not the ICMP of this address family", f.Protocol)
	case !within(f.Sources, f.SourceCount, clients):
		return fmt.Errorf("%d sources of %v: not at the client side, %v", f.SourceCount, f.Sources, clients)
	case !within(f.Destinations, f.DestinationCount, servers):
		return fmt.Errorf("%d destinations of %v: not at the server side, %v", f.DestinationCount, f.Destinations, servers)
	case ipv6 && !fw.IPv6:
		return fmt.Errorf("firewall %s does not forward IPv6", fw.Name)
	case f.Count < 0 || f.First < 0 || f.Rate < 0 || f.Duration < 0 || f.Ports < 0:
		return errors.New("a negative number")
	case int(f.Port)+max(f.Ports, 1) > math.MaxUint16+1:
		return fmt.Errorf("%d ports from %d on: beyond %d", f.Ports, f.Port, math.MaxUint16)
	case tr.destPort < 0 && (f.Port > 0 || f.Ports > 0):
		return fmt.Errorf("protocol %d has no ports", f.Protocol)
	case f.Count == 0 && f.Duration == 0:
		return errors.New("no end: give a count or a duration")
	case f.total() > f.Capacity()-f.First:
		return fmt.Errorf("%d flows from number %d on: the addresses and ports make %d", f.total(), f.First, f.Capacity())
	}
	return nil
}

func within(p netip.Prefix, count int, outer netip.Prefix) bool {
	hostBits := p.Addr().BitLen() - p.Bits()
	return p.IsValid() && p == p.Masked() && outer.Overlaps(p) && outer.Bits() <= p.Bits() &&
		count >= 0 && (hostBits >= 31 || count <= 1<<hostBits)
}

// Run makes the flows through fw and waits until all are sent and, where asked for,
// answered. When ctx ends first, it returns what was done until then, and no error.
func (f Flood) Run(ctx context.Context, fw *lab.Firewall) (FloodReport, error) {
	if err := f.validate(fw); err != nil {
		return FloodReport{}, fmt.Errorf("flood: %w", err)
	}
	if f.Duration > 0 && (f.Count > 0 || f.Rate == 0) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.Duration)
		defer cancel()
	}
	fd, err := packetSocket(fw.Client, fw.ClientLink)
	if err != nil {
		return FloodReport{}, fmt.Errorf("flood: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	s := f.sender(fd, fw.ClientLink)
	if f.Answer {
		if s.answers, err = startAnswers(fw, s.number); err != nil {
			return FloodReport{}, fmt.Errorf("flood: answers: %w", err)
		}
	}

	dropped, err := fw.ClientLink.Dropped(fw.Client)
	if err != nil {
		return FloodReport{}, fmt.Errorf("flood: %w", err)
	}
	var report FloodReport
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A thread of its own: the packets' way through the firewall runs in the sending system call.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		start := time.Now()
		report.Sent, err = s.send(ctx, f.total(), f.Rate, start)
		report.Elapsed = time.Since(start)
	}()
	<-done
	after, droppedErr := fw.ClientLink.Dropped(fw.Client)
	report.Lost = int(after - dropped)
	err = errors.Join(err, droppedErr)
	if s.answers != nil {
		s.answers.await(ctx, report.Sent)
		var answersErr error
		report.Answered, answersErr = s.answers.stop()
		err = errors.Join(err, answersErr)
	}
	if err != nil {
		return report, fmt.Errorf("flood: %w", err)
	}
	return report, nil
}

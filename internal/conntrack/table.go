//go:build linux

package conntrack

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// counter is where the value of a CTA_STATS_… attribute belongs.
func (s *KernelStats) counter(attr uint16) *uint64 {
	switch attr {
	case 2:
		return &s.Found
	case 4:
		return &s.Invalid
	case 8:
		return &s.Insert
	case 9:
		return &s.InsertFailed
	case 10:
		return &s.Drop
	case 11:
		return &s.EarlyDrop
	case 12:
		return &s.Error
	case 13:
		return &s.SearchRestart
	case 14:
		return &s.ClashResolve
	case 15:
		return &s.ChainTooLong
	}
	return nil // no longer used by the kernel, or new
}

// State reads the fill of the table and the kernel's counters.
func (c *Conn) State() (State, error) {
	s, err := c.state()
	if err != nil {
		return State{}, fmt.Errorf("read table state: %w", err)
	}
	return s, nil
}

func (c *Conn) state() (s State, err error) {
	if s.Count, s.Limit, err = c.fill(); err != nil {
		return s, err
	}
	if s.Stats, err = c.kernelStats(); err != nil {
		return s, err
	}
	if s.Sysctls, err = c.sysctl.read(c.ns); err != nil {
		return s, err
	}
	if s.Limit == 0 && s.Sysctls.Max != nil { // before Linux 4.18 netlink does not say
		s.Limit = uint64(*s.Sysctls.Max)
	}
	if s.Sysctls.Buckets != nil {
		s.Buckets = uint64(*s.Sysctls.Buckets)
	}
	return s, nil
}

// fill asks for the number of entries and its limit (IPCTNL_MSG_CT_GET_STATS).
// The kernel marks its only answer as one of many (NLM_F_MULTI,
// ctnetlink_stat_ct_fill_info), and no NLMSG_DONE follows: mdlayher/netlink
// v1.11.2, and with it ti-mo's StatsGlobal, waits for that for ever. Here the
// acknowledgement is the end.
func (c *Conn) fill() (count, limit uint64, err error) {
	err = c.ask(msgStats, unix.NLM_F_ACK, func(kind uint16, v []byte) {
		switch {
		case len(v) != 4:
		case kind == ctaStatsGlobalEntries:
			count = uint64(network.Uint32(v))
		case kind == ctaStatsGlobalMaxEntries:
			limit = uint64(network.Uint32(v))
		}
	})
	return count, limit, err
}

// kernelStats sums the counters of all CPUs. ti-mo's own Stats leaves out the
// last two counters.
func (c *Conn) kernelStats() (s KernelStats, err error) {
	err = c.ask(msgStatsCPU, unix.NLM_F_DUMP, func(kind uint16, v []byte) {
		if counter := s.counter(kind); counter != nil && len(v) == 4 {
			*counter += uint64(network.Uint32(v))
		}
	})
	return s, err
}

// ask sends a question without attributes and calls fn for each attribute of
// the answers, up to the message that ends them.
func (c *Conn) ask(kind, flags uint16, fn func(kind uint16, value []byte)) error {
	ch, err := c.reader()
	if err != nil {
		return err
	}
	ch.seq++
	c.req.buf = c.req.buf[:0]
	c.req.end(c.req.begin(kind, unix.NLM_F_REQUEST|flags, ch.seq, unix.AF_UNSPEC))
	if err := ch.send(c.req.buf); err != nil {
		return err
	}
	return ch.answers(ch.seq, ch.seq, func(msg []byte) (done bool, err error) {
		switch native.Uint16(msg[4:]) {
		case unix.NLMSG_ERROR, unix.NLMSG_DONE:
			errno, err := status(msg)
			if errno != 0 {
				err = host.NeedsNetAdmin(errno)
			}
			return true, err
		}
		if len(msg) < headers {
			return true, errTruncated
		}
		for attrs := (attributes{msg[headers:]}); ; {
			kind, v, ok, err := attrs.next()
			if err != nil || !ok {
				return err != nil, err
			}
			fn(kind, v)
		}
	})
}

package conntrack

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// State is the fill of a table, in entries, and what the kernel counted while
// it worked on it.
type State struct {
	Count   uint64 // entries, those that have expired and wait for the garbage collector included
	Limit   uint64 // 0: unknown
	Buckets uint64 // of the hash table, which all namespaces share; 0: unknown
	Stats   KernelStats
}

// KernelStats are the kernel's per-CPU counters (CTA_STATS_…), summed. The
// kernel keeps each in 32 bits per CPU, cumulative since the namespace was made.
type KernelStats struct {
	Found         uint64
	Invalid       uint64 // packets that fit no flow and make none
	Insert        uint64
	InsertFailed  uint64 // entries lost to another of the same tuple; packets dropped
	Drop          uint64 // new flows refused: the table was full, or memory was short
	EarlyDrop     uint64 // entries evicted to make room
	Error         uint64
	SearchRestart uint64
	ClashResolve  uint64
	ChainTooLong  uint64 // new flows refused: their hash bucket is too long
}

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
	if c.stats == nil {
		if c.stats, err = openQuery(c.ns); err != nil {
			return s, err
		}
	}
	if s.Stats, err = kernelStats(c.stats); err != nil {
		return s, err
	}
	sysctls, err := ReadSysctls(c.ns)
	if err != nil {
		return s, err
	}
	if s.Limit == 0 && sysctls.Max != nil { // before Linux 4.18 netlink does not say
		s.Limit = uint64(*sysctls.Max)
	}
	if sysctls.Buckets != nil {
		s.Buckets = uint64(*sysctls.Buckets)
	}
	return s, nil
}

// fill asks for the number of entries and its limit (IPCTNL_MSG_CT_GET_STATS).
// The kernel marks its only answer as one of many (NLM_F_MULTI,
// ctnetlink_stat_ct_fill_info), and no NLMSG_DONE follows: mdlayher/netlink
// v1.11.2, and with it ti-mo's StatsGlobal, waits for that for ever. Here the
// acknowledgement is the end.
func (c *Conn) fill() (count, limit uint64, err error) {
	ch, err := c.reader()
	if err != nil {
		return 0, 0, err
	}
	ch.seq++
	c.req.buf = c.req.buf[:0]
	c.req.end(c.req.begin(msgStats, unix.NLM_F_REQUEST|unix.NLM_F_ACK, ch.seq, unix.AF_UNSPEC))
	if err := ch.send(c.req.buf); err != nil {
		return 0, 0, err
	}
	err = ch.answers(ch.seq, ch.seq, func(msg []byte) (done bool, err error) {
		if native.Uint16(msg[4:]) == unix.NLMSG_ERROR {
			errno, err := status(msg)
			if errno != 0 {
				err = refused(errno)
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
			switch {
			case len(v) != 4:
			case kind == ctaStatsGlobalEntries:
				count = uint64(network.Uint32(v))
			case kind == ctaStatsGlobalMaxEntries:
				limit = uint64(network.Uint32(v))
			}
		}
	})
	return count, limit, err
}

// openQuery opens the library's socket for what is rare and small.
func openQuery(ns *host.Namespace) (conn *netfilter.Conn, err error) {
	err = ns.Do(func() (err error) {
		conn, err = netfilter.Dial(nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return conn, nil
}

// query asks for a dump and returns its messages.
func query(conn *netfilter.Conn, h netfilter.Header, attrs ...netfilter.Attribute) ([]netlink.Message, error) {
	h.Flags = netlink.Request | netlink.Dump
	req, err := netfilter.MarshalNetlink(h, attrs)
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	return conn.Query(req)
}

// kernelStats sums the counters of all CPUs. ti-mo's own Stats leaves out the
// last two counters.
func kernelStats(conn *netfilter.Conn) (s KernelStats, err error) {
	cpus, err := query(conn, netfilter.Header{SubsystemID: netfilter.NFSubsysCTNetlink, MessageType: msgStatsCPU})
	if err != nil {
		return s, err
	}
	for _, cpu := range cpus {
		_, attrs, err := netfilter.UnmarshalNetlink(cpu)
		if err != nil {
			return s, err
		}
		for _, a := range attrs {
			if counter := s.counter(a.Type); counter != nil && len(a.Data) == 4 {
				*counter += uint64(network.Uint32(a.Data))
			}
		}
	}
	return s, nil
}

// Sysctls are the settings of connection tracking in one namespace; nil is
// unknown: this kernel, or this namespace, does not have it.
type Sysctls struct {
	Events    *int // 0: no events; 1: always; 2: only for flows that begin while somebody listens
	Acct      *int // 1: packets and bytes are counted
	Timestamp *int // 1: beginnings and ends are timed
	TCPLoose  *int // not 0: a TCP packet from the middle of a connection makes an entry
	Max       *int // entries
	Buckets   *int
}

// ReadSysctls reads the settings of ns; nil means the process's own namespace.
func ReadSysctls(ns *host.Namespace) (Sysctls, error) {
	v, err := readSysctls(ns, "nf_conntrack_events", "nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_tcp_loose", "nf_conntrack_max", "nf_conntrack_buckets")
	if err != nil {
		return Sysctls{}, fmt.Errorf("read conntrack settings: %w", err)
	}
	return Sysctls{Events: v[0], Acct: v[1], Timestamp: v[2], TCPLoose: v[3], Max: v[4], Buckets: v[5]}, nil
}

// readSysctls reads numbers from /proc, which shows the settings of the reading
// thread's namespace; nil stands for one that is not there.
func readSysctls(ns *host.Namespace, names ...string) ([]*int, error) {
	values := make([]*int, len(names))
	return values, ns.Do(func() (err error) {
		for i, name := range names {
			if values[i], err = readSysctl(name); err != nil {
				return err
			}
		}
		return nil
	})
}

func readSysctl(name string) (*int, error) {
	text, err := os.ReadFile("/proc/sys/net/netfilter/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return &v, nil
}

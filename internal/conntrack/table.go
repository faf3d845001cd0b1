package conntrack

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/netfilter"

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

// table is the part of a Conn that asks for the kernel's counters. That is rare
// and small, so the library does it. The fill is read from /proc: ti-mo's
// StatsGlobal never returns with mdlayher/netlink v1.11.2, which waits for the
// NLMSG_DONE that the kernel's NLM_F_MULTI promises and that it does not send.
type table struct {
	cpu *netfilter.Conn // ti-mo's own Stats leaves out the last two counters
}

func openTable(ns *host.Namespace) (*table, error) {
	t := &table{}
	err := ns.Do(func() (err error) {
		t.cpu, err = netfilter.Dial(nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	return t, nil
}

func (t *table) close() error { return t.cpu.Close() }

// State reads the fill of the table and the kernel's counters.
func (c *Conn) State() (State, error) {
	s, err := c.state()
	if err != nil {
		return State{}, fmt.Errorf("read table state: %w", err)
	}
	return s, nil
}

func (c *Conn) state() (s State, err error) {
	if c.closed {
		return s, ErrClosed
	}
	if c.table == nil {
		if c.table, err = openTable(c.ns); err != nil {
			return s, err
		}
	}
	if s.Stats, err = c.table.stats(); err != nil {
		return s, err
	}
	values, err := readSysctls(c.ns, "nf_conntrack_count", "nf_conntrack_max", "nf_conntrack_buckets")
	if err != nil {
		return s, err
	}
	for i, field := range []*uint64{&s.Count, &s.Limit, &s.Buckets} {
		if values[i] != nil {
			*field = uint64(*values[i])
		}
	}
	return s, nil
}

// stats sums the counters of all CPUs.
func (t *table) stats() (s KernelStats, err error) {
	req, err := netfilter.MarshalNetlink(netfilter.Header{
		SubsystemID: netfilter.NFSubsysCTNetlink,
		MessageType: msgStatsCPU,
		Flags:       netlink.Request | netlink.Dump,
	}, nil)
	if err != nil {
		return s, err
	}
	cpus, err := t.cpu.Query(req)
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

package conntrack

// State is the fill of a table, in entries, and what the kernel counted while
// it worked on it.
type State struct {
	Count   uint64 // entries, those that have expired and wait for the garbage collector included
	Limit   uint64 // 0: unknown
	Buckets uint64 // of the hash table, which all namespaces share; 0: unknown
	Stats   KernelStats
	Sysctls Sysctls
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

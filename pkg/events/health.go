package events

// Health is one firewall's state, published every second on
// ct.v1.health.<firewall>. Counters are cumulative since Boot.
type Health struct {
	Head     `msgpack:",inline"`
	Firewall string         `msgpack:"firewall" json:"firewall"`
	Realm    string         `msgpack:"realm" json:"realm"`
	Boot     string         `msgpack:"boot" json:"boot"` // hex of the batches' boot
	Labels   ByName[string] `msgpack:"labels,omitempty" json:"labels,omitempty"`
	Version  string         `msgpack:"version" json:"version"`
	Source   string         `msgpack:"source,omitempty" json:"source,omitempty"`     // where the events come from if not from the kernel: Table and Kernel are nothing then
	Config   string         `msgpack:"config" json:"config"`                         // digest of the producer's configuration
	Sent     int64          `msgpack:"sent" json:"sent"`                             // ns, firewall's monotonic clock
	Started  int64          `msgpack:"started" json:"started"`                       // Unix ms, firewall's wall clock
	Stopping bool           `msgpack:"stopping,omitempty" json:"stopping,omitempty"` // the last one of a clean stop

	Table  TableHealth  `msgpack:"table" json:"table"`
	Kernel KernelHealth `msgpack:"kernel" json:"kernel"`
	Stream StreamHealth `msgpack:"stream" json:"stream"`

	AllowFlush bool `msgpack:"allow_flush" json:"allow_flush"`
	AllowBlock bool `msgpack:"allow_block,omitempty" json:"allow_block,omitempty"`
	TCPLoose   bool `msgpack:"tcp_loose" json:"tcp_loose"`
	// Problems are what the preflight found, in plain words.
	Problems []string `msgpack:"problems,omitempty" json:"problems,omitempty"`
	// Blocked is what is blocked, in answers to a status command only: at most
	// MaxBlocked, those that end last; BlockedMore are left out.
	Blocked     []Blocked `msgpack:"blocked,omitempty" json:"blocked,omitempty"`
	BlockedMore uint64    `msgpack:"blocked_more,omitempty" json:"blocked_more,omitempty"`
}

// MaxBlocked bounds the list of what is blocked.
const MaxBlocked = 2048

// Blocked is one address or prefix that a firewall drops.
type Blocked struct {
	Prefix string  `msgpack:"prefix" json:"prefix"`
	LeftS  float64 `msgpack:"left_s" json:"left_s"` // until it ends; -1: it has no end
}

// TableHealth is the fill of the table in entries.
type TableHealth struct {
	Count   uint64  `msgpack:"count" json:"count"` // the kernel's count, expired entries included
	Limit   uint64  `msgpack:"limit" json:"limit"`
	Buckets uint64  `msgpack:"buckets" json:"buckets"`
	Percent float64 `msgpack:"percent" json:"percent"` // 100 × count / limit
}

// KernelHealth sums the kernel's per-CPU counters, cumulative since the table
// was made.
type KernelHealth struct {
	Drop          uint64 `msgpack:"drop" json:"drop"`
	EarlyDrop     uint64 `msgpack:"early_drop" json:"early_drop"`
	InsertFailed  uint64 `msgpack:"insert_failed" json:"insert_failed"`
	Invalid       uint64 `msgpack:"invalid" json:"invalid"`
	SearchRestart uint64 `msgpack:"search_restart" json:"search_restart"`
	ClashResolve  uint64 `msgpack:"clash_resolve" json:"clash_resolve"`
	ChainTooLong  uint64 `msgpack:"chaintoolong" json:"chaintoolong"`
}

// StreamHealth accounts for every event between the kernel and the bus.
type StreamHealth struct {
	Events      uint64 `msgpack:"events" json:"events"`           // read from the kernel
	Published   uint64 `msgpack:"published" json:"published"`     // acknowledged by the bus
	LostSocket  uint64 `msgpack:"lost_socket" json:"lost_socket"` // dropped by the kernel: the socket buffer was full
	LostRing    uint64 `msgpack:"lost_ring" json:"lost_ring"`     // dropped by the producer: its ring was full while the bus was away
	LostBus     uint64 `msgpack:"lost_bus" json:"lost_bus"`       // refused by the bus
	Undecodable uint64 `msgpack:"undecodable" json:"undecodable"` // kernel messages that could not be read
	RingBytes   uint64 `msgpack:"ring_bytes" json:"ring_bytes"`   // waiting for the bus or its acknowledgement
	RingLimit   uint64 `msgpack:"ring_limit" json:"ring_limit"`
	Buffer      uint64 `msgpack:"buffer_bytes" json:"buffer_bytes"` // socket buffer the kernel granted
	BufferUsed  uint64 `msgpack:"buffer_used" json:"buffer_used"`
	LingerMS    uint64 `msgpack:"linger_ms" json:"linger_ms"` // asked for: by its flag, or ct.v1.pace if that is more
	LagMS       uint64 `msgpack:"lag_ms" json:"lag_ms"`       // age of the oldest batch not yet acknowledged
	Epoch       uint32 `msgpack:"epoch" json:"epoch"`
	Live        uint64 `msgpack:"live" json:"live"` // flows held in this epoch
	Resyncing   bool   `msgpack:"resyncing,omitempty" json:"resyncing,omitempty"`
	Resyncs     uint64 `msgpack:"resyncs" json:"resyncs"`
	// Unannounced: the kernel does not announce the end of flows older than
	// the listener (nf_conntrack_events=2 and such flows are left).
	Unannounced bool `msgpack:"unannounced,omitempty" json:"unannounced,omitempty"`
}

// Lost is the sum of all known losses.
func (s *StreamHealth) Lost() uint64 { return s.LostSocket + s.LostRing + s.LostBus + s.Undecodable }

func (h *Health) Validate() error {
	if err := CheckFirewall(h.Firewall); err != nil {
		return err
	}
	if err := CheckRealm(h.Realm); err != nil {
		return err
	}
	if err := checkFinite("table.percent", h.Table.Percent); err != nil {
		return err
	}
	texts := [][2]string{{"boot", h.Boot}, {"version", h.Version}, {"source", h.Source}, {"config", h.Config}}
	for k, v := range h.Labels {
		texts = append(texts, [2]string{"label", k}, [2]string{"label", v})
	}
	for _, p := range h.Problems {
		texts = append(texts, [2]string{"problem", p})
	}
	for _, b := range h.Blocked {
		if err := checkFinite("blocked", b.LeftS); err != nil {
			return err
		}
		texts = append(texts, [2]string{"blocked", b.Prefix})
	}
	return checkText(texts...)
}

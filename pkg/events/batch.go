package events

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
)

// Limits of one batch. A decoder refuses more; a writer reports itself full
// before it gets there.
const (
	MaxBatchEvents = 4096
	MaxBatchBytes  = 256 << 10
)

// Boot is one run of one producer: 128 random bits.
type Boot [16]byte

func (b Boot) String() string { return hex.EncodeToString(b[:]) }

// Phase places a batch within a snapshot (a dump of the table).
type Phase uint8

const (
	// Live batches are no part of a snapshot.
	Live Phase = 0
	// SnapshotPart marks each batch of a snapshot; the first also carries
	// SnapshotBegin and the last SnapshotEnd (one batch may be both).
	SnapshotPart  Phase = 1
	SnapshotBegin Phase = 2
	SnapshotEnd   Phase = 4
	// SnapshotAbort ends a snapshot that could not be completed: its epoch
	// will never be whole.
	SnapshotAbort Phase = 8

	phaseMask = SnapshotPart | SnapshotBegin | SnapshotEnd | SnapshotAbort
)

// Header describes a batch. All times are nanoseconds on the sending
// firewall's monotonic clock, which starts anywhere and never jumps.
type Header struct {
	Firewall string // the sender; the subject is what counts
	Realm    string
	Boot     Boot
	Seq      uint64 // 1, 2, 3 … per boot and subject; a gap is loss
	Epoch    uint32 // 1, 2, 3 … per boot; each snapshot begins one
	Phase    Phase
	Sent     int64  // when this message was handed to the bus
	Clean    bool   // nothing was un-acknowledged when it was sent, so that the delay to the stream is short
	Base     int64  // events' times count from here
	Count    int    // events in this batch
	Total    uint64 // events of this boot on this subject before this batch: names the exact number missing in a gap
	Lost     uint64 // events that this boot's producer knows it lost, cumulative
	After    uint64 // in snapshots: the last sequence of ct.v1.events that precedes this batch
}

// Batch is a decoded batch. Its columns are slices of the decoded message, so
// it is valid as long as those bytes are.
type Batch struct {
	Header

	types  []byte // Type | Flags
	times  []byte // uint32 LE, µs since Base
	protos []byte // IP protocol number
	family []byte // 4 or 6
	addrs  []byte // source and destination, 8 or 32 bytes per event, network order
	sports []byte // uint16 LE
	dports []byte // uint16 LE
	ids    []byte // uint32 LE
	status []byte // uint16 LE
	// Sparse columns: each entry begins with the uint16 LE index of its event,
	// indexes ascend.
	nat      []byte // reply tuple: src, dst (8 or 32 bytes), sport, dport uint16 LE
	zones    []byte // uint16 LE
	counters []byte // 4 × uint64 LE: orig packets, orig bytes, reply packets, reply bytes
}

// column ties a column's wire name to its place in a batch. Dense columns have
// width bytes per event (0: as the families say).
type column struct {
	key   string
	width int
	col   func(*Batch) *[]byte
}

var columns = [...]column{
	{"type", 1, func(b *Batch) *[]byte { return &b.types }},
	{"time", 4, func(b *Batch) *[]byte { return &b.times }},
	{"proto", 1, func(b *Batch) *[]byte { return &b.protos }},
	{"family", 1, func(b *Batch) *[]byte { return &b.family }},
	{"addr", 0, func(b *Batch) *[]byte { return &b.addrs }},
	{"sport", 2, func(b *Batch) *[]byte { return &b.sports }},
	{"dport", 2, func(b *Batch) *[]byte { return &b.dports }},
	{"id", 4, func(b *Batch) *[]byte { return &b.ids }},
	{"status", 2, func(b *Batch) *[]byte { return &b.status }},
	// Sparse from here: left out when empty.
	{"nat", 0, func(b *Batch) *[]byte { return &b.nat }},
	{"zone", zoneEntry, func(b *Batch) *[]byte { return &b.zones }},
	{"counters", counterEntry, func(b *Batch) *[]byte { return &b.counters }},
}

var (
	denseColumns  = columns[:9]
	sparseColumns = columns[9:]
)

const (
	zoneEntry    = 2 + 2
	counterEntry = 2 + 4*8
)

func natEntry(ipv6 bool) int { return 2 + addrPair(ipv6) + 4 }

func addrPair(ipv6 bool) int {
	if ipv6 {
		return 32
	}
	return 8
}

// Reader walks a batch's events in order.
type Reader struct {
	b                    *Batch
	i, addr              int
	nat, zones, counters int // offsets of the next sparse entries
}

// Events returns a reader placed before the first event.
func (b *Batch) Events() Reader { return Reader{b: b} }

// Next fills e with the next event and reports whether there was one. It
// overwrites every field of e.
func (r *Reader) Next(e *Event) bool {
	b, i := r.b, r.i
	if i >= b.Count {
		return false
	}
	r.i++
	le := binary.LittleEndian
	t := b.types[i]
	e.Type, e.Flags = Type(t&typeMask), Flags(t)&flagMask
	e.Time = b.Base + int64(le.Uint32(b.times[4*i:]))*1000
	e.Proto = b.protos[i]
	e.IPv6 = b.family[i] == 6
	var n int
	e.Orig.Src, e.Orig.Dst, n = getAddrs(b.addrs[r.addr:], e.IPv6)
	r.addr += n
	e.Orig.SrcPort = le.Uint16(b.sports[2*i:])
	e.Orig.DstPort = le.Uint16(b.dports[2*i:])
	e.ID = le.Uint32(b.ids[4*i:])
	e.Status = le.Uint16(b.status[2*i:])

	e.NAT, e.HasCounters, e.Zone = false, false, 0
	if next(b.nat, r.nat, i) {
		p := b.nat[r.nat+2:]
		e.Reply.Src, e.Reply.Dst, n = getAddrs(p, e.IPv6)
		e.Reply.SrcPort, e.Reply.DstPort = le.Uint16(p[n:]), le.Uint16(p[n+2:])
		e.NAT = true
		r.nat += natEntry(e.IPv6)
	} else {
		e.Reply = e.Orig.Mirror(e.Proto, e.IPv6)
	}
	if next(b.zones, r.zones, i) {
		e.Zone = le.Uint16(b.zones[r.zones+2:])
		r.zones += zoneEntry
	}
	e.Counters = Counters{}
	if next(b.counters, r.counters, i) {
		p := b.counters[r.counters+2:]
		e.Counters = Counters{le.Uint64(p), le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[24:])}
		e.HasCounters = true
		r.counters += counterEntry
	}
	return true
}

// HasZones reports whether any event is in a zone other than 0.
func (b *Batch) HasZones() bool { return len(b.zones) > 0 }

// Brief is what counting needs of an event: who, when, and what it changes.
type Brief struct {
	Src, Dst Addr // of the original direction
	Time     int64
	DstPort  uint16
	Status   uint16
	Zone     uint16
	Type     Type
	Flags    Flags
	Proto    uint8
	IPv6     bool
}

// AppendBriefs appends every event of the batch in brief, at a sixth of what
// Reader costs. The columns are taken one time, outside the loop, and are known
// to be long enough: the slicing tells the compiler so.
func (b *Batch) AppendBriefs(dst []Brief) []Brief {
	n := b.Count
	le := binary.LittleEndian
	types, protos, family := b.types[:n], b.protos[:n], b.family[:n]
	times, dports, status, addrs := b.times[:4*n], b.dports[:2*n], b.status[:2*n], b.addrs
	at := len(dst)
	dst = slices.Grow(dst, n)[:at+n]
	for i := range types {
		e := &dst[at+i]
		e.Type, e.Flags = Type(types[i]&typeMask), Flags(types[i])&flagMask
		e.Time = b.Base + int64(le.Uint32(times[4*i:]))*1000
		e.Proto = protos[i]
		e.IPv6 = family[i] == 6
		var size int
		e.Src, e.Dst, size = getAddrs(addrs, e.IPv6)
		addrs = addrs[size:]
		e.DstPort, e.Status, e.Zone = le.Uint16(dports[2*i:]), le.Uint16(status[2*i:]), 0
	}
	for off := 0; off < len(b.zones); off += zoneEntry {
		dst[at+int(le.Uint16(b.zones[off:]))].Zone = le.Uint16(b.zones[off+2:])
	}
	return dst
}

// next reports whether the sparse entry at off belongs to event i.
func next(col []byte, off, i int) bool {
	return off < len(col) && int(binary.LittleEndian.Uint16(col[off:])) == i
}

func getAddrs(p []byte, ipv6 bool) (src, dst Addr, n int) {
	be := binary.BigEndian
	if !ipv6 {
		return Addr{Lo: uint64(be.Uint32(p))}, Addr{Lo: uint64(be.Uint32(p[4:]))}, 8
	}
	return Addr{be.Uint64(p), be.Uint64(p[8:])}, Addr{be.Uint64(p[16:]), be.Uint64(p[24:])}, 32
}

func putAddrs(p []byte, ipv6 bool, t *Tuple) []byte {
	be := binary.BigEndian
	if !ipv6 {
		p = be.AppendUint32(p, uint32(t.Src.Lo))
		return be.AppendUint32(p, uint32(t.Dst.Lo))
	}
	p = be.AppendUint64(p, t.Src.Hi)
	p = be.AppendUint64(p, t.Src.Lo)
	p = be.AppendUint64(p, t.Dst.Hi)
	return be.AppendUint64(p, t.Dst.Lo)
}

// check verifies that the columns agree with Count and with each other, so
// that Next needs no bounds of its own.
func (b *Batch) check() error {
	n := b.Count
	if n < 0 || n > MaxBatchEvents {
		return fmt.Errorf("batch: %d events, at most %d are allowed", n, MaxBatchEvents)
	}
	for _, c := range denseColumns {
		if got := len(*c.col(b)); c.width > 0 && got != n*c.width {
			return fmt.Errorf("batch: column %q has %d bytes, %d events need %d", c.key, got, n, n*c.width)
		}
	}
	addrs := 0
	for i := range n {
		switch b.family[i] {
		case 4:
			addrs += 8
		case 6:
			addrs += 32
		default:
			return fmt.Errorf("batch: event %d: family %d is neither 4 nor 6", i, b.family[i])
		}
		t := b.types[i]
		if Type(t&typeMask) == 0 || t&^(typeMask|uint8(flagMask)) != 0 {
			return fmt.Errorf("batch: event %d: unknown type %#x", i, t)
		}
	}
	if len(b.addrs) != addrs {
		return fmt.Errorf("batch: column %q has %d bytes, its families need %d", "addr", len(b.addrs), addrs)
	}
	for _, c := range sparseColumns {
		if err := b.checkSparse(c); err != nil {
			return err
		}
	}
	return nil
}

func (b *Batch) checkSparse(c column) error {
	col, last := *c.col(b), -1
	for off := 0; off < len(col); {
		if len(col)-off < 2 {
			return fmt.Errorf("batch: column %q ends within an entry", c.key)
		}
		i := int(binary.LittleEndian.Uint16(col[off:]))
		if i <= last || i >= b.Count {
			return fmt.Errorf("batch: column %q: index %d after %d, in a batch of %d", c.key, i, last, b.Count)
		}
		last = i
		width := c.width
		if width == 0 {
			width = natEntry(b.family[i] == 6)
		}
		if off += width; off > len(col) {
			return fmt.Errorf("batch: column %q ends within an entry", c.key)
		}
	}
	return nil
}

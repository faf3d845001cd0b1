package events

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"

	"github.com/vmihailenco/msgpack/v5"
)

// ErrBatchFull is returned by [BatchWriter.Append] when the event must go into
// the next batch.
var ErrBatchFull = errors.New("batch is full")

// Offsets of the fields that are known only when a batch is sent, which may be
// long after it was encoded and more than once: they come first and have a
// fixed width, so that a waiting batch is stamped in place. In the order of
// docs/reference/wire.md: a map header of three bytes, then key and value of each.
const (
	offSent  = 3 + 2 + 1 + 5 + 1    // "v" 1 "sent" int64
	offClean = offSent + 8 + 6      // "clean" bool
	offSeq   = offClean + 1 + 4 + 1 // "seq" uint64
	offTotal = offSeq + 8 + 6 + 1   // "total" uint64
	offLost  = offTotal + 8 + 5 + 1 // "lost" uint64
)

// Stamp is what a batch learns when it is sent. A batch that is sent again
// keeps Seq and Total.
type Stamp struct {
	Sent  int64
	Clean bool
	Seq   uint64
	Total uint64
	Lost  uint64
}

// Apply overwrites the stamp's fields in an encoded batch.
func (s Stamp) Apply(encoded []byte) {
	be := binary.BigEndian
	be.PutUint64(encoded[offSent:], uint64(s.Sent))
	encoded[offClean] = 0xc2
	if s.Clean {
		encoded[offClean] = 0xc3
	}
	be.PutUint64(encoded[offSeq:], s.Seq)
	be.PutUint64(encoded[offTotal:], s.Total)
	be.PutUint64(encoded[offLost:], s.Lost)
}

// BatchWriter collects events into columns and encodes them. The zero value is
// ready. It allocates only until its columns have grown to their usual size.
type BatchWriter struct {
	cols Batch
	base int64
	buf  bytes.Buffer
	enc  *msgpack.Encoder
}

// Len is the number of events collected; Size what they take when encoded,
// without the header (at most about 200 bytes).
func (w *BatchWriter) Len() int { return w.cols.Count }

func (w *BatchWriter) Size() int {
	c := &w.cols
	return c.Count*denseBytes + len(c.addrs) + len(c.nat) + len(c.zones) + len(c.counters)
}

// denseBytes is what an event takes in the columns that each event has, without
// its addresses.
const denseBytes = 1 + 4 + 1 + 1 + 2 + 2 + 4 + 2

// headerRoom is more than any header takes: two names of 63 bytes, numbers,
// keys and column headers.
const headerRoom = 512

// Append adds e. It returns ErrBatchFull, and adds nothing, when the limits of
// a batch are reached or when e lies more than an hour after the first event.
func (w *BatchWriter) Append(e *Event) error {
	c := &w.cols
	if c.Count == 0 {
		w.base = e.Time
	}
	// Events come in the order they were read, but a dump and the event reader
	// share a clock, not a thread: a little earlier than the first is the first.
	us := max(e.Time-w.base, 0) / 1000
	most := denseBytes + addrPair(e.IPv6) + natEntry(e.IPv6) + zoneEntry + counterEntry
	if c.Count >= MaxBatchEvents || us > math.MaxUint32 || w.Size()+most+headerRoom > MaxBatchBytes {
		return ErrBatchFull
	}
	le := binary.LittleEndian
	i := uint16(c.Count)
	family := byte(4)
	if e.IPv6 {
		family = 6
	}
	c.types = append(c.types, byte(e.Type)|byte(e.Flags))
	c.times = le.AppendUint32(c.times, uint32(us))
	c.protos = append(c.protos, e.Proto)
	c.family = append(c.family, family)
	c.addrs = putAddrs(c.addrs, e.IPv6, &e.Orig)
	c.sports = le.AppendUint16(c.sports, e.Orig.SrcPort)
	c.dports = le.AppendUint16(c.dports, e.Orig.DstPort)
	c.ids = le.AppendUint32(c.ids, e.ID)
	c.status = le.AppendUint16(c.status, e.Status)
	if e.NAT {
		c.nat = putAddrs(le.AppendUint16(c.nat, i), e.IPv6, &e.Reply)
		c.nat = le.AppendUint16(le.AppendUint16(c.nat, e.Reply.SrcPort), e.Reply.DstPort)
	}
	if e.Zone != 0 {
		c.zones = le.AppendUint16(le.AppendUint16(c.zones, i), e.Zone)
	}
	if e.HasCounters {
		c.counters = le.AppendUint16(c.counters, i)
		for _, v := range [...]uint64{e.OrigPackets, e.OrigBytes, e.ReplyPackets, e.ReplyBytes} {
			c.counters = le.AppendUint64(c.counters, v)
		}
	}
	c.Count++
	return nil
}

// Encode writes the batch after h, whose Count and Base it sets, and empties
// the writer. The bytes are valid until the next call of Encode.
func (w *BatchWriter) Encode(h *Header) ([]byte, error) {
	c := &w.cols
	h.Count, h.Base = c.Count, w.base
	w.buf.Reset()
	if w.enc == nil {
		w.enc = msgpack.NewEncoder(&w.buf)
	}
	f := fieldWriter{enc: w.enc}
	f.begin(len(headerNames) + len(denseColumns) + present(c.nat) + present(c.zones) + present(c.counters))
	f.uint("v", BatchVersion)
	f.fixed("sent", h.Sent)
	f.bool("clean", h.Clean)
	f.fixedUint("seq", h.Seq)
	f.fixedUint("total", h.Total)
	f.fixedUint("lost", h.Lost)
	f.string("fw", h.Firewall)
	f.string("realm", h.Realm)
	f.bytes("boot", h.Boot[:])
	f.uint("epoch", uint64(h.Epoch))
	f.uint("phase", uint64(h.Phase))
	f.fixed("base", h.Base)
	f.uint("n", uint64(h.Count))
	f.uint("after", h.After)
	for _, d := range denseColumns {
		f.bytes(d.key, *d.col(c))
	}
	for _, s := range sparseColumns {
		if col := *s.col(c); len(col) > 0 {
			f.bytes(s.key, col)
		}
	}
	for i := range columns {
		col := columns[i].col(c)
		*col = (*col)[:0]
	}
	c.Count = 0
	return w.buf.Bytes(), f.err
}

// present is 1 for a column that is written.
func present(col []byte) int { return min(len(col), 1) }

// fieldWriter writes key-value pairs and keeps the first error.
type fieldWriter struct {
	enc *msgpack.Encoder
	err error
}

func (f *fieldWriter) keep(err error) {
	if f.err == nil {
		f.err = err
	}
}

// begin writes the map header. With 16 fields and more, which a batch always
// has, it takes three bytes, as offSent assumes.
func (f *fieldWriter) begin(fields int)             { f.keep(f.enc.EncodeMapLen(fields)) }
func (f *fieldWriter) key(k string)                 { f.keep(f.enc.EncodeString(k)) }
func (f *fieldWriter) uint(k string, v uint64)      { f.key(k); f.keep(f.enc.EncodeUint(v)) }
func (f *fieldWriter) fixed(k string, v int64)      { f.key(k); f.keep(f.enc.EncodeInt64(v)) }
func (f *fieldWriter) fixedUint(k string, v uint64) { f.key(k); f.keep(f.enc.EncodeUint64(v)) }
func (f *fieldWriter) bool(k string, v bool)        { f.key(k); f.keep(f.enc.EncodeBool(v)) }
func (f *fieldWriter) string(k, v string)           { f.key(k); f.keep(f.enc.EncodeString(v)) }
func (f *fieldWriter) bytes(k string, v []byte) {
	f.key(k)
	if v == nil {
		v = []byte{} // an empty column is empty, not nil
	}
	f.keep(f.enc.EncodeBytes(v))
}

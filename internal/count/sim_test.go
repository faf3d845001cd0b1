package count

import (
	"bytes"
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/live"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// message is a batch as it lies in a stream.
type message struct {
	firewall string
	snapshot bool
	data     []byte
	stream   int64
}

// simulated is one firewall: a kernel table whose events are read with a lag,
// and a producer (the real index of live flows, the real codec) that batches
// them, dumps the table while it changes, loses some, and is restarted.
type simulated struct {
	t    *testing.T
	r    *rand.Rand
	name string
	// The true time is the stream's. The firewall's clock began at origin.
	now, origin int64
	delay       int64 // shortest way to the stream
	stalled     bool  // the bus does not answer: batches wait, and are not clean

	table  map[uint32]events.Event
	ids    []uint32 // keys of table, some stale
	queue  []events.Event
	nextID uint32

	realm             string
	boot              events.Boot
	live              *live.Table
	batch, dump       events.BatchWriter
	seq, total        uint64
	lost, told        uint64 // events lost, and as the last live batch said
	snapSeq, snapSent uint64
	epoch             uint32
	rows              []events.Event // of the running dump, still to be read
	begun             bool

	out     []message
	offsets map[events.Boot]int64 // of the firewall's clock to the stream's, by boot
}

func newSimulated(t *testing.T, r *rand.Rand, name, realm string, start int64) *simulated {
	s := &simulated{t: t, r: r, name: name, realm: realm, now: start, table: map[uint32]events.Event{}, offsets: map[events.Boot]int64{}, delay: r.Int64N(5e6)}
	s.restart()
	return s
}

// reboot restarts the firewall: its table is gone and nobody announces it, its clock begins anew.
func (s *simulated) reboot() {
	s.table, s.ids = map[uint32]events.Event{}, nil
	s.restart()
	s.origin = s.now
	s.offsets[s.boot] = s.origin + s.delay
}

// pause stops the guest and its clock, and not the time.
func (s *simulated) pause(d int64) {
	s.send()
	s.now += d
	s.origin += d
	s.offsets[s.boot] += d
}

// restart begins a new run of the producer: what it had not sent is gone.
func (s *simulated) restart() {
	binary.BigEndian.PutUint64(s.boot[:], s.r.Uint64())
	s.origin = s.r.Int64N(1e15)
	s.offsets[s.boot] = s.origin + s.delay
	s.live = live.New()
	s.batch, s.dump = events.BatchWriter{}, events.BatchWriter{}
	s.seq, s.total, s.lost, s.told, s.snapSeq, s.snapSent, s.epoch = 0, 0, 0, 0, 0, 0, 0
	s.rows, s.begun, s.queue = nil, false, nil
}

func (s *simulated) clock() int64 { return s.now - s.origin }

// open adds a flow to the table.
func (s *simulated) open(src, dst netip.Addr, dport, zone uint16, typ events.Type) {
	s.nextID++
	e := events.Event{Time: s.clock() / 1000 * 1000, Type: typ, Proto: 6, ID: s.nextID, Status: events.StatusConfirmed, Zone: zone}
	e.Orig.Src, e.IPv6 = events.FromNetip(src)
	e.Orig.Dst, _ = events.FromNetip(dst)
	e.Orig.SrcPort, e.Orig.DstPort = uint16(s.nextID), dport
	if s.r.IntN(2) == 0 {
		e.Proto = 17
	}
	s.table[e.ID] = e
	s.ids = append(s.ids, e.ID)
	s.queue = append(s.queue, e)
}

// end takes a random flow out of the table.
func (s *simulated) end() {
	for len(s.ids) > 0 {
		i := s.r.IntN(len(s.ids))
		id := s.ids[i]
		s.ids[i] = s.ids[len(s.ids)-1]
		s.ids = s.ids[:len(s.ids)-1]
		if e, ok := s.table[id]; ok {
			delete(s.table, id)
			e.Type, e.Time = events.Destroy, s.clock()/1000*1000
			if s.r.IntN(3) > 0 {
				e.Status |= events.StatusSeenReply
			}
			s.queue = append(s.queue, e)
			return
		}
	}
}

// read moves n events from the queue into the batch.
func (s *simulated) read(n int) {
	for range min(n, len(s.queue)) {
		e := s.queue[0]
		s.queue = s.queue[1:]
		s.live.Apply(&e)
		if err := s.batch.Append(&e); err != nil {
			s.t.Fatal(err)
		}
	}
}

// drop loses n events of the queue.
func (s *simulated) drop(n int) {
	n = min(n, len(s.queue))
	s.queue = s.queue[n:]
	s.lost += uint64(n)
}

// send sends the live batch, if there is anything in it.
func (s *simulated) send() {
	if s.batch.Len() == 0 {
		return
	}
	s.seq++
	s.told = s.lost
	n := uint64(s.batch.Len())
	s.emit(&s.batch, events.Header{Seq: s.seq, Epoch: s.epoch, Total: s.total})
	s.total += n
}

func (s *simulated) emit(w *events.BatchWriter, h events.Header) {
	h.Firewall, h.Realm, h.Boot, h.Lost, h.Sent, h.Clean = s.name, s.realm, s.boot, s.lost, s.clock(), !s.stalled
	data, err := w.Encode(&h)
	if err != nil {
		s.t.Fatal(err)
	}
	s.out = append(s.out, message{s.name, h.Phase != events.Live, bytes.Clone(data), s.now + s.delay})
}

// begin starts a dump.
func (s *simulated) begin() {
	if s.begun {
		s.snapshot(events.SnapshotAbort)
	}
	s.send()
	s.live.Begin()
	s.epoch++
	s.begun, s.rows = true, nil
	for _, id := range slices.Sorted(maps.Keys(s.table)) {
		e := s.table[id]
		e.Type, e.Time = events.Existing, s.clock()/1000*1000
		s.rows = append(s.rows, e)
	}
	s.snapshot(events.SnapshotBegin)
}

// row reads n rows of the dump.
func (s *simulated) row(n int) {
	for range min(n, len(s.rows)) {
		e := s.rows[0]
		s.rows = s.rows[1:]
		if s.live.Existing(&e) {
			if err := s.dump.Append(&e); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	if s.dump.Len() > 0 {
		s.snapshot(0)
	}
}

// finish ends the dump.
func (s *simulated) finish() {
	if !s.begun {
		return
	}
	s.row(len(s.rows))
	s.live.End()
	s.send()
	s.begun = false
	s.snapshot(events.SnapshotEnd)
}

func (s *simulated) snapshot(phase events.Phase) {
	s.snapSeq++
	n := uint64(s.dump.Len())
	s.emit(&s.dump, events.Header{Seq: s.snapSeq, Epoch: s.epoch, Total: s.snapSent, After: s.seq, Phase: events.SnapshotPart | phase})
	s.snapSent += n
}

// take returns what was sent and when.
func (s *simulated) take() []message {
	out := s.out
	s.out = nil
	return out
}

// receiver decodes and counts messages.
type receiver struct {
	t   *testing.T
	c   *Counter
	dec events.Decoder
	b   events.Batch
}

func (r *receiver) deliver(m message) []Crossing {
	r.t.Helper()
	r.admit(m)
	return r.c.finish()
}

// admit decodes and admits a message.
func (r *receiver) admit(m message) {
	r.t.Helper()
	if err := r.dec.Decode(m.data, &r.b); err != nil {
		r.t.Fatal(err)
	}
	admit := r.c.Admit
	if m.snapshot {
		admit = r.c.AdmitSnapshot
	}
	if err := admit(m.firewall, &r.b, m.stream); err != nil {
		r.t.Fatal(err)
	}
}

var windows = []time.Duration{time.Second, 3 * time.Second, 10 * time.Second}

func newReceiver(t *testing.T, cfg Config) *receiver {
	t.Helper()
	if cfg.Windows == nil {
		cfg.Windows = windows
	}
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &receiver{t: t, c: c}
}

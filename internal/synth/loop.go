package synth

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// A Loop is batches made in advance, to be sent again and again as if each were new.
type Loop struct {
	batches [][]byte
	counts  []int
	base    []int // offset of the field of the same name in each
	span    int64 // ns that a batch covers
	next    int
	at      int64
	seq     []uint64 // by load
	total   []uint64
}

// NewLoop takes batches of so many events from loads, in turn. at is when the first is
// sent, span what each covers.
func NewLoop(loads []*Load, batches, eventsEach int, at, span int64) (*Loop, error) {
	l := &Loop{span: span, at: at, seq: make([]uint64, len(loads)), total: make([]uint64, len(loads))}
	for i := range (batches + len(loads) - 1) / len(loads) * len(loads) {
		data, n, err := loads[i%len(loads)].Batch(eventsEach, 0, span)
		if err != nil {
			return nil, err
		}
		key := []byte("\xa4base\xd3") // a msgpack string of four bytes, then an int64
		base := bytes.Index(data, key)
		if base < 0 {
			return nil, errors.New("synthetic batch: no base")
		}
		l.batches, l.counts, l.base = append(l.batches, bytes.Clone(data)), append(l.counts, n), append(l.base, base+len(key))
	}
	return l, nil
}

// Len is how many batches come before they repeat.
func (l *Loop) Len() int { return len(l.batches) }

// Next returns a batch as if it was sent gap ns after the one before, with the
// number of its load and the time when it was sent. It is valid until the loop
// comes round.
func (l *Loop) Next(gap int64) (data []byte, load int, at int64) {
	i := l.next
	l.next = (l.next + 1) % len(l.batches)
	l.at += gap
	load = i % len(l.seq)
	l.seq[load]++
	data = l.batches[i]
	events.Stamp{Sent: l.at, Clean: true, Seq: l.seq[load], Total: l.total[load]}.Apply(data)
	l.total[load] += uint64(l.counts[i])
	binary.BigEndian.PutUint64(data[l.base[i]:], uint64(l.at-l.span))
	return data, load, l.at
}

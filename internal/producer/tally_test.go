package producer

import (
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// tally is a NATS server, a producer, and a consumer that sums what arrives.
type tally struct {
	t      *testing.T
	server *embedded.Server
	conn   *bus.Conn
	p      *Producer

	mu        sync.Mutex
	seen      map[uint64]bool // live sequences
	new, gone int
	active    map[uint32]int // by epoch
	complete  map[uint32]bool
	lost      uint64
	last      events.Header
}

func newTally(t *testing.T) *tally {
	t.Helper()
	r := &tally{t: t, seen: map[uint64]bool{}, active: map[uint32]int{}, complete: map[uint32]bool{}}
	var err error
	if r.server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.server.Close() })
	if r.conn, err = bus.Connect(bus.Config{Server: r.server, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.conn.Close)
	if _, err := r.conn.Bootstrap(t.Context(), bus.DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r *tally) take(m bus.Msg) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var b events.Batch
	var d events.Decoder
	if err := d.Decode(m.Data, &b); err != nil {
		r.t.Errorf("%s: %v", m.Subject, err)
		return
	}
	live := b.Phase == events.Live
	if live && r.seen[b.Seq] {
		return
	}
	if live {
		r.seen[b.Seq] = true
	}
	r.lost, r.last = max(r.lost, b.Lost), b.Header
	var e events.Event
	for it := b.Events(); it.Next(&e); {
		switch e.Type {
		case events.New:
			r.new++
		case events.Destroy:
			r.gone++
		}
		d := 1
		if e.Type == events.Destroy {
			d = -1
		}
		if e.Flags&events.Unheld == 0 {
			r.active[b.Epoch] += d
		}
	}
	if b.Phase&events.SnapshotEnd != 0 {
		r.complete[b.Epoch] = true
	}
}

// until waits for a condition on what arrived.
func (r *tally) until(what string, ok func() bool) {
	r.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		r.mu.Lock()
		done := ok()
		r.mu.Unlock()
		if done {
			return
		}
		if time.Now().After(deadline) {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.t.Fatalf("waited for %s: new %d, gone %d, active %v, lost %d, last %+v", what, r.new, r.gone, r.active, r.lost, r.last)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(string(p[:len(p)-1]))
	return len(p), nil
}

package spool

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// rig is a pump with a server of its own, and what the stream has kept.
type rig struct {
	t      *testing.T
	server *embedded.Server
	conn   *bus.Conn // another client's
	pump   *Pump
	stop   func()
	clock  atomic.Int64

	writer events.BatchWriter
}

func newRig(t *testing.T, ring int) *rig {
	t.Helper()
	r := &rig{t: t}
	var err error
	if r.server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.server.Close)
	if r.conn, err = bus.Connect(bus.Config{Server: r.server, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.conn.Close)
	own, err := bus.Connect(bus.Config{Flags: bus.Flags{NATSURL: r.server.URL()}, Role: "producer", Name: "fw-a", Patient: true, Direct: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(own.Close)
	pub, err := own.NewPublisher(events.EventsSubject("fw-a"))
	if err != nil {
		t.Fatal(err)
	}
	r.pump = &Pump{
		Ring: NewRing(ring), Account: &Account{}, Bus: pub, Firewall: "fw-a", Boot: events.Boot{1, 2, 3},
		Now: func() int64 { return r.clock.Add(1) }, Log: slog.New(slog.DiscardHandler), Counted: true,
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.pump.Run(ctx); err != nil {
			t.Errorf("pump: %v", err)
		}
	})
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(r.stop)
	return r
}

func (r *rig) bootstrap() {
	r.t.Helper()
	if _, err := r.conn.Bootstrap(r.t.Context(), bus.DefaultLimits, false); err != nil {
		r.t.Fatal(err)
	}
}

// batch encodes n events; id marks the first.
func (r *rig) batch(id uint32, n int) []byte {
	r.t.Helper()
	for i := range n {
		e := events.Event{Type: events.New, Proto: 17, ID: id + uint32(i), Time: int64(id)}
		if err := r.writer.Append(&e); err != nil {
			r.t.Fatal(err)
		}
	}
	data, err := r.writer.Encode(&events.Header{Firewall: "fw-a", Realm: events.RealmDefault, Epoch: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	return data
}

// put hands a batch to the ring as the capture side does.
func (r *rig) put(data []byte, n int) {
	if dropped := r.pump.Ring.Put(data, n); dropped > 0 {
		r.pump.Account.LostRing.Add(uint64(dropped))
	}
}

func (r *rig) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			a := r.pump.Account
			used, _, oldest := r.pump.Ring.Usage()
			r.t.Fatalf("waited in vain for %s: %d published, %d lost; %d bytes wait, the oldest for %s", what, a.Published.Load(), a.Lost(), used, oldest)
		}
	}
}

// kept reads the stream's batches.
func (r *rig) kept() []events.Header {
	r.t.Helper()
	var out []events.Header
	var dec events.Decoder
	err := r.conn.Read(r.t.Context(), bus.StreamEvents, bus.FollowFrom{All: true}, func(m bus.Msg) {
		var b events.Batch
		if err := dec.Decode(m.Data, &b); err != nil {
			r.t.Error(err)
			return
		}
		out = append(out, b.Header)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return out
}

// check verifies that the stream holds each sequence number from 1 once, in any
// order, that totals name the events before, and returns the events.
func (r *rig) check() (total uint64) {
	r.t.Helper()
	batches := r.kept()
	slices.SortFunc(batches, func(a, b events.Header) int { return int(a.Seq) - int(b.Seq) })
	for i, h := range batches {
		if h.Seq != uint64(i+1) {
			r.t.Fatalf("sequence number %d stands where %d should", h.Seq, i+1)
		}
		if h.Total != total {
			r.t.Errorf("batch %d says that %d events precede it, but %d do", h.Seq, h.Total, total)
		}
		total += uint64(h.Count)
	}
	return total
}

func TestPumpDelivers(t *testing.T) {
	r := newRig(t, 1<<20)
	r.bootstrap()
	const n = 300
	want := uint64(0)
	for i := range n {
		size := 1 + i%7
		r.put(r.batch(uint32(i*10), size), size)
		want += uint64(size)
	}
	r.until("every acknowledgement", r.pump.Ring.Empty)
	if got := r.check(); got != want || r.pump.Account.Published.Load() != want || r.pump.Account.Lost() != 0 {
		t.Errorf("%d events are kept and %d counted as published of %d, %d lost", got, r.pump.Account.Published.Load(), want, r.pump.Account.Lost())
	}
	kept := r.kept()
	if !slices.IsSortedFunc(kept, func(a, b events.Header) int { return int(a.Seq) - int(b.Seq) }) {
		t.Error("without a reconnect the stream keeps the order of the sequence numbers")
	}
	if !kept[0].Clean {
		t.Error("the first batch was sent with nothing un-acknowledged")
	}
	for i := range kept {
		if i > 0 && kept[i].Sent <= kept[i-1].Sent {
			t.Errorf("batch %d was sent at %d, the one before at %d", kept[i].Seq, kept[i].Sent, kept[i-1].Sent)
		}
	}
}

// TestCleanWhenAlone: batches that are sent one by one are all clean, so that
// the centre learns the firewall's clock from them.
func TestCleanWhenAlone(t *testing.T) {
	r := newRig(t, 1<<20)
	r.bootstrap()
	for i := range 20 {
		r.put(r.batch(uint32(i), 1), 1)
		r.until("its acknowledgement", r.pump.Ring.Empty)
	}
	for _, h := range r.kept() {
		if !h.Clean {
			t.Errorf("batch %d is not clean", h.Seq)
		}
	}
}

// TestServerGoesAndComes stops the server twice under a steady stream: nothing
// is lost, nothing is kept twice, and what was sent a second time is not clean.
func TestServerGoesAndComes(t *testing.T) {
	r := newRig(t, 8<<20)
	r.bootstrap()
	var put atomic.Uint64
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := uint32(0); ; i++ {
			select {
			case <-done:
				return
			case <-time.After(500 * time.Microsecond):
			}
			r.put(r.batch(i*10, 3), 3)
			put.Add(3)
		}
	})
	for range 2 {
		before := r.pump.Account.Published.Load()
		r.until("some to be published", func() bool { return r.pump.Account.Published.Load() > before+100 })
		r.server.Stop()
		time.Sleep(300 * time.Millisecond)
		if err := r.server.Start(); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
	r.until("every acknowledgement", r.pump.Ring.Empty)
	if err := r.conn.WaitConnected(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := put.Load()
	if got := r.check(); got != want || r.pump.Account.Published.Load() != want || r.pump.Account.Lost() != 0 {
		t.Errorf("%d events are kept and %d counted as published of %d, %d lost", got, r.pump.Account.Published.Load(), want, r.pump.Account.Lost())
	}
}

// TestOverflowIsCounted keeps the server away until the ring overflows: what
// was dropped is counted exactly, told in the batches that follow, and makes no
// gap in the numbers.
func TestOverflowIsCounted(t *testing.T) {
	r := newRig(t, 64<<10)
	r.bootstrap()
	r.put(r.batch(0, 5), 5)
	r.until("the first acknowledgement", r.pump.Ring.Empty)
	r.server.Stop()
	const n, size = 500, 20
	for i := range n {
		r.put(r.batch(uint32(i*100), size), size)
	}
	lost := r.pump.Account.Lost()
	if lost == 0 || lost%size != 0 || lost > n*size {
		t.Fatalf("%d events of %d were lost", lost, n*size)
	}
	if err := r.server.Start(); err != nil {
		t.Fatal(err)
	}
	r.until("every acknowledgement", r.pump.Ring.Empty)
	if err := r.conn.WaitConnected(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := r.check(); got+lost != 5+n*size {
		t.Errorf("%d events are kept and %d lost of %d", got, lost, 5+n*size)
	}
	kept := r.kept()
	if last := kept[len(kept)-1]; last.Lost != lost {
		t.Errorf("the last batch tells of %d lost events, want %d", last.Lost, lost)
	}
}

// TestStreamComesLate: a producer may start before anybody ran bootstrap.
func TestStreamComesLate(t *testing.T) {
	r := newRig(t, 1<<20)
	for i := range 10 {
		r.put(r.batch(uint32(i), 1), 1)
	}
	time.Sleep(3 * retryWait)
	if r.pump.Ring.Empty() || r.pump.Account.Published.Load() != 0 {
		t.Fatal("something was acknowledged without a stream")
	}
	r.bootstrap()
	r.until("every acknowledgement", r.pump.Ring.Empty)
	if got := r.check(); got != 10 {
		t.Errorf("%d events of 10 are kept", got)
	}
}

// TestRefusedForGood sends a batch that the stream does not take: it is counted
// as lost, those behind it are not held up, and the gap that it leaves in the
// numbers names its events.
func TestRefusedForGood(t *testing.T) {
	r := newRig(t, 1<<20)
	var refused atomic.Int64
	r.pump.Refused = func() { refused.Add(1) } // nothing was put in yet
	if _, err := r.conn.JS.CreateStream(t.Context(), jetstream.StreamConfig{
		Name: bus.StreamEvents, Subjects: []string{events.SubjectEvents + ".*"}, Storage: jetstream.MemoryStorage, MaxMsgSize: 4096,
	}); err != nil {
		t.Fatal(err)
	}
	r.put(r.batch(0, 3), 3)
	large := r.batch(10, 300)
	if len(large) < 4096 {
		t.Fatalf("the large batch has only %d bytes", len(large))
	}
	r.put(large, 300)
	r.put(r.batch(1000, 4), 4)
	r.until("every outcome", r.pump.Ring.Empty)
	a := r.pump.Account
	if a.Published.Load() != 7 || a.LostBus.Load() != 300 || refused.Load() != 1 {
		t.Errorf("%d published, %d lost, %d refusals; want 7, 300, 1", a.Published.Load(), a.LostBus.Load(), refused.Load())
	}
	var got []string
	for _, h := range r.kept() {
		got = append(got, fmt.Sprint(h.Seq, " after ", h.Total))
	}
	if want := "1 after 0, 3 after 303"; strings.Join(got, ", ") != want {
		t.Errorf("kept: %q, want %q", got, want)
	}
}

// TestUncounted: a snapshot is no part of the event account.
func TestUncounted(t *testing.T) {
	r := newRig(t, 1<<20)
	r.pump.Counted = false // nothing was put in yet
	r.bootstrap()
	r.put(r.batch(0, 3), 3)
	r.until("its acknowledgement", r.pump.Ring.Empty)
	if n := r.pump.Account.Published.Load(); n != 0 {
		t.Errorf("%d events were counted", n)
	}
}

func TestTokensOutliveTheirCounter(t *testing.T) {
	// A token carries the low 32 bits of the number; around a wrap the high
	// ones are those of the newest number, or one less.
	f := func(newest, seq uint64) {
		t.Helper()
		p := &Pump{Ring: NewRing(100), Account: &Account{}, Counted: true, seq: newest, Log: slog.New(slog.DiscardHandler)}
		p.Ring.Put([]byte{1}, 7)
		it, _ := p.Ring.take()
		it.seq = seq
		p.handle(bus.Result{Token: seq & 0xffffffff})
		if got := p.Account.Published.Load(); got != 7 {
			t.Errorf("newest %#x: the acknowledgement of %#x counted %d events, want 7", newest, seq, got)
		}
	}
	f(1, 1)
	f(0xffffffff, 0xffffffff)
	f(0x100000000, 0x100000000)
	f(0x100000003, 0xfffffffe)
	f(0x500000003, 0x4fffffffe)
}

func TestAccount(t *testing.T) {
	var a Account
	a.Read.Store(100)
	a.Published.Store(50)
	a.LostSocket.Store(1)
	a.LostRing.Store(2)
	a.LostBus.Store(4)
	a.Undecodable.Store(8)
	if got := a.Lost(); got != 15 {
		t.Errorf("%d lost, want 15", got)
	}
}

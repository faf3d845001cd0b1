package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// tape records the messages of one subscription.
type tape struct {
	mu   sync.Mutex
	msgs []Msg
}

func (r *tape) take(m Msg) {
	r.mu.Lock()
	r.msgs = append(r.msgs, m)
	r.mu.Unlock()
}

func (r *tape) texts() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, m := range r.msgs {
		out = append(out, string(m.Data))
	}
	return out
}

func (r *tape) has(text string) bool { return slices.Contains(r.texts(), text) }

// follow runs Follow until the test ends.
func follow(t *testing.T, c *Conn, stream string, from FollowFrom) *tape {
	t.Helper()
	r := &tape{}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Follow(ctx, stream, from, r.take) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Follow ended with %v", err)
			}
		case <-time.After(5 * time.Second):
			t.Error("Follow does not end with its context")
		}
	})
	return r
}

// store publishes texts to a stream and waits for each acknowledgement.
func store(t *testing.T, c *Conn, subject string, texts ...string) {
	t.Helper()
	for _, text := range texts {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := c.JS.Publish(ctx, subject, []byte(text))
		cancel()
		if err != nil {
			t.Fatalf("store %q: %v", text, err)
		}
	}
}

func texts(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, i)
	}
	return out
}

func TestFollowFrom(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	a, b := events.EventsSubject("fw-a"), events.EventsSubject("fw-b")
	store(t, c, a, "a1")
	store(t, c, b, "b1")
	time.Sleep(2 * time.Millisecond)
	since := time.Now()
	store(t, c, a, "a2")
	all := follow(t, c, StreamEvents, FollowFrom{All: true})
	later := follow(t, c, StreamEvents, FollowFrom{Time: since})
	filtered := follow(t, c, StreamEvents, FollowFrom{All: true, Filter: b})
	fresh := follow(t, c, StreamEvents, FollowFrom{})
	until(t, "the four", func() bool { return c.consumers(t, StreamEvents) == 4 })
	store(t, c, b, "b2")
	f := func(r *tape, want ...string) {
		t.Helper()
		until(t, "b2", func() bool { return r.has("b2") })
		if got := r.texts(); !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
	f(all, "a1", "b1", "a2", "b2")
	f(later, "a2", "b2")
	f(filtered, "b1", "b2")
	f(fresh, "b2")
	last := all.msgs[1]
	f(follow(t, c, StreamEvents, FollowFrom{After: last.Seq, Time: last.Time}), "a2", "b2")
	if m := last; m.Subject != b || m.Seq != 2 || time.Since(m.Time) > time.Minute {
		t.Errorf("message: %+v", m)
	}

	var read tape
	if err := c.Read(t.Context(), StreamEvents, FollowFrom{Time: since}, read.take); err != nil {
		t.Fatal(err)
	}
	if got := read.texts(); !slices.Equal(got, []string{"a2", "b2"}) || read.msgs[1].Pending != 0 {
		t.Errorf("Read: %q", got)
	}
	if err := c.Read(t.Context(), StreamAudit, FollowFrom{All: true}, read.take); err != nil {
		t.Errorf("Read of an empty stream: %v", err)
	}
	if err := c.Read(t.Context(), "NONE", FollowFrom{All: true}, read.take); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("Read of no stream: %v", err)
	}
}

// consumers is how many consumers a stream has.
func (c *Conn) consumers(t *testing.T, stream string) int {
	t.Helper()
	s, err := c.JS.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	return s.CachedInfo().State.Consumers
}

// TestFollowAcrossRestart restarts a server that keeps its streams in files
// while somebody else goes on publishing.
func TestFollowAcrossRestart(t *testing.T) {
	s, c := bootstrapped(t, DefaultLimits)
	subject := events.AuditSubject("fw-a", "flush")
	before := texts("before ", 50)
	store(t, c, subject, "old")
	all, fresh := follow(t, c, StreamAudit, FollowFrom{All: true}), follow(t, c, StreamAudit, FollowFrom{})
	idle := follow(t, c, StreamAlerts, FollowFrom{}) // has seen no message when the server goes
	until(t, "the followers", func() bool { return c.consumers(t, StreamAudit) == 2 && c.consumers(t, StreamAlerts) == 1 })
	store(t, c, subject, before...)
	until(t, "the first part", func() bool { return all.has("before 49") && fresh.has("before 49") })
	s.Stop()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	// Published by a client that is there before the followers are back.
	other := connect(t, Config{Server: s})
	after := texts("after ", 50)
	store(t, other, subject, after...)
	store(t, other, events.AlertSubject(events.Firing, "r", "fleet", "table"), "alert")
	until(t, "the second part", func() bool { return all.has("after 49") && fresh.has("after 49") && idle.has("alert") })
	want := slices.Concat(before, after)
	if got := fresh.texts(); !slices.Equal(got, want) {
		t.Errorf("a follower of new messages got %d: %q", len(got), got)
	}
	if got := all.texts(); !slices.Equal(got, append([]string{"old"}, want...)) {
		t.Errorf("a follower of all messages got %d: %q", len(got), got)
	}
}

// TestFollowStreamMadeAnew restarts a server that keeps its streams in memory:
// numbers begin again at one, and no message of the new stream is left out.
func TestFollowStreamMadeAnew(t *testing.T) {
	limits := DefaultLimits
	limits.Memory, limits.EventsBytes = true, 64<<20
	for _, after := range []int{3, 40} { // fewer and more than there were before
		t.Run(fmt.Sprint(after), func(t *testing.T) {
			s, c := bootstrapped(t, limits)
			subject := events.EventsSubject("fw-a")
			all, fresh := follow(t, c, StreamEvents, FollowFrom{All: true}), follow(t, c, StreamEvents, FollowFrom{})
			until(t, "the followers", func() bool { return c.consumers(t, StreamEvents) == 2 })
			before := texts("before ", 20)
			store(t, c, subject, before...)
			until(t, "the first part", func() bool { return all.has("before 19") && fresh.has("before 19") })
			s.Stop()
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			other := connect(t, Config{Server: s})
			if _, err := other.Bootstrap(t.Context(), limits, false); err != nil {
				t.Fatal(err)
			}
			want := texts("after ", after)
			store(t, other, subject, want...)
			last := want[len(want)-1]
			until(t, "the second part", func() bool { return all.has(last) && fresh.has(last) })
			for _, r := range []*tape{all, fresh} {
				if got := r.texts(); !slices.Equal(got, slices.Concat(before, want)) {
					t.Errorf("got %q", got)
				}
			}
		})
	}
}

// TestFollowBeforeTheStream waits for a stream that nobody has made yet.
// TestFollowAfterAnotherStream goes on behind a message of a stream that was made
// anew while nobody read: its numbers begin again, and all of it is new.
func TestFollowAfterAnotherStream(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	a := events.EventsSubject("fw-a")
	var old tape
	for _, text := range []string{"1", "2", "3"} {
		store(t, c, a, text)
	}
	if err := c.Read(t.Context(), StreamEvents, FollowFrom{All: true}, old.take); err != nil {
		t.Fatal(err)
	}
	if err := c.JS.DeleteStream(t.Context(), StreamEvents); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	store(t, c, a, "new 1")
	store(t, c, a, "new 2")
	last := old.msgs[2]
	r := follow(t, c, StreamEvents, FollowFrom{After: last.Seq, Time: last.Time})
	until(t, "the new stream", func() bool { return r.has("new 2") })
	if got := r.texts(); !slices.Equal(got, []string{"new 1", "new 2"}) {
		t.Errorf("got %q", got)
	}
}

func TestFollowBeforeTheStream(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	c := connect(t, Config{Server: s})
	fresh := follow(t, c, StreamAudit, FollowFrom{})
	time.Sleep(100 * time.Millisecond) // so that it has looked
	if _, err := c.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	store(t, c, events.AuditSubject("fw-a", "flush"), "first")
	until(t, "the first message", func() bool { return fresh.has("first") })
}

// TestBeginAfterACrash: the end of an asynchronously written stream is gone,
// and its numbers were given again.
func TestBeginAfterACrash(t *testing.T) {
	made := time.Now().Add(-time.Hour)
	read := time.Now()
	f := follower{met: true, made: made, seq: 100, at: read}
	f.from.All = true
	for _, last := range []uint64{80, 100, 120} {
		cfg := f.begin(&jetstream.StreamInfo{Created: made, State: jetstream.StreamState{LastSeq: last}})
		if cfg.DeliverPolicy != jetstream.DeliverByStartTimePolicy || !cfg.OptStartTime.Before(read) || read.Sub(*cfg.OptStartTime) > time.Minute {
			t.Errorf("a stream of now %d: goes on by %s from %v, want by time, from shortly before the last message", last, cfg.DeliverPolicy, cfg.OptStartTime)
		}
	}
}

func TestLastOfEachSubject(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	store(t, c, events.HealthSubject("fw-b"), "b1", "b2")
	store(t, c, events.HealthSubject("fw-a"), "a1", "a2")
	store(t, c, events.HealthSubject("fw-b"), "b3")
	store(t, c, events.SubjectPace, "pace")
	var got []string
	last, err := c.Last(t.Context(), StreamLast, events.SubjectHealth+".*")
	for _, m := range last {
		got = append(got, m.Subject+" "+string(m.Data))
	}
	if want := []string{"ct.v1.health.fw-a a2", "ct.v1.health.fw-b b3"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q (%v), want %q", got, err, want)
	}
	if last, err := c.Last(t.Context(), StreamAlerts, events.SubjectAlerts+".>"); err != nil || len(last) != 0 {
		t.Errorf("an empty stream: %v, %v", last, err)
	}
	if _, err := c.Last(t.Context(), "NONE", ">"); !errors.Is(err, jetstream.ErrStreamNotFound) {
		t.Errorf("no stream: %v", err)
	}
}

func TestSubscribe(t *testing.T) {
	_, c := bootstrapped(t, DefaultLimits)
	got := make(chan string, 1)
	stop, err := c.Subscribe(events.SubjectHealth+".*", func(subject string, data []byte) { got <- subject + " " + string(data) })
	if err != nil {
		t.Fatal(err)
	}
	store(t, c, events.HealthSubject("fw-a"), "x")
	if text := <-got; text != "ct.v1.health.fw-a x" {
		t.Errorf("got %q", text)
	}
	stop()
	store(t, c, events.HealthSubject("fw-a"), "y")
	select {
	case text := <-got:
		t.Errorf("got %q after stop", text)
	case <-time.After(20 * time.Millisecond):
	}
}

// TestFollowThroughACutLine cuts the TCP connection, not the server: nothing
// that was under way may be left out.
func TestFollowThroughACutLine(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &cutter{Listener: l}
	s := startServer(t, embedded.Config{Listener: line, Dir: t.TempDir()})
	local := connect(t, Config{Server: s})
	if _, err := local.Bootstrap(t.Context(), DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	remote := connect(t, Config{Flags: Flags{NATSURL: s.URL()}})
	r := follow(t, remote, StreamEvents, FollowFrom{All: true})
	const n = 600
	for i := range n {
		store(t, local, events.EventsSubject("fw-a"), fmt.Sprint(i))
		if i%200 == 100 {
			line.cut()
		}
	}
	until(t, "the last message", func() bool { return r.has(fmt.Sprint(n - 1)) })
	for i, text := range r.texts() {
		if text != fmt.Sprint(i) {
			t.Fatalf("message %d is %s", i, text)
		}
	}
}

// cutter is a listener whose connections can be cut.
type cutter struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		conn.Close()
	}
	c.conns = nil
}

// TestFollowLargeMessages: more than the 64 MiB that a server lets wait for one
// connection is in the stream, and the reader's line stands still for a while:
// the reader is not disconnected for it, and gets each message once.
func TestFollowLargeMessages(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &holder{Listener: l}
	s := startServer(t, embedded.Config{Listener: line, Dir: t.TempDir()})
	local := connect(t, Config{Server: s})
	if _, err := local.Bootstrap(t.Context(), Limits{EventsAge: time.Hour, EventsBytes: 256 << 20, Memory: true}, false); err != nil {
		t.Fatal(err)
	}
	const n = 400
	data := make([]byte, events.MaxBatchBytes)
	for range n {
		if _, err := local.JS.PublishAsync(events.EventsSubject("fw-a"), data); err != nil {
			t.Fatal(err)
		}
	}
	<-local.JS.PublishAsyncComplete()
	var cut atomic.Int64
	reader := connect(t, Config{Flags: Flags{NATSURL: s.URL()}, OnChange: func(connected bool) {
		if !connected {
			cut.Add(1)
		}
	}})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	next := uint64(1)
	if err := reader.Follow(ctx, StreamEvents, FollowFrom{All: true}, func(m Msg) {
		if m.Seq != next {
			t.Errorf("message %d came, want %d", m.Seq, next)
		}
		if next++; next == 2 {
			line.hold(300 * time.Millisecond)
		}
		if next > n {
			cancel()
		}
	}); err != nil || next != n+1 {
		t.Errorf("%d of %d messages came, %v", next-1, n, err)
	}
	if n := cut.Load(); n > 0 {
		t.Errorf("the reader was disconnected %d times", n)
	}
}

// holder is a listener through whose connections nothing is sent for a while, or
// nothing is read.
type holder struct {
	net.Listener
	until atomic.Int64 // Unix nanoseconds
	deaf  atomic.Bool
}

func (h *holder) Accept() (net.Conn, error) {
	conn, err := h.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return heldConn{conn, h}, nil
}

func (h *holder) hold(d time.Duration) { h.until.Store(time.Now().Add(d).UnixNano()) }

type heldConn struct {
	net.Conn
	holder *holder
}

func (c heldConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for err == nil && c.holder.deaf.Load() {
		time.Sleep(10 * time.Millisecond)
	}
	return n, err
}

func (c heldConn) Write(b []byte) (int, error) {
	time.Sleep(time.Until(time.Unix(0, c.holder.until.Load())))
	return c.Conn.Write(b)
}

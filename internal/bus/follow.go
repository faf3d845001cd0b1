package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Msg is one message of a stream.
type Msg struct {
	Subject string
	Data    []byte
	Time    time.Time // the stream's: one clock for the whole fleet
	Seq     uint64    // in the stream
	Pending uint64    // messages that are behind it in the stream
	Seal    seal.Seal // of its headers
}

func message(m jetstream.Msg, meta *jetstream.MsgMetadata) Msg {
	return Msg{m.Subject(), m.Data(), meta.Timestamp, meta.Sequence.Stream, meta.NumPending, sealOf(m.Headers().Get)}
}

// FollowFrom says where Follow begins.
type FollowFrom struct {
	Time time.Time // messages stored since then; the zero time: only what comes after the stream was found
	All  bool      // everything that the stream keeps
	// After is the number of the last message that was read before, and Time when it
	// was stored: Follow calls for what came after it. 0: nothing was read.
	After  uint64
	Before uint64 // Read ends before the message of this number; 0: with the last one
	Filter string // subject, with wildcards; "" = all of the stream
}

// Follow calls fn for each message of a stream, in order, until ctx ends. It
// survives reconnects, a stream that is not there yet, one that was made anew,
// and one that lost its end when the server crashed; the same message may then
// come again, but none is left out. It returns nil when ctx ends.
func (c *Conn) Follow(ctx context.Context, stream string, from FollowFrom, fn func(Msg)) error {
	f := follower{conn: c, stream: stream, from: from, fn: fn, seq: from.After}
	if from.After > 0 {
		f.at = from.Time
	}
	var throttle daemon.Throttle
	for ctx.Err() == nil {
		err := f.read(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errReconnected):
			continue
		}
		throttle.Warn(c.log, "cannot read a stream, retrying", "stream", stream, "error", err)
		daemon.Sleep(ctx, retryRead)
	}
	return nil
}

// pullBytes is how much a reader asks for ahead. The bound is in bytes because a
// message may have 256 KiB, and a server closes the connection of a reader for whom 64 MiB wait.
const pullBytes = 8 << 20

// retryRead is the pause before a stream that could not be read is tried again.
const retryRead = 300 * time.Millisecond

// errReconnected ends a read: what the consumer was told before the connection
// was lost may not have arrived.
var errReconnected = errors.New("connected again")

// follower reads one stream. The ordered consumer of nats.go does not serve: it
// goes on by sequence number, so that of a stream made anew, or one that a crash
// cut short, it leaves out as many messages as it had read before.
type follower struct {
	conn   *Conn
	stream string
	from   FollowFrom
	fn     func(Msg)

	met  bool      // the server said how the stream stands
	made time.Time // when the stream was created; another time is another stream
	// The last message delivered, or, of a follower that wants only new ones,
	// the last one before it came.
	seq uint64
	at  time.Time
}

// followMargin is how far the server's clock may have stepped back.
const followMargin = time.Second

// begin decides where to read from, given the stream's present state.
func (f *follower) begin(info *jetstream.StreamInfo) jetstream.ConsumerConfig {
	if f.met && !f.made.IsZero() && !f.made.Equal(info.Created) {
		f.seq, f.from.All = 0, true // made anew: all of it is new
	}
	if !f.met && !f.from.All && f.from.Time.IsZero() {
		f.seq, f.at = info.State.LastSeq, info.State.LastTime
	}
	f.met, f.made = true, info.Created
	cfg := passing(f.from.Filter, jetstream.DeliverAllPolicy)
	switch {
	case f.seq > 0:
		// By time: after a crash, the numbers behind the last one that was
		// written are given again.
		start := f.at.Add(-followMargin)
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &start
	case !f.from.All && !f.from.Time.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &f.from.Time
	}
	return cfg
}

// passing is a consumer for one reader: the server forgets it when that has gone.
func passing(filter string, deliver jetstream.DeliverPolicy) jetstream.ConsumerConfig {
	return jetstream.ConsumerConfig{
		AckPolicy: jetstream.AckNonePolicy, MemoryStorage: true, Replicas: 1, InactiveThreshold: 30 * time.Second,
		FilterSubject: filter, DeliverPolicy: deliver,
	}
}

// pull begins to read, as far ahead as limit says.
func pull(cons jetstream.Consumer, limit jetstream.PullMessagesOpt) (jetstream.MessagesContext, error) {
	// Without two heartbeats the consumer is gone, with its server perhaps.
	return cons.Messages(limit, jetstream.PullHeartbeat(time.Second), jetstream.PullExpiry(10*time.Second))
}

// read delivers messages until something goes wrong.
func (f *follower) read(ctx context.Context) error {
	err := f.conn.consume(ctx, f.stream, f.begin, func(m Msg) {
		if m.Seq <= f.seq && !m.Time.After(f.at) {
			return // from before, within the margin
		}
		f.seq, f.at = m.Seq, m.Time
		f.fn(m)
	})
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		f.met = true // so that all of it is new when it comes
	}
	return err
}

// consume delivers the messages of a stream, in the order of a consumer that begin
// configures, until something goes wrong: errReconnected when the connection was
// lost meanwhile.
func (c *Conn) consume(ctx context.Context, stream string, begin func(*jetstream.StreamInfo) jetstream.ConsumerConfig, fn func(Msg)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	connected := c.NC.StatusChanged(nats.CONNECTED)
	defer c.NC.RemoveStatusListener(connected)
	go func() {
		select {
		case <-connected:
			cancel(errReconnected)
		case <-ctx.Done():
		}
	}()
	fail := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("read stream %s: %w", stream, err)
	}
	cons, err := c.prepare(ctx, stream, begin)
	if err != nil {
		return fail(err)
	}
	it, err := pull(cons, jetstream.PullMaxBytes(pullBytes))
	if err != nil {
		return fail(err)
	}
	defer it.Stop()
	for delivered := uint64(1); ; delivered++ {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fail(err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fail(err)
		}
		if meta.Sequence.Consumer != delivered {
			return fail(fmt.Errorf("delivery %d came after %d", meta.Sequence.Consumer, delivered-1))
		}
		fn(message(m, meta))
	}
}

// prepareTime is how long the server may take to say how a stream stands and to make a
// consumer: in a cluster nobody answers until the stream has a leader again.
const prepareTime = 2 * time.Second

// prepare makes the consumer of a stream that begin configures.
func (c *Conn) prepare(ctx context.Context, stream string, begin func(*jetstream.StreamInfo) jetstream.ConsumerConfig) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, prepareTime)
	defer cancel()
	s, err := c.stream(ctx, stream)
	if err != nil {
		return nil, err
	}
	return c.consumer(ctx, s, begin(s.CachedInfo()))
}

// stream asks how a stream stands.
func (c *Conn) stream(ctx context.Context, name string) (s jetstream.Stream, err error) {
	ctx, done := c.denials.asking(ctx, "$JS.API.STREAM.INFO."+name)
	defer done(&err)
	return c.JS.Stream(ctx, name)
}

// consumer creates a consumer of a stream.
func (c *Conn) consumer(ctx context.Context, s jetstream.Stream, cfg jetstream.ConsumerConfig) (cons jetstream.Consumer, err error) {
	ctx, done := c.denials.asking(ctx, "$JS.API.CONSUMER.CREATE."+s.CachedInfo().Config.Name)
	defer done(&err)
	return s.CreateConsumer(ctx, cfg)
}

// Read calls fn for each message that the stream holds now, in order, and
// returns.
func (c *Conn) Read(ctx context.Context, stream string, from FollowFrom, fn func(Msg)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	fail := func(err error) error { return fmt.Errorf("read stream %s: %w", stream, err) }
	s, err := c.stream(ctx, stream)
	if err != nil {
		return fail(err)
	}
	f := follower{conn: c, stream: stream, from: from}
	cons, err := c.consumer(ctx, s, f.begin(s.CachedInfo()))
	if err != nil {
		return fail(err)
	}
	left := cons.CachedInfo().NumPending
	it, err := pull(cons, jetstream.PullMaxBytes(pullBytes))
	if err != nil {
		return fail(err)
	}
	defer it.Stop()
	for ; left > 0; left-- {
		m, err := it.Next(jetstream.NextContext(ctx))
		if err != nil {
			return fail(err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fail(err)
		}
		if from.Before > 0 && meta.Sequence.Stream >= from.Before {
			break
		}
		fn(message(m, meta))
	}
	return nil
}

// Work calls fn for each message of a stream that the durable consumer of this
// name has not finished yet, one at a time, and acknowledges it when fn
// returned nil; otherwise it comes again after a pause. Several processes that
// use the same name share the work. beat, where given, is called each time it goes round: at least
// every few seconds, unless fn takes longer.
func (c *Conn) Work(ctx context.Context, stream, durable, filter string, fn func(context.Context, Msg) error, beat ...func()) error {
	var throttle daemon.Throttle
	for ctx.Err() == nil {
		for _, b := range beat {
			b()
		}
		err := c.work(ctx, stream, durable, filter, fn, beat)
		if ctx.Err() != nil {
			return nil
		}
		throttle.Warn(c.log, "cannot read a stream, retrying", "stream", stream, "consumer", durable, "error", err)
		daemon.Sleep(ctx, retryRead)
	}
	return nil
}

// Enlist creates the durable consumer that [Conn.Work] reads by, where it does
// not exist: from its return on no message is missed. It keeps trying until ctx
// ends, and returns nothing but the error of ctx.
func (c *Conn) Enlist(ctx context.Context, stream, durable, filter string) error {
	var throttle daemon.Throttle
	for {
		_, err := c.worker(ctx, stream, durable, filter)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil && c.NC.IsConnected() { // that it is not is said elsewhere
			throttle.Warn(c.log, "cannot read a stream, retrying", "stream", stream, "consumer", durable, "error", err)
		}
		if !daemon.Sleep(ctx, retryRead) {
			return ctx.Err()
		}
	}
}

func (c *Conn) worker(ctx context.Context, stream, durable, filter string) (jetstream.Consumer, error) {
	cons, err := c.JS.CreateOrUpdateConsumer(ctx, stream, jetstream.ConsumerConfig{
		Durable: durable, FilterSubject: filter, AckPolicy: jetstream.AckExplicitPolicy,
		// What happened before the first start is history, nothing to act upon.
		DeliverPolicy: jetstream.DeliverNewPolicy,
		// What a worker that was killed had begun goes to another while it is still worth
		// something.
		AckWait: 5 * time.Second, MaxDeliver: 5, MaxAckPending: 64,
	})
	if err != nil {
		return nil, fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
	}
	return cons, nil
}

// workRound is how long to wait for a message before going round again.
const workRound = 5 * time.Second

func (c *Conn) work(ctx context.Context, stream, durable, filter string, fn func(context.Context, Msg) error, beat []func()) error {
	cons, err := c.worker(ctx, stream, durable, filter)
	if err != nil {
		return err
	}
	// One at a time: what is fetched ahead waits here, and would be delivered to
	// another worker as well when its AckWait is over.
	it, err := pull(cons, jetstream.PullMaxMessages(1))
	if err != nil {
		return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
	}
	defer c.giveBack(it)
	for {
		for _, b := range beat {
			b()
		}
		round, cancel := context.WithTimeout(ctx, workRound)
		m, err := it.Next(jetstream.NextContext(round))
		cancel()
		if errors.Is(err, jetstream.ErrNoHeartbeat) || ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
		}
		meta, err := m.Metadata()
		if err != nil {
			return fmt.Errorf("consumer %s of %s: %w", durable, stream, err)
		}
		if err := fn(ctx, message(m, meta)); err != nil {
			err = m.NakWithDelay(time.Second)
			if err != nil {
				c.log.Debug("nak", "error", err)
			}
			continue
		}
		if err := m.Ack(); err != nil {
			c.log.Debug("ack", "error", err)
		}
	}
}

// giveBack stops a worker's iterator and returns what it had fetched ahead:
// another worker, or the next run of this one, gets it now and not only when
// AckWait is over.
func (c *Conn) giveBack(it jetstream.MessagesContext) {
	it.Drain()
	for {
		m, err := it.Next()
		if err != nil {
			break // ErrMsgIteratorClosed: that was all
		}
		if err := m.Nak(); err != nil {
			c.log.Debug("nak", "error", err)
		}
	}
	c.settle()
}

// settle waits until the server has taken what we sent so far, a subscription
// or the end of one, say. Without a connection there is nothing to wait for.
func (c *Conn) settle() {
	if !c.NC.IsConnected() {
		return
	}
	if err := c.NC.FlushTimeout(time.Second); err != nil {
		c.log.Debug("flush", "error", err)
	}
}

// Last returns the last message of each subject that matches filter, in the
// order of the stream.
func (c *Conn) Last(ctx context.Context, stream, filter string) ([]Msg, error) {
	s, err := c.stream(ctx, stream)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	info, err := s.Info(ctx, jetstream.WithSubjectFilter(filter))
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", stream, err)
	}
	var out []Msg
	for subject := range info.State.Subjects {
		m, err := s.GetLastMsgForSubject(ctx, subject)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("stream %s: %w", stream, err)
		}
		out = append(out, kept(m))
	}
	slices.SortFunc(out, func(a, b Msg) int { return cmp.Compare(a.Seq, b.Seq) })
	return out, nil
}

// kept is a message as a stream keeps it.
func kept(m *jetstream.RawStreamMsg) Msg {
	return Msg{Subject: m.Subject, Data: m.Data, Time: m.Time, Seq: m.Sequence, Seal: sealOf(m.Header.Get)}
}

// LastAlerts returns how each alert stands, which the newer of the last messages on
// its two subjects says, in the order of the stream.
func (c *Conn) LastAlerts(ctx context.Context) ([]Msg, error) {
	last, err := c.Last(ctx, StreamAlerts, events.SubjectAlerts+".>")
	newest := map[string]uint64{}
	for _, m := range last {
		newest[events.SubjectAlert(m.Subject)] = m.Seq
	}
	return slices.DeleteFunc(last, func(m Msg) bool {
		alert := events.SubjectAlert(m.Subject)
		return alert == "" || newest[alert] != m.Seq
	}), err
}

// Subscribe calls fn for each message on subject, as it is published, until
// stop is called. Messages sent while the connection is away do not come.
func (c *Conn) Subscribe(subject string, fn func(subject string, data []byte)) (stop func(), err error) {
	sub, err := c.NC.Subscribe(subject, func(m *nats.Msg) { fn(m.Subject, m.Data) })
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", subject, err)
	}
	c.settle()
	return func() {
		if err := sub.Unsubscribe(); err != nil {
			c.log.Debug("unsubscribe", "subject", subject, "error", err)
		}
	}, nil
}

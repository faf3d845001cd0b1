package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// MaxInFlight is how many messages one publisher may have un-acknowledged.
const MaxInFlight = 256

// apiMessageTooLarge is JetStream's error for a message over the stream's
// limit: sending it again cannot help.
const apiMessageTooLarge = 10054

// Result is what became of one attempt to publish. Permanent errors concern
// the message itself; after any other the same message is sent again.
type Result struct {
	Token     uint64
	Err       error
	Permanent bool
}

// Publisher publishes to one stream and reports each acknowledgement. Order is
// not kept across a reconnect.
type Publisher struct {
	js      jetstream.JetStream
	nc      *nats.Conn
	subject string
	results chan Result

	mu     sync.Mutex
	tokens map[*nats.Msg]uint64
}

// NewPublisher returns a publisher for one subject.
func (c *Conn) NewPublisher(subject string) (*Publisher, error) {
	p := &Publisher{
		nc: c.NC, subject: subject,
		// At most MaxInFlight attempts are the caller's; as many again may be
		// left from before a reconnect.
		results: make(chan Result, 4*MaxInFlight),
		tokens:  map[*nats.Msg]uint64{},
	}
	js, err := jetstream.New(c.NC,
		jetstream.WithPublishAsyncTimeout(ackTimeout),
		jetstream.WithPublishAsyncMaxPending(4*MaxInFlight),
		jetstream.WithPublishAsyncAckHandler(func(_ jetstream.JetStream, m *nats.Msg, _ *jetstream.PubAck) { p.done(m, nil) }),
		jetstream.WithPublishAsyncErrHandler(func(_ jetstream.JetStream, m *nats.Msg, err error) { p.done(m, err) }),
	)
	if err != nil {
		return nil, fmt.Errorf("open JetStream: %w", err)
	}
	p.js = js
	return p, nil
}

// Publish sends data under a message id, by which the server drops
// repetitions. data must stay as it is until its result has come. token comes
// back in the result. An error means that nothing was sent.
func (p *Publisher) Publish(token uint64, id string, data []byte) error {
	m := &nats.Msg{Subject: p.subject, Data: data, Header: nats.Header{nats.MsgIdHdr: {id}}}
	p.mu.Lock()
	p.tokens[m] = token
	p.mu.Unlock()
	// No retries inside the library: it would send our buffer again after we
	// have given it another content.
	_, err := p.js.PublishMsgAsync(m, jetstream.WithRetryAttempts(0), jetstream.WithStallWait(time.Second))
	if err != nil {
		p.mu.Lock()
		delete(p.tokens, m)
		p.mu.Unlock()
		return fmt.Errorf("publish to %s: %w", p.subject, err)
	}
	return nil
}

// Results delivers the outcome of each Publish that returned nil.
func (p *Publisher) Results() <-chan Result { return p.results }

func (p *Publisher) done(m *nats.Msg, err error) {
	p.mu.Lock()
	token, ours := p.tokens[m]
	delete(p.tokens, m)
	p.mu.Unlock()
	if !ours {
		return
	}
	r := Result{Token: token, Err: err}
	r.Permanent = permanent(err)
	p.results <- r
}

// ErrPermanent is wrapped by PublishMessage when the message itself is wrong:
// sending it again cannot help.
var ErrPermanent = errors.New("the bus will never take it")

func permanent(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && api.ErrorCode == apiMessageTooLarge
}

// PublishMessage sends one map message to a stream and waits for the
// acknowledgement. id may be empty.
func (c *Conn) PublishMessage(ctx context.Context, subject, id string, m events.Message) error {
	data, err := events.Marshal(m)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrPermanent, err)
	}
	var opts []jetstream.PublishOpt
	if id != "" {
		opts = append(opts, jetstream.WithMsgID(id))
	}
	if _, err := c.JS.Publish(ctx, subject, data, opts...); err != nil {
		if permanent(err) {
			err = fmt.Errorf("%w: %w", ErrPermanent, err)
		}
		return fmt.Errorf("publish to %s: %w", subject, err)
	}
	return nil
}

// Send publishes one map message without waiting for anybody to keep it.
func (c *Conn) Send(subject string, m events.Message) error {
	data, err := events.Marshal(m)
	if err != nil {
		return err
	}
	if err := c.NC.Publish(subject, data); err != nil {
		return fmt.Errorf("publish to %s: %w", subject, err)
	}
	return nil
}

package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// MaxInFlight is how many messages one publisher may have un-acknowledged,
	// MaxBytesInFlight how much in them: a line of 4 Mbit/s carries it within
	// AckTimeout, and one with a round trip of 250 ms still 8 MiB a second.
	MaxInFlight      = 256
	MaxBytesInFlight = 2 << 20

	// AckTimeout is how long an acknowledgement may take before the message is
	// sent again.
	AckTimeout = 5 * time.Second
)

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

// Publisher publishes to one stream. Whoever uses it collects the answers and
// keeps what has none: there is neither a goroutine, nor a timer, nor a list of
// what is in flight in here. Per message nats.go's own asynchronous publisher
// wakes two goroutines and allocates 40 times; this one wakes only the
// library's flusher, which finds nothing to do. Publish and Result are for one goroutine.
//
// An answer may never come, when a connection breaks (see Away) or a server
// forgets. Order is not kept across a reconnect.
type Publisher struct {
	nc   *nats.Conn
	sub  *nats.Subscription
	acks chan *nats.Msg
	away chan nats.Status

	msg   nats.Msg // reused, with its header
	inbox string   // subject of answers, up to the token
	reply []byte   // reused
}

// NewPublisher returns a publisher for one subject. Close it after use.
func (c *Conn) NewPublisher(subject string) (*Publisher, error) {
	inbox := c.NC.NewInbox()
	p := &Publisher{
		nc: c.NC,
		// At most MaxInFlight attempts are the caller's; as many again may be
		// left from before a reconnect.
		acks:  make(chan *nats.Msg, 4*MaxInFlight),
		inbox: inbox + ".",
		msg:   nats.Msg{Subject: subject, Header: nats.Header{nats.MsgIdHdr: {""}}},
	}
	var err error
	if p.sub, err = c.NC.ChanSubscribe(inbox+".*", p.acks); err != nil {
		return nil, fmt.Errorf("publish to %s: subscribe to answers: %w", subject, err)
	}
	p.away = c.NC.StatusChanged(nats.RECONNECTING)
	return p, nil
}

// Close forgets the answers that have not come.
func (p *Publisher) Close() {
	p.nc.RemoveStatusListener(p.away)
	_ = p.sub.Unsubscribe() // fails without a connection, where there is nothing to end
}

// Publish sends data under a message id, by which the server drops
// repetitions. token comes back in the result. An error means that the message
// has to be sent again, or with [ErrPermanent] that this cannot help.
func (p *Publisher) Publish(token uint64, id string, data []byte) error {
	return p.publish(p.msg.Subject, token, id, data)
}

func (p *Publisher) publish(subject string, token uint64, id string, data []byte) error {
	p.msg.Subject = subject
	p.reply = strconv.AppendUint(append(p.reply[:0], p.inbox...), token, 36)
	p.msg.Reply = string(p.reply)
	p.msg.Header[nats.MsgIdHdr][0] = id
	p.msg.Data = data
	err := p.nc.PublishMsg(&p.msg)
	p.msg.Data = nil
	if err == nil {
		return nil
	}
	if permanent(err) {
		err = fmt.Errorf("%w: %w", ErrPermanent, err)
	}
	return fmt.Errorf("publish to %s: %w", p.msg.Subject, err)
}

// publishAfter is publish for a message that the stream takes only if the last one on
// any of the subjects that about covers has this number, 0 where there is none.
func (p *Publisher) publishAfter(about string, last uint64, subject string, token uint64, id string, data []byte) error {
	p.msg.Header[jetstream.ExpectedLastSubjSeqSubjHeader] = []string{about}
	p.msg.Header[jetstream.ExpectedLastSubjSeqHeader] = []string{strconv.FormatUint(last, 10)}
	err := p.publish(subject, token, id, data)
	delete(p.msg.Header, jetstream.ExpectedLastSubjSeqSubjHeader)
	delete(p.msg.Header, jetstream.ExpectedLastSubjSeqHeader)
	return err
}

// apiOvertaking is JetStream's error when somebody else's message about the same is
// being stored by a cluster at this moment.
const apiOvertaking = 10164

// overtaken says whether the stream did not take a message because of one about the
// same that its publisher did not know of.
func overtaken(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && (api.ErrorCode == apiWrongLastSequence || api.ErrorCode == apiOvertaking)
}

// Acks delivers the answers, which Result reads.
func (p *Publisher) Acks() <-chan *nats.Msg { return p.acks }

// Away is signalled after the connection broke: what was in flight may have no
// answer any more.
func (p *Publisher) Away() <-chan nats.Status { return p.away }

// pubAck is JetStream's answer.
type pubAck struct {
	Stream string              `json:"stream"`
	Seq    uint64              `json:"seq"`
	Error  *jetstream.APIError `json:"error"`
}

// plainAck recognizes what nearly every answer is, at a twentieth of the cost of
// parsing it.
func plainAck(data []byte) bool {
	return bytes.HasPrefix(data, []byte(`{"stream":"`)) && !bytes.Contains(data, []byte(`"error"`))
}

// Result reads an answer. ok is false for what is none.
func (p *Publisher) Result(m *nats.Msg) (r Result, ok bool) {
	token, found := strings.CutPrefix(m.Subject, p.inbox)
	var err error
	if r.Token, err = strconv.ParseUint(token, 36, 64); err != nil || !found {
		return r, false
	}
	if plainAck(m.Data) {
		return r, true
	}
	var a pubAck
	switch err := json.Unmarshal(m.Data, &a); {
	case len(m.Data) == 0 && m.Header.Get("Status") == "503":
		r.Err = jetstream.ErrNoStreamResponse
	case err != nil || a.Error == nil && a.Stream == "":
		r.Err = jetstream.ErrInvalidJSAck
	case a.Error != nil:
		r.Err = a.Error
	}
	r.Permanent = permanent(r.Err)
	return r, true
}

// ErrPermanent is wrapped by errors of publishing when the message itself is
// wrong: sending it again cannot help.
var ErrPermanent = errors.New("the bus will never take it")

func permanent(err error) bool {
	var api *jetstream.APIError
	return errors.Is(err, nats.ErrMaxPayload) || errors.As(err, &api) && api.ErrorCode == apiMessageTooLarge
}

// PublishMessage sends one map message to a stream and waits for the
// acknowledgement. id may be empty.
func (c *Conn) PublishMessage(ctx context.Context, subject, id string, m events.Message) error {
	return c.PublishSealed(ctx, nil, subject, id, m)
}

// PublishSealed is PublishMessage, sealed by a signer.
func (c *Conn) PublishSealed(ctx context.Context, by *seal.Signer, subject, id string, m events.Message) error {
	_, err := c.publishSealed(ctx, by, subject, id, m)
	return err
}

// PublishOnce is PublishMessage, and reports whether the stream has had a message of
// this id already: if ids can be guessed, perhaps somebody else's.
func (c *Conn) PublishOnce(ctx context.Context, subject, id string, m events.Message) (again bool, err error) {
	return c.publishSealed(ctx, nil, subject, id, m)
}

func (c *Conn) publishSealed(ctx context.Context, by *seal.Signer, subject, id string, m events.Message) (again bool, err error) {
	ctx, done := c.denials.asking(ctx, subject)
	defer done(&err)
	msg, err := sealed(by, subject, m)
	if err != nil {
		return false, fmt.Errorf("%w: %w", ErrPermanent, err)
	}
	var opts []jetstream.PublishOpt
	if id != "" {
		opts = append(opts, jetstream.WithMsgID(id))
	}
	ack, err := c.JS.PublishMsg(ctx, msg, opts...)
	if err != nil {
		if permanent(err) {
			err = fmt.Errorf("%w: %w", ErrPermanent, err)
		}
		return false, fmt.Errorf("publish to %s: %w", subject, err)
	}
	return ack.Duplicate, nil
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

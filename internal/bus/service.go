package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// serviceVersion is what `nats micro ls` shows; micro demands semantic versions.
const serviceVersion = "1.0.0"

// Service is a micro service: `nats micro ls|info|stats` see it.
type Service struct {
	Name        string
	Description string
	Metadata    map[string]string
	Endpoints   []Endpoint
	Stats       func() any // shown per endpoint by `nats micro stats`; may be nil
}

// Endpoint answers requests on one subject. The handlers of one endpoint run
// one at a time.
type Endpoint struct {
	Name    string
	Subject string
	// Handle gets the request and returns the answer. An error answers with
	// code 400 when it is a RequestError, else 500.
	Handle func(Request) (events.Message, error)
}

// Request is what an endpoint was asked.
type Request struct {
	Subject string
	Data    []byte
	Seal    seal.Seal
}

// RequestError says that the request was wrong, not the one who answers.
type RequestError struct{ Err error }

func (e *RequestError) Error() string { return e.Err.Error() }
func (e *RequestError) Unwrap() error { return e.Err }

// Serve registers s until stop is called. Every instance answers: there is no
// queue group, or a flush would reach only one of two firewalls.
func (c *Conn) Serve(s Service) (stop func(), err error) {
	cfg := micro.Config{
		Name: s.Name, Version: serviceVersion, Description: s.Description, Metadata: s.Metadata,
		QueueGroupDisabled: true,
		ErrorHandler: func(_ micro.Service, e *micro.NATSError) {
			c.log.Warn("service error", "service", s.Name, "subject", e.Subject, "error", e.Description)
		},
	}
	if s.Stats != nil {
		cfg.StatsHandler = func(*micro.Endpoint) any { return s.Stats() }
	}
	svc, err := micro.AddService(c.NC, cfg)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", s.Name, err)
	}
	for _, e := range s.Endpoints {
		handler := micro.HandlerFunc(func(r micro.Request) { c.answer(r, e) })
		if err := svc.AddEndpoint(e.Name, handler, micro.WithEndpointSubject(e.Subject)); err != nil {
			return nil, errors.Join(fmt.Errorf("service %s: endpoint %s: %w", s.Name, e.Name, err), svc.Stop())
		}
	}
	c.settle()
	return func() {
		if err := svc.Stop(); err != nil {
			c.log.Debug("stop service", "service", s.Name, "error", err)
		}
	}, nil
}

// Instance is one of those that serve.
type Instance struct {
	ID       string
	Metadata map[string]string
}

// Instances asks who serves a service. Nobody knows how many there are: it waits for
// so long.
func (c *Conn) Instances(ctx context.Context, service string, wait time.Duration) ([]Instance, error) {
	subject, err := micro.ControlSubject(micro.InfoVerb, service, "")
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", service, err)
	}
	inbox := c.NC.NewInbox()
	answers, err := c.NC.SubscribeSync(inbox)
	if err != nil {
		return nil, fmt.Errorf("service %s: %w", service, err)
	}
	defer func() { _ = answers.Unsubscribe() }()
	if err := c.NC.PublishRequest(subject, inbox, nil); err != nil {
		return nil, fmt.Errorf("service %s: %w", service, err)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	var all []Instance
	for {
		m, err := answers.NextMsgWithContext(ctx)
		if err != nil {
			return all, nil //nolint:nilerr // the time is over, or nobody serves
		}
		var info micro.Info
		if json.Unmarshal(m.Data, &info) != nil || info.Name != service {
			continue // anybody may answer anything
		}
		i := Instance{ID: printable(info.ID), Metadata: map[string]string{}}
		for k, v := range info.Metadata {
			i.Metadata[k] = printable(v)
		}
		all = append(all, i)
	}
}

func (c *Conn) answer(r micro.Request, e Endpoint) {
	// A reply subject is chosen by whoever asks. Answering anywhere but in an
	// inbox would let a client publish through us where it may not itself.
	if !strings.HasPrefix(r.Reply(), "_INBOX.") {
		c.throttle.Warn(c.log, "request refused: its reply subject is no inbox", "subject", r.Subject())
		return
	}
	m, err := e.Handle(Request{r.Subject(), r.Data(), sealOf(r.Headers().Get)})
	var data []byte
	if err == nil {
		data, err = events.Marshal(m)
	}
	if most := c.NC.MaxPayload(); err == nil && int64(len(data)) > most {
		err = fmt.Errorf("the answer has %d bytes, more than the %d that the server passes on: ask for less", len(data), most)
	}
	var wrong *RequestError
	switch {
	case errors.As(err, &wrong):
		err = r.Error("400", err.Error(), nil)
	case err != nil:
		err = r.Error("500", err.Error(), nil)
	default:
		err = r.Respond(data)
	}
	if err != nil {
		c.throttle.Warn(c.log, "cannot answer", "subject", r.Subject(), "error", err)
	}
}

// sealOf reads a seal from a message's headers.
func sealOf(header func(string) string) seal.Seal {
	return seal.Seal{Key: header(seal.HeaderKey), Signature: header(seal.HeaderSignature)}
}

// sealed makes a message that a signer seals, if there is one.
func sealed(by *seal.Signer, subject string, m events.Message) (*nats.Msg, error) {
	data, err := events.Marshal(m)
	if err != nil {
		return nil, err
	}
	out := &nats.Msg{Subject: subject, Data: data}
	s, err := by.Sign(subject, data)
	if err != nil {
		return nil, err
	}
	if s != (seal.Seal{}) {
		out.Header = nats.Header{seal.HeaderKey: {s.Key}, seal.HeaderSignature: {s.Signature}}
	}
	return out, nil
}

var (
	// ErrNobody is returned when nobody answers on a subject.
	ErrNobody = errors.New("nobody answers")
	// ErrNoAnswer is returned when somebody was asked and the answer did not come
	// in time: what was asked for may have been done.
	ErrNoAnswer = errors.New("no answer in time")
)

// Request asks and decodes the answer. What the service refused is returned as
// its own words.
func (c *Conn) Request(ctx context.Context, subject string, ask, answer events.Message) error {
	return c.Command(ctx, nil, subject, ask, answer)
}

// Command is Request, sealed by a signer.
func (c *Conn) Command(ctx context.Context, by *seal.Signer, subject string, ask, answer events.Message) (err error) {
	ctx, denied := c.denials.asking(ctx, subject)
	defer denied(&err)
	msg, err := sealed(by, subject, ask)
	if err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
	}
	m, err := c.NC.RequestMsgWithContext(ctx, msg)
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return fmt.Errorf("%s: %w", subject, ErrNobody)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", subject, ErrNoAnswer)
	case err != nil:
		return fmt.Errorf("%s: %w", subject, err)
	}
	if text := m.Header.Get(micro.ErrorHeader); text != "" {
		err := errors.New(printable(text))
		if m.Header.Get(micro.ErrorCodeHeader) == "400" {
			return &RequestError{err}
		}
		return err
	}
	return events.Unmarshal(m.Data, answer)
}

// maxErrorText is how much of a refusal is shown.
const maxErrorText = 1024

// printable makes a text from the bus safe to show: control characters never
// reach a terminal or a log.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Cf, r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > maxErrorText {
		s = strings.ToValidUTF8(s[:maxErrorText], "") + "…"
	}
	return s
}

package bus

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/micro"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// echo is a service that answers an alerts query with the name it was given.
func echo(t *testing.T, c *Conn, name string, handled *atomic.Int64) {
	t.Helper()
	stop, err := c.Serve(Service{
		Name: "test", Metadata: map[string]string{"firewall": name},
		Stats: func() any { return map[string]string{"of": name} },
		Endpoints: []Endpoint{{Name: "ask", Subject: "ct.v1.query.ask", Handle: func(r Request) (events.Message, error) {
			data := r.Data
			if handled != nil {
				handled.Add(1)
			}
			var q events.ResyncReply
			if err := events.Unmarshal(data, &q); err != nil {
				return nil, &RequestError{err}
			}
			switch q.Reason {
			case "wrong":
				return nil, &RequestError{errors.New("that is wrong\x1b[31m\nindeed")}
			case "broken":
				return nil, errors.New("that is broken")
			case "large":
				return &events.ResyncReply{Reason: strings.Repeat("x", 2<<20)}, nil
			case "slow":
				time.Sleep(300 * time.Millisecond)
			}
			return &events.ResyncReply{Firewall: name, Accepted: true}, nil
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

func ask(ctx context.Context, c *Conn, reason string) (*events.ResyncReply, error) {
	var answer events.ResyncReply
	return &answer, c.Request(ctx, "ct.v1.query.ask", &events.ResyncReply{Firewall: "asker", Reason: reason}, &answer)
}

func TestRequest(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	c, asker := connect(t, Config{Server: s}), connect(t, Config{Server: s})
	if _, err := ask(t.Context(), asker, ""); !errors.Is(err, ErrNobody) || !strings.Contains(err.Error(), "ct.v1.query.ask") {
		t.Errorf("nobody is there: %v", err)
	}
	echo(t, c, "fw-a", nil)
	if got, err := ask(t.Context(), asker, ""); err != nil || got.Firewall != "fw-a" {
		t.Errorf("answer %+v, %v", got, err)
	}
	var wrong *RequestError
	if _, err := ask(t.Context(), asker, "wrong"); !errors.As(err, &wrong) || !strings.Contains(err.Error(), "that is wrong") || strings.ContainsAny(err.Error(), "\x1b\n") {
		t.Errorf("a wrong request: %#v", err)
	}
	if _, err := ask(t.Context(), asker, "broken"); err == nil || errors.As(err, &wrong) || err.Error() != "that is broken" {
		t.Errorf("a broken service: %#v", err)
	}
	if _, err := ask(t.Context(), asker, "large"); err == nil || !strings.Contains(err.Error(), "ask for less") {
		t.Errorf("an answer that is too large: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := ask(short, asker, "slow"); err == nil || !strings.Contains(err.Error(), "no answer in time") {
		t.Errorf("a slow service: %v", err)
	}
	// Foreign bytes are the asker's fault.
	m, err := asker.NC.Request("ct.v1.query.ask", []byte("\xff\x00 no msgpack"), 5*time.Second)
	if err != nil || m.Header.Get(micro.ErrorCodeHeader) != "400" {
		t.Errorf("foreign bytes: %v, %v", m, err)
	}
}

// TestEachInstanceAnswers: a flush must reach every firewall, not one of a queue
// group.
func TestEachInstanceAnswers(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	var handled atomic.Int64
	for _, name := range []string{"fw-a", "fw-b"} {
		echo(t, connect(t, Config{Server: s, Name: name}), name, &handled)
	}
	asker := connect(t, Config{Server: s})
	if _, err := ask(t.Context(), asker, ""); err != nil {
		t.Fatal(err)
	}
	until(t, "both to handle it", func() bool { return handled.Load() == 2 })
	// The fleet shows in `nats micro ls`.
	found := map[string]bool{}
	inbox := asker.NC.NewRespInbox()
	sub, err := asker.NC.SubscribeSync(inbox)
	if err != nil {
		t.Fatal(err)
	}
	if err := asker.NC.PublishRequest("$SRV.PING.test", inbox, nil); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		m, err := sub.NextMsg(5 * time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"fw-a", "fw-b"} {
			if strings.Contains(string(m.Data), name) {
				found[name] = true
			}
		}
	}
	if len(found) != 2 {
		t.Errorf("the service's instances are %v", found)
	}
}

// TestReplyMustBeAnInbox: whoever may ask must not make us publish where only we
// may.
func TestReplyMustBeAnInbox(t *testing.T) {
	s := startServer(t, embedded.Config{Dir: t.TempDir()})
	var handled atomic.Int64
	echo(t, connect(t, Config{Server: s}), "fw-a", &handled)
	asker := connect(t, Config{Server: s})
	data, err := events.Marshal(&events.ResyncReply{Firewall: "asker"})
	if err != nil {
		t.Fatal(err)
	}
	for _, reply := range []string{events.CommandSubject("fw-b", events.VerbFlush), "_INBOX", "_INBOXES.x", "x._INBOX.y", ""} {
		sub := &nats.Subscription{}
		if reply != "" {
			if sub, err = asker.NC.SubscribeSync(reply); err != nil {
				t.Fatal(err)
			}
		}
		if err := asker.NC.PublishMsg(&nats.Msg{Subject: "ct.v1.query.ask", Reply: reply, Data: data}); err != nil {
			t.Fatal(err)
		}
		// A request that is answered, behind it: the handlers run in order.
		if _, err := ask(t.Context(), asker, ""); err != nil {
			t.Fatal(err)
		}
		if reply != "" {
			if n, _, err := sub.Pending(); err != nil || n != 0 {
				t.Errorf("%d answers went to %s (%v)", n, reply, err)
			}
		}
	}
	if n := handled.Load(); n != 5 {
		t.Errorf("%d requests were handled, want the 5 that came from an inbox", n)
	}
}

func TestPrintable(t *testing.T) {
	f := func(in, want string) {
		t.Helper()
		if got := printable(in); got != want {
			t.Errorf("printable(%q) = %q, want %q", in, got, want)
		}
	}
	f("plain – text", "plain – text")
	f("a\x1b[2Jb\x00\r\n\u202ec\u009b", "a [2Jb    c ")
	f("\xff\xfe", "?")
	long := strings.Repeat("ä", maxErrorText)
	f(long, long[:maxErrorText]+"…")
}

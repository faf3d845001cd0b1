package aggregator

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// busRig is a real NATS server and a real aggregator, with a test in the place of the
// producers.
type busRig struct {
	t      *testing.T
	server *embedded.Server
	conn   *bus.Conn
	log    *slog.Logger
	reg    *prometheus.Registry
	rules  string // the rules file
	stop   func()

	*Aggregator
}

func newBusRig(t *testing.T, rules string) *busRig {
	t.Helper()
	r := &busRig{t: t, log: slog.New(slog.NewTextHandler(testLog{t}, nil)), rules: filepath.Join(t.TempDir(), "rules.yaml")}
	var err error
	if r.server, err = embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.server.Close)
	if r.conn, err = bus.Connect(bus.Config{Server: r.server, Role: "test"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.conn.Close)
	r.write(rules)
	r.start()
	return r
}

func (r *busRig) write(rules string) {
	r.t.Helper()
	if err := os.WriteFile(r.rules, []byte(rules), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// start starts an aggregator.
func (r *busRig) start() {
	r.t.Helper()
	opt := Options{Rules: r.rules, MaxKeys: 1 << 16}
	file, err := opt.Load()
	if err != nil {
		r.t.Fatal(err)
	}
	r.reg = prometheus.NewRegistry()
	r.Aggregator, err = New(opt, file, Dependencies{Bus: bus.Config{Server: r.server}, Limits: bus.Limits{EventsAge: 15 * time.Minute, EventsBytes: 64 << 20, Memory: true}, Log: r.log, Registry: r.reg})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := r.Run(ctx); err != nil && !errors.Is(err, context.Canceled) {
			r.t.Error(err)
		}
	}()
	r.stop = sync.OnceFunc(func() { cancel(); <-done })
	r.t.Cleanup(r.stop)
	r.until("the aggregator is ready", func() bool { return r.Ready() == nil })
}

func (r *busRig) until(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited in vain until %s", what)
		}
	}
}

// publish puts a message into the stream of its subject.
func (r *busRig) publish(subject string, data []byte) {
	r.t.Helper()
	if _, err := r.conn.JS.PublishMsg(r.t.Context(), &nats.Msg{Subject: subject, Data: data}); err != nil {
		r.t.Fatalf("%s: %v", subject, err)
	}
}

// open publishes n new flows of 192.0.2.1 to a port, through fw-a.
func (r *busRig) open(seq *uint64, n int, port uint16) {
	r.t.Helper()
	*seq++
	var w events.BatchWriter
	for range n {
		e := events.Event{Type: events.New, Time: int64(*seq) * 1e6, Proto: 6, Orig: events.Tuple{Src: events.Addr{Lo: 0xc0000201}, Dst: events.Addr{Lo: 0xc6336401}, DstPort: port}}
		if err := w.Append(&e); err != nil {
			r.t.Fatal(err)
		}
	}
	data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: "default", Boot: events.Boot{1}, Seq: *seq, Sent: int64(*seq) * 1e6, Clean: true})
	if err != nil {
		r.t.Fatal(err)
	}
	r.publish(events.EventsSubject("fw-a"), data)
}

// counted returns how many events of a firewall were counted.
func (r *busRig) counted(name string) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	acc, _ := r.counter.Account(name)
	return acc.Events
}

// firingRules are the rules of the alerts that fire, in order.
func (r *busRig) firingRules() (names []string) {
	r.t.Helper()
	reply, err := r.Alerts(r.t.Context(), &events.AlertsQuery{})
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range reply.Alerts {
		names = append(names, reply.Alerts[i].Rule)
	}
	slices.Sort(names)
	return names
}

// acts reads the acts that stand in the audit.
func (r *busRig) acts() (list []audit.Entry) {
	r.t.Helper()
	err := r.conn.Read(r.t.Context(), bus.StreamAudit, bus.FollowFrom{All: true}, func(m bus.Msg) {
		e, err := audit.Read(&m, everybody)
		if err != nil {
			r.t.Errorf("%s: %v", m.Subject, err)
		}
		list = append(list, e)
	})
	if err != nil {
		r.t.Fatal(err)
	}
	return list
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Log(string(p[:len(p)-1]))
	return len(p), nil
}

package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// keptEvents is how many alerts and entries of the audit are kept for a reader
	// that comes again.
	keptEvents = 4096
	// maxReaders is how many may read the stream at a time.
	maxReaders = 64
	// maxQueue is how many events may wait for a reader.
	maxQueue = 1024
	// writeFor is how long a reader may take for what is written to it at once.
	writeFor = 10 * time.Second
	// heartbeat is how often something is sent, for proxies that cut what is silent;
	// while there is a fleet its ticks come more often.
	heartbeat = 15 * time.Second
	// tickEvery is how often the fleet's state is told.
	tickEvery = time.Second
)

// Stream tells readers what happens as it happens, as server-sent events. Who does
// not keep up is sent away: nobody waits for a reader, neither the source nor another
// reader.
//
// The id of an event names the run of the program and the number of the event. Alerts
// and entries of the audit are numbered and kept; a tick of the fleet has the id of
// the last that was, so that a reader of ticks alone resumes where it was, too.
type Stream struct {
	src  Source
	run  string
	beat time.Duration

	mu      sync.Mutex
	ended   bool
	last    uint64 // number of the newest event; the first has 1
	kept    [keptEvents][]byte
	readers map[*reader]struct{}

	count         prometheus.GaugeFunc
	slow, refused prometheus.Counter
}

// A reader is one request for the stream.
type reader struct {
	queue chan []byte
	gone  chan struct{} // closed when it is sent away
}

func newStream(src Source, reg *prometheus.Registry) *Stream {
	var run [6]byte
	_, _ = rand.Read(run[:]) // never fails
	s := &Stream{src: src, run: hex.EncodeToString(run[:]), beat: heartbeat, readers: map[*reader]struct{}{}}
	s.count = prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ctfleet_http_stream_readers", Help: "Readers of /api/v1/stream."}, func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(len(s.readers))
	})
	s.slow = prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_http_stream_slow_readers_total", Help: "Readers of /api/v1/stream that were sent away since they did not keep up."})
	s.refused = prometheus.NewCounter(prometheus.CounterOpts{Name: "ctfleet_http_stream_refused_readers_total", Help: "Readers of /api/v1/stream that were refused since there were too many."})
	if reg != nil {
		reg.MustRegister(s.count, s.slow, s.refused)
	}
	return s
}

// Run feeds the readers until ctx ends, and then sends them away.
func (s *Stream) Run(ctx context.Context) error {
	defer s.end()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		return s.src.Watch(ctx, func(al *events.Alert) { s.put("alert", al) }, func(e *audit.Entry) {
			switch {
			case e.Decision != nil:
				s.put("decision", e)
			case e.Receipt != nil:
				s.put("receipt", e)
			default:
				s.put("act", e)
			}
		})
	})
	g.Go(func() error {
		for daemon.Sleep(ctx, tickEvery) {
			if s.idle() {
				continue
			}
			data := s.fleet()
			s.mu.Lock()
			s.send(event(s.id(s.last), "fleet", data))
			s.mu.Unlock()
		}
		return nil
	})
	return g.Wait()
}

func (s *Stream) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.readers) == 0
}

func (s *Stream) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for r := range s.readers {
		s.dismiss(r)
	}
}

// put numbers an event, keeps it and sends it.
func (s *Stream) put(kind string, v any) {
	data, err := json.Marshal(v)
	if err != nil {
		return // numbers were checked when the message was read
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	e := event(s.id(s.last), kind, data)
	s.kept[s.last%keptEvents] = e
	s.send(e)
}

// send queues an event for each reader. The lock is held.
func (s *Stream) send(e []byte) {
	for r := range s.readers {
		select {
		case r.queue <- e:
		default:
			s.slow.Inc()
			s.dismiss(r)
		}
	}
}

// dismiss sends a reader away. The lock is held.
func (s *Stream) dismiss(r *reader) {
	delete(s.readers, r)
	close(r.gone)
}

func (s *Stream) id(n uint64) string { return s.run + "-" + strconv.FormatUint(n, 10) }

// event is as it goes over the line. JSON has no line ends outside its texts, and
// escapes those within.
func event(id, kind string, data []byte) []byte {
	return fmt.Appendf(nil, "id: %s\nevent: %s\ndata: %s\n\n", id, kind, data)
}

// join adds a reader that has read up to an id; empty: one that is new. It returns
// what the reader has missed, and the id of the last of it.
func (s *Stream) join(after string) (r *reader, missed [][]byte, id string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil, nil, "", errStopping
	}
	if len(s.readers) >= maxReaders {
		s.refused.Inc()
		return nil, nil, "", errFull
	}
	id = s.id(s.last)
	if after != "" {
		if n, why := s.resume(after); why != "" {
			data, _ := json.Marshal(map[string]string{"reason": why}) // never fails
			missed = append(missed, event(id, "gap", data))
		} else {
			for n++; n <= s.last; n++ {
				missed = append(missed, s.kept[n%keptEvents])
			}
		}
	}
	r = &reader{queue: make(chan []byte, maxQueue), gone: make(chan struct{})}
	s.readers[r] = struct{}{}
	return r, missed, id, nil
}

// resume finds the number that an id stands for, or says why what came after it is
// not known.
func (s *Stream) resume(id string) (n uint64, why string) {
	run, number, _ := strings.Cut(id, "-")
	n, err := strconv.ParseUint(number, 10, 64)
	switch {
	case err != nil || run == s.run && n > s.last:
		return 0, "this is no id of this stream"
	case run != s.run:
		return 0, "the aggregator was started anew, or this is another one"
	case s.last-n > keptEvents:
		return 0, fmt.Sprintf("%d events came since, of which the last %d are kept", s.last-n, keptEvents)
	}
	return n, ""
}

func (s *Stream) leave(r *reader) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.readers[r]; ok {
		s.dismiss(r)
	}
}

var (
	errStopping = daemon.Unavailable(errors.New("this aggregator is not running"))
	errFull     = daemon.Unavailable(errors.New("too many read the stream already"))
)

// ServeHTTP serves one reader.
func (s *Stream) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if err := parse(req); err != nil {
		fail(w, err)
		return
	}
	r, missed, id, err := s.join(req.Header.Get("Last-Event-ID"))
	if err != nil {
		w.Header().Set("Retry-After", "10")
		fail(w, err)
		return
	}
	defer s.leave(r)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Accel-Buffering", "no") // nginx would gather them
	if req.Method == http.MethodHead {
		return
	}
	out := http.NewResponseController(w)
	write := func(parts ...[]byte) bool {
		// A writer that knows no deadline is none that can be slow.
		_ = out.SetWriteDeadline(time.Now().Add(writeFor))
		for _, p := range parts {
			if _, err := w.Write(p); err != nil {
				return false
			}
		}
		return out.Flush() == nil
	}
	// Who comes shall see the fleet at once.
	if !write([]byte("retry: 2000\n\n")) || !write(missed...) || !write(event(id, "fleet", s.fleet())) {
		return
	}
	beat := time.NewTicker(s.beat)
	defer beat.Stop()
	for ok := true; ok; {
		select {
		case <-req.Context().Done():
			return
		case <-r.gone:
			return
		case e := <-r.queue:
			ok = write(e)
		case <-beat.C:
			ok = write([]byte(":\n\n"))
		}
	}
}

// fleet is the state of all firewalls in short, with the keys of the inventory.
func (s *Stream) fleet() []byte {
	type brief struct {
		Firewall    string             `json:"firewall"`
		Realm       string             `json:"realm"`
		Source      string             `json:"source,omitempty"`
		State       string             `json:"state"`
		AgeMS       int64              `json:"age_ms"`
		Table       events.TableHealth `json:"table"`
		EventsPerS  float64            `json:"events_per_s"`
		NewPerS     float64            `json:"new_per_s"`
		Lost        uint64             `json:"lost"`
		Missing     uint64             `json:"missing"`
		ActiveKnown bool               `json:"active_known"`
		Active      uint64             `json:"active"`
		Approximate bool               `json:"approximate,omitempty"`
		Rivals      bool               `json:"rivals,omitempty"`
		MutedUntil  int64              `json:"muted_until,omitempty"`
	}
	all := s.src.Firewalls().Firewalls
	out := struct {
		Time      int64   `json:"time"` // Unix ms
		Firewalls []brief `json:"firewalls"`
	}{time.Now().UnixMilli(), make([]brief, len(all))}
	for i := range all {
		f := &all[i]
		out.Firewalls[i] = brief{f.Firewall, f.Realm, f.Source, f.State, f.AgeMS, f.Table, f.EventsPerS, f.NewPerS, f.Lost, f.Missing, f.ActiveKnown, f.Active, f.Approximate, f.Rivals, f.MutedUntil}
	}
	data, err := json.Marshal(out)
	if err != nil {
		return []byte("{}") // numbers were checked when the messages were read
	}
	return data
}

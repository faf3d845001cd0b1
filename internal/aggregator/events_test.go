package aggregator

import (
	"fmt"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/observe"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestEvents: the latest events are found, from as far back as it takes, each once,
// and an answer that a bound has cut short says so.
func TestEvents(t *testing.T) {
	t.Parallel()
	a := newArchive(t)
	agg, _, _ := a.aggregator("")
	ask := func(q observe.Question) (*observe.List, string) {
		t.Helper()
		if err := q.Compile(); err != nil {
			t.Fatal(err)
		}
		list, err := agg.Events(t.Context(), &q)
		if err != nil {
			t.Fatal(err)
		}
		from := map[string]int{}
		for i, e := range list.Events {
			from[e.Firewall+" "+e.Src]++
			if i > 0 && e.Time < list.Events[i-1].Time {
				t.Errorf("event %d is of before event %d", i, i-1)
			}
		}
		return list, fmt.Sprint(from)
	}
	begin := time.Now()
	a.flows("fw-a", "198.18.0.7", 40)
	a.flows("fw-b", "198.18.0.7", 20)
	time.Sleep(firstSpan + 100*time.Millisecond) // a first span from now on does not reach back to these
	later := time.Now()
	a.flows("fw-b", "2001:db8::7", 10)
	a.seq["fw-b"]-- // it comes again
	a.seq["fw-b total"] -= 10
	a.flows("fw-b", "2001:db8::7", 10)

	f := func(q observe.Question, want string, more bool) {
		t.Helper()
		list, got := ask(q)
		if got != want || list.More != more {
			t.Errorf("%+v: %s more %v, want %s more %v", q, got, list.More, want, more)
		}
		if since := time.UnixMilli(list.Since); !more && time.Since(since).Round(10*time.Second) != eventsFor {
			t.Errorf("%+v: looked back to %s", q, since)
		}
	}
	f(observe.Question{Limit: 100}, "map[fw-a 198.18.0.7:40 fw-b 198.18.0.7:20 fw-b 2001:db8::7:10]", false)
	f(observe.Question{Limit: 45}, "map[fw-a 198.18.0.7:15 fw-b 198.18.0.7:20 fw-b 2001:db8::7:10]", true)
	f(observe.Question{Limit: 100, Firewalls: []string{"fw-a"}}, "map[fw-a 198.18.0.7:40]", false)
	f(observe.Question{Limit: 100, Firewalls: []string{"fw-a", "fw-c"}}, "map[fw-a 198.18.0.7:40]", false)
	f(observe.Question{Limit: 100, Firewalls: []string{"fw-c"}}, "map[]", false)
	f(observe.Question{Limit: 100, Filter: observe.Filter{FromIP: []string{"2001:db8::/32"}, Port: []uint16{443}}}, "map[fw-b 2001:db8::7:10]", false)
	f(observe.Question{Limit: 100, Filter: observe.Filter{ToIP: []string{"203.0.113.0/24"}, Not: true}}, "map[fw-b 2001:db8::7:10]", false)
	list, _ := ask(observe.Question{Limit: 1})
	if e := list.Events[0]; e.Type != "NEW" || e.Realm != "default" || e.Dst != "2001:db8::4" || e.DstPort != 443 || e.Time < begin.UnixMilli() {
		t.Errorf("%+v", e)
	}
	if list, got := ask(observe.Question{Limit: 100, Since: later.UnixMilli()}); got != "map[fw-b 2001:db8::7:10]" || list.More {
		t.Errorf("of the second half: %s, more %v", got, list.More)
	}

	// More than is read for a question, within its first span.
	var w events.BatchWriter
	for i := range events.MaxBatchEvents {
		if err := w.Append(&events.Event{Time: 1e15, Type: events.New, Proto: 6, ID: uint32(i + 1), Status: events.StatusConfirmed}); err != nil {
			t.Fatal(err)
		}
	}
	data, err := w.Encode(&events.Header{Firewall: "fw-z", Realm: "default", Seq: 1, Epoch: 1, Sent: 1e15, Clean: true})
	if err != nil {
		t.Fatal(err)
	}
	for range eventBytes/len(data) + 1 {
		if _, err := a.conn.JS.PublishAsync(events.EventsSubject("fw-z"), data); err != nil {
			t.Fatal(err)
		}
	}
	<-a.conn.JS.PublishAsyncComplete()
	list, got := ask(observe.Question{Limit: 100, Filter: observe.Filter{IP: []string{"198.18.0.7"}}})
	if got != "map[]" || !list.More || list.Since < begin.UnixMilli() {
		t.Errorf("behind too much: %s, more %v since %d", got, list.More, list.Since)
	}
	f(observe.Question{Limit: 100, Firewalls: []string{"fw-a"}}, "map[fw-a 198.18.0.7:40]", false)
}

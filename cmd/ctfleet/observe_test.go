package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// playCaptured publishes a table and events that the conntrack tool once printed.
func playCaptured(t *testing.T, c call, names ...string) {
	t.Helper()
	for _, file := range []string{"listing.xml", "events.xml"} {
		text, err := os.ReadFile("../../internal/conntrack/testdata/xml/" + file)
		if err != nil {
			t.Fatal(err)
		}
		c.stdin = append(c.stdin, text...)
	}
	for _, name := range names {
		if r := c.run(t, "producer", "--source", "xml", "--input", "-", "--name", name); r.code != 0 {
			t.Fatalf("%+v", r)
		}
	}
}

// send publishes a batch of so many events as a producer would.
func send(t *testing.T, conn *bus.Conn, h events.Header, n int) {
	t.Helper()
	var w events.BatchWriter
	for i := range n {
		e := events.Event{Type: events.New, Proto: 17, ID: uint32(i), Status: events.StatusConfirmed, Time: int64(time.Hour)}
		e.Orig = events.Tuple{Src: events.Addr{Lo: 0xc6120001}, Dst: events.Addr{Lo: 0xcb007107}, SrcPort: uint16(1024 + i), DstPort: 53}
		if err := w.Append(&e); err != nil {
			t.Fatal(err)
		}
	}
	h.Realm = events.RealmDefault
	data, err := w.Encode(&h)
	if err != nil {
		t.Fatal(err)
	}
	events.Stamp{Sent: int64(time.Hour), Clean: true, Seq: h.Seq, Total: h.Total, Lost: h.Lost}.Apply(data)
	pub, err := conn.NewPublisher(events.EventsSubject(h.Firewall))
	if err != nil {
		t.Fatal(err)
	}
	defer pub.Close()
	if err := pub.Publish(1, fmt.Sprintf("%s:%s:%d", h.Firewall, h.Boot, h.Seq), data); err != nil {
		t.Fatal(err)
	}
	for {
		if r, ok := pub.Result(<-pub.Acks()); ok {
			if r.Err != nil {
				t.Fatal(r.Err)
			}
			return
		}
	}
}

var (
	clockTime = regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d\.\d{3}`)
	jsonTime  = regexp.MustCompile(`"time":\d+`)
)

// TestObservePast holds what is printed of events, and which ones filters let through.
func TestObservePast(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	playCaptured(t, c, "fw-a", "fw-b")
	observe := func(args ...string) string {
		t.Helper()
		r := c.run(t, "ctfleet", append([]string{"observe"}, args...)...)
		if r.code != 0 || r.stderr != "" {
			t.Errorf("observe %v: exit code %d, %s", args, r.code, r.stderr)
		}
		return r.stdout
	}
	golden(t, "observe.txt", clockTime.ReplaceAllString(observe("--since", "1h", "--firewall", "fw-a"), "15:04:05.000"))
	golden(t, "observe.json", jsonTime.ReplaceAllString(observe("--since", "1h", "--firewall", "fw-b", "-o", "json", "--port", "8080"), `"time":0`))

	f := func(want int, args ...string) {
		t.Helper()
		if got := strings.Count(observe(append(args, "--since", "1h")...), "\n"); got != want {
			t.Errorf("observe %v: %d lines, want %d", args, got, want)
		}
	}
	f(2*(23+12), "--type", "new", "--type", "destroy", "--type", "existing", "--firewall", "fw-a", "--firewall", "fw-b", "--not", "--ip", "203.0.113.9")
	f(2*11, "--type", "new")
	f(2*11, "--type", "destroy")
	f(2*(12+1), "--type", "existing") // the listing's rows, which are held already, and the inserted one
	f(2*4, "--ip", "2001:db8::/32")
	f(2*2, "--to-ip", "192.0.2.3")
	f(2*2, "--from-ip", "192.0.2.0/24", "--port", "8080")
	f(0, "--from-ip", "192.0.2.2")
	f(2*2, "--protocol", "icmp")
	f(2*2, "--protocol", "99")
	f(2*21, "--not", "--protocol", "icmp")
	f(0, "--ip", "198.18.0.1")

	send(t, conn, events.Header{Firewall: "fw-c", Boot: events.Boot{1}, Seq: 1}, 5)
	for n, want := range map[string]int{"3": 3, "5": 5, "40": 40, "1000": 2*23 + 5} {
		out := observe("--last", n)
		if got := strings.Count(out, "\n"); got != want || strings.Count(out, "fw-c") != min(want, 5) {
			t.Errorf("--last %s: %d lines\n%s", n, got, out)
		}
	}
	// Sent an hour after the firewall's clock began, and just now.
	var e struct{ Time int64 }
	if err := json.Unmarshal([]byte(observe("--last", "1", "-o", "json")), &e); err != nil || time.Since(time.UnixMilli(e.Time)).Abs() > time.Minute {
		t.Errorf("it happened at %v, %v", time.UnixMilli(e.Time), err)
	}
	for _, bad := range [][]string{
		{"--last", "1", "--since", "1s"}, {"--follow"}, {"--not"}, {"--ip", "x"}, {"--protocol", "x"}, {"--type", "update"}, {"--since", "-1s"}, {"--firewall", "fleet"},
		{"-o", "raw", "--last", "1"}, {"-o", "raw", "--ip", "192.0.2.1"}, {"--last", "1000000"},
	} {
		if r := c.run(t, "ctfleet", append([]string{"observe"}, bad...)...); r.code != 2 {
			t.Errorf("%v: exit code %d, want 2: %s", bad, r.code, r.stderr)
		}
	}
}

// TestObserveLive: what comes is printed at once, what is missing is said, a message
// that comes again is not shown again, and Ctrl-C is a good end.
func TestObserveLive(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	p := c.start(t, "ctfleet", "observe")
	until(t, "its consumer", func() bool { // what comes before is not shown
		send(t, conn, events.Header{Firewall: "fw-z", Boot: events.Boot{byte(time.Now().UnixNano()), byte(time.Now().UnixMicro())}, Seq: 1}, 1)
		return strings.Contains(p.stdout.String(), "fw-z")
	})
	boot := events.Boot{1}
	send(t, conn, events.Header{Firewall: "fw-a", Boot: boot, Seq: 1, Total: 100}, 10)
	send(t, conn, events.Header{Firewall: "fw-a", Boot: boot, Seq: 3, Total: 117, Lost: 4}, 10)
	send(t, conn, events.Header{Firewall: "fw-b", Boot: boot, Seq: 1, Lost: 9}, 1)
	p.until("all lines", func() bool {
		return strings.Count(p.stdout.String(), "fw-a") == 20 && strings.Count(p.stdout.String(), "fw-b") == 1
	})
	for _, want := range []string{"fw-a: 7 events are missing\n", "fw-a: 4 events were lost before they reached the bus\n"} {
		if !strings.Contains(p.stderr.String(), want) {
			t.Errorf("it does not say %q: %s", want, p.stderr.String())
		}
	}
	if strings.Contains(p.stderr.String(), "fw-b") {
		t.Errorf("what was lost before is none of this: %s", p.stderr.String())
	}
	p.stop()
}

// TestObserveRaw: a recording is what was on the bus, byte by byte and in its order,
// also of what came while it was made.
func TestObserveRaw(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	playCaptured(t, c, "fw-a", "fw-b")
	p := c.start(t, "ctfleet", "observe", "-o", "raw", "--since", "1h", "--follow")
	p.until("the past", func() bool { return p.stdout.String() != "" })
	send(t, conn, events.Header{Firewall: "fw-a", Boot: events.Boot{1}, Seq: 1}, 10)
	p.until("the present", func() bool { return strings.Contains(p.stdout.String(), "\x01"+strings.Repeat("\x00", 15)) })
	p.stop()
	if !strings.Contains(p.stderr.String(), "recorded 5 batches") {
		t.Errorf("it says %q", p.stderr.String())
	}
	want := map[string]bool{}
	for _, stream := range []string{bus.StreamEvents, bus.StreamSnapshots} {
		if err := conn.Read(t.Context(), stream, bus.FollowFrom{All: true}, func(m bus.Msg) {
			want[fmt.Sprint(m.Subject, m.Time.UnixNano(), string(m.Data))] = true
		}); err != nil {
			t.Fatal(err)
		}
	}
	r, err := recording.NewReader(bytes.NewReader([]byte(p.stdout.String())))
	if err != nil {
		t.Fatal(err)
	}
	var m recording.Message
	var last time.Time
	for n := 0; ; n++ {
		if err := r.Next(&m); errors.Is(err, io.EOF) {
			if n != len(want) {
				t.Errorf("%d messages, want %d", n, len(want))
			}
			return
		} else if err != nil {
			t.Fatal(err)
		}
		if !want[fmt.Sprint(m.Subject, m.Time.UnixNano(), string(m.Data))] {
			t.Errorf("message %d, %s, was not on the bus", n, m.Subject)
		}
		if m.Time.Before(last) {
			t.Errorf("message %d is of before the one before", n)
		}
		last = m.Time
	}
}

package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestAlertsWatch: each alert once in every form, across an outage of NATS, from as
// long ago as was asked for; and nothing that could not be shown.
func TestAlertsWatch(t *testing.T) {
	t.Parallel()
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	c := call{env: []string{"NATS_URL=" + server.URL()}}
	if r := c.run(t, "ctfleet", "alerts", "watch"); r.code != 1 || !strings.Contains(r.stderr, bus.StreamAlerts) {
		t.Errorf("without its stream: %+v", r)
	}
	conn, err := bus.Connect(bus.Config{Flags: bus.Flags{NATSURL: server.URL()}, Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if _, err := conn.Bootstrap(t.Context(), bus.DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	published := 0
	publish := func(state string) {
		t.Helper()
		published++
		a := viewAlerts()[0]
		a.ID, a.State, a.Ports = fmt.Sprintf("a%d", published), state, nil // the ports are no good on a bus
		until(t, "the alert to be kept", func() bool {
			return conn.PublishMessage(t.Context(), events.AlertSubject(state, a.Rule, a.Scope, "203-0-113-7"), a.ID, &a) == nil
		})
	}
	publish(events.Firing)
	if err := conn.NC.Publish(events.AlertSubject(events.Firing, "rule", "fleet", "key"), []byte("\x1b[2J")); err != nil {
		t.Fatal(err)
	}

	running := map[string]*process{}
	for _, format := range []string{"human", "raw", "json"} {
		running[format] = c.start(t, "ctfleet", "alerts", "watch", "--since", "1h", "-o", format)
	}
	all := func(lines int) {
		t.Helper()
		for format, p := range running {
			want := lines
			if format == "raw" {
				want++ // its header
			}
			p.until(fmt.Sprintf("%d lines, %s", want, format), func() bool { return strings.Count(p.stdout.String(), "\n") >= want })
		}
	}
	all(1)
	server.Stop()
	for _, p := range running {
		p.says(&p.stderr, `(lost the connection to NATS, retrying)`)
	}
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	publish(events.Resolved)
	all(2)
	publish(events.Firing)
	all(3)
	time.Sleep(100 * time.Millisecond) // for one that came twice
	for format, want := range map[string][]string{
		"human": {"  firing    new-flows-by-source: 203.0.113.7 opened 2002 flows within 10 s in the fleet, threshold 2000, through 2 firewalls [allowlisted, lossy]\n"},
		"raw":   {"TIME\tSTATE\tID\t", "\tfiring\ta1\tcritical\tnew-flows-by-source\tfleet\tdefault\t203.0.113.7\t2002\t2500\tallowlisted lossy\n", "\tresolved\ta2\t", "\tfiring\ta3\t"},
		"json":  {`"id":"a1"`, `"id":"a2"`, `"id":"a3"`},
	} {
		out := running[format].stdout.String()
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("%s does not say %q:\n%s", format, w, out)
			}
		}
		lines := 3
		if format == "raw" {
			lines++
		}
		if n := strings.Count(out, "\n"); n != lines || strings.Contains(out, "\x1b") {
			t.Errorf("%s: %d lines, want %d:\n%q", format, n, lines, out)
		}
		if errs := running[format].stderr.String(); !strings.Contains(errs, "refused a message on") || strings.Contains(errs, "\x1b") {
			t.Errorf("%s says of foreign bytes: %q", format, errs)
		}
		running[format].stop()
	}
}

// TestEchoes: who listens without the stream hears each of several aggregators, and is shown
// what they say once.
func TestEchoes(t *testing.T) {
	var heard echoes
	now := time.Unix(1000, 0)
	for _, e := range []struct {
		after time.Duration
		what  string
		again bool
	}{{0, "firing.a", false}, {30 * time.Millisecond, "firing.a", true}, {40 * time.Millisecond, "firing.b", false}, {50 * time.Millisecond, "resolved.a", false}, {time.Second, "firing.a", false}} {
		if got := heard.again(e.what, now.Add(e.after)); got != e.again {
			t.Errorf("%s after %s: again is %t", e.what, e.after, got)
		}
	}
	if len(heard) != 1 {
		t.Errorf("%v are remembered, want what was heard a moment ago", heard)
	}
}

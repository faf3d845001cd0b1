package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// newServer is a NATS server with its streams, for programs that need no kernel.
func newServer(t *testing.T) (call, *bus.Conn) {
	t.Helper()
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	conn, err := bus.Connect(bus.Config{Server: server, Role: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Close)
	if _, err := conn.Bootstrap(t.Context(), bus.DefaultLimits, false); err != nil {
		t.Fatal(err)
	}
	return call{env: []string{"NATS_URL=" + server.URL()}}, conn
}

// TestProducerReadsXML: what the conntrack tool printed reaches the bus, and the
// producer ends by itself.
func TestProducerReadsXML(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	text, err := os.ReadFile("../../internal/conntrack/testdata/xml/events.xml")
	if err != nil {
		t.Fatal(err)
	}
	c.stdin = text
	r := c.run(t, "producer", "--source", "xml", "--input", "-", "--name", "box")
	if r.code != 0 || !strings.Contains(r.stderr, `msg="the input has ended" firewall=box events=23 listed=0 skipped=0`) {
		t.Fatalf("%+v", r)
	}
	total := 0
	if err := conn.Read(t.Context(), bus.StreamEvents, bus.FollowFrom{All: true}, func(m bus.Msg) {
		var b events.Batch
		if err := new(events.Decoder).Decode(m.Data, &b); err != nil || m.Subject != "ct.v1.events.box" {
			t.Errorf("%s: %v", m.Subject, err)
		}
		total += b.Count
	}); err != nil || total != 23 {
		t.Errorf("%d events on the bus, %v", total, err)
	}
	last, err := conn.Last(t.Context(), bus.StreamLast, "ct.v1.health.box")
	if err != nil || len(last) != 1 {
		t.Fatalf("health: %v, %v", last, err)
	}
	var h events.Health
	if err := events.Unmarshal(last[0].Data, &h); err != nil || h.Source != "xml" || !h.Stopping || h.Stream.Published != 23 {
		t.Errorf("health: %+v, %v", h, err)
	}

	c.stdin = text[:len(text)/2] // of events, half is no mistake
	if r := c.run(t, "producer", "--source", "xml", "--input", "-", "--name", "box"); r.code != 0 || !strings.Contains(r.stderr, "the flow is cut off") {
		t.Errorf("half of it: %+v", r)
	}
	for _, bad := range [][]string{{"--source", "xml"}, {"--input", "-"}, {"--source", "xml", "--input", "-", "--allow-flush"}, {"--source", "pcap"}} {
		if r := c.run(t, "producer", bad...); r.code != 2 {
			t.Errorf("%v: exit code %d, want 2: %s", bad, r.code, r.stderr)
		}
	}
	if r := c.run(t, "producer", "--source", "xml", "--input", "/nowhere"); r.code != 1 || !strings.Contains(r.stderr, "no such file") {
		t.Errorf("no such file: %+v", r)
	}
	if r := c.run(t, "producer", "--check", "--source", "xml", "--input", "-"); r.code != 0 || !strings.Contains(r.stdout, "source xml from -") {
		t.Errorf("check: %+v", r)
	}
}

// TestProducerFeedsARecording: what was recorded of one bus is on another one, and
// `observe` shows the same there.
func TestProducerFeedsARecording(t *testing.T) {
	t.Parallel()
	c, _ := newServer(t)
	playCaptured(t, c, "fw-a", "fw-b")
	tape := c.run(t, "ctfleet", "observe", "--since", "1h", "-o", "raw")
	again, _ := newServer(t)
	again.stdin = []byte(tape.stdout)
	if r := again.run(t, "producer", "--source", "replay", "--input", "-", "--name", "fw-c"); r.code != 1 || !strings.Contains(r.stderr, "--input-firewall says which") {
		t.Errorf("of two firewalls: %+v", r)
	}
	if r := again.run(t, "producer", "--source", "replay", "--input", "-", "--name", "fw-d", "--input-firewall", "fw-b"); r.code != 0 {
		t.Errorf("%+v", r)
	}
	show := func(c call, firewall string) string {
		r := c.run(t, "ctfleet", "observe", "--since", "1h", "--type", "new", "--type", "destroy", "--type", "existing", "--firewall", firewall)
		lines := strings.Split(strings.ReplaceAll(clockTime.ReplaceAllString(r.stdout, ""), firewall, "fw"), "\n")
		slices.Sort(lines) // dumps and events are on two subjects, whose order is not kept
		return strings.Join(lines, "\n")
	}
	if want, got := show(c, "fw-b"), show(again, "fw-d"); got != want || strings.Count(want, "\n") != 23+12 {
		t.Errorf("there\n%s\nhere\n%s", got, want)
	}
}

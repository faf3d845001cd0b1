package producer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// newInputRig is a tally of a producer that reads a file: it needs no kernel.
func newInputRig(t *testing.T, opt Options) *tally {
	t.Helper()
	r := newTally(t)
	var err error
	opt.Name, opt.Realm, opt.Linger, opt.RingBytes, opt.BufferBytes = "fw-a", events.RealmDefault, 5*time.Millisecond, max(opt.RingBytes, 1<<20), 1<<20
	r.p, err = New(opt, Dependencies{
		Bus: bus.Config{Flags: bus.Flags{NATSURL: r.server.URL()}}, Log: slog.New(slog.NewTextHandler(testLog{t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// read runs the producer to the end of its input, and takes what it has published.
func (r *tally) read() error {
	r.t.Helper()
	err := r.p.Run(r.t.Context())
	for _, stream := range []string{bus.StreamEvents, bus.StreamSnapshots} {
		if err := r.conn.Read(r.t.Context(), stream, bus.FollowFrom{All: true}, r.take); err != nil {
			r.t.Fatal(err)
		}
	}
	return err
}

const xmlHead = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>\n"

// flowXML is flow n as conntrack prints it.
func flowXML(typ string, n int, when time.Time) string {
	src := fmt.Sprintf("198.18.%d.%d", n>>8&0xff, n&0xff)
	tuple := `<layer3 protonum="2" protoname="ipv4"><src>%s</src><dst>%s</dst></layer3><layer4 protonum="17" protoname="udp"><sport>%d</sport><dport>%d</dport></layer4></meta>`
	if typ != "" {
		typ = fmt.Sprintf(" type=%q", typ)
	}
	s := fmt.Sprintf(`<flow%s><meta direction="original">`+tuple+`<meta direction="reply">`+tuple+`<meta direction="independent"><id>%d</id><unreplied/></meta>`,
		typ, src, "203.0.113.7", 1024, 53, "203.0.113.7", src, 53, 1024, n+1)
	if !when.IsZero() {
		s += fmt.Sprintf("<when><hour>%d</hour><min>%d</min><sec>%d</sec><wday>5</wday><day>%d</day><month>%d</month><year>%d</year></when>",
			when.Hour(), when.Minute(), when.Second(), when.Day(), when.Month(), when.Year())
	}
	return s + "</flow>\n"
}

func inputFile(t *testing.T, parts ...string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "input.xml")
	if err := os.WriteFile(name, []byte(strings.Join(parts, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func many(typ string, from, to int) string {
	var b strings.Builder
	for n := from; n < to; n++ {
		b.WriteString(flowXML(typ, n, time.Time{}))
	}
	return b.String()
}

// TestXMLSource: a listing is one snapshot, what comes after it are events, and all
// of it is on the bus when the producer ends, also what its ring never held at a time.
func TestXMLSource(t *testing.T) {
	t.Parallel()
	const flows = 60_000 // more than the ring holds
	r := newInputRig(t, Options{Source: "xml", Input: inputFile(t,
		xmlHead, many("", 0, 1000), "</conntrack>\n", xmlHead, many("new", 1000, 1000+flows), "broken\n", many("destroy", 0, 10), "</conntrack>\n")})
	if err := r.read(); err != nil {
		t.Fatal(err)
	}
	s := r.p.Stream()
	if r.new != flows || r.gone != 10 || !r.complete[2] || r.active[2] != 1000+flows-10 {
		t.Errorf("%d new, %d gone, %d active, epoch complete %t", r.new, r.gone, r.active[2], r.complete[2])
	}
	if s.Events != flows+10 || s.Published != s.Events || s.Undecodable != 1 || s.LostRing != 0 || s.Live != 1000+flows-10 || s.Resyncs != 1 {
		t.Errorf("its own account: %+v", s)
	}
}

// TestXMLCutOff: half a listing is no table, and nothing at all is no empty one.
func TestXMLCutOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ name, text, want string }{
		{"half", xmlHead + many("", 0, 3000), "cut off after 3000 flows"},
		{"nothing", "", "no XML of conntrack"},
		{"no XML", "tcp 6 300 ESTABLISHED\n", "no XML of conntrack"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newInputRig(t, Options{Source: "xml", Input: inputFile(t, c.text)})
			if err := r.read(); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("ended with %v, want %q", err, c.want)
			}
			if len(r.complete) > 0 {
				t.Errorf("an epoch is complete: %v", r.complete)
			}
		})
	}
}

// TestXMLInItsTime: events of a file that says when they were come as far apart.
func TestXMLInItsTime(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 26, 23, 59, 59, 0, time.UTC)
	r := newInputRig(t, Options{Source: "xml", Input: inputFile(t, flowXML("new", 1, at), flowXML("new", 2, at), flowXML("new", 3, at.Add(2*time.Second)))})
	begin := time.Now()
	if err := r.read(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < 2*time.Second || r.new != 3 {
		t.Errorf("%d new within %s", r.new, took)
	}
}

// TestXMLProducerActsOnNothing: there is no table, whatever this host has.
func TestXMLProducerActsOnNothing(t *testing.T) {
	t.Parallel()
	pipe, end, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close() // until then: what is not held is closed
	defer end.Close()
	r := newInputRig(t, Options{Source: "xml", Trust: "none", Input: fmt.Sprintf("/dev/fd/%d", pipe.Fd())})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.p.Run(ctx) }()
	if _, err := end.WriteString(xmlHead + flowXML("new", 1, time.Time{})); err != nil {
		t.Fatal(err)
	}
	r.until("the event, at once", func() bool { return r.p.Stream().Published == 1 })
	for _, dry := range []bool{false, true} {
		for _, verb := range []string{events.VerbFlush, events.VerbBlock, events.VerbUnblock} {
			c := &events.Command{ID: verb, Verb: verb, Firewall: "fw-a", Actor: events.ActorOperator, Addresses: []string{"198.18.0.1"}, By: events.BySrc, DryRun: dry}
			if verb == events.VerbBlock {
				c.BlockS = 60
			}
			var receipt events.Receipt
			if err := r.conn.Request(t.Context(), events.CommandSubject("fw-a", verb), c, &receipt); err != nil {
				t.Errorf("%s: %v", verb, err)
			} else if len(receipt.Refused) != 1 || receipt.Refused[0].Reason != "not-enabled" {
				t.Errorf("%s, dry run %t: %+v", verb, dry, receipt)
			}
		}
	}
	var again events.ResyncReply
	if err := r.conn.Request(t.Context(), events.CommandSubject("fw-a", events.VerbResync), &events.Command{Verb: events.VerbResync, Firewall: "fw-a", Actor: "aggregator"}, &again); err != nil || again.Accepted {
		t.Errorf("resync: %+v, %v", again, err)
	}
	if h := r.p.health(false); h.Source != "xml" || h.Table != (events.TableHealth{}) || h.AllowFlush || len(h.Problems) != 1 {
		t.Errorf("health: %+v", h)
	}
	cancel()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("it does not stop while it waits for its input")
	}
}

func TestXMLOptions(t *testing.T) {
	t.Parallel()
	f := func(want string, set func(*Options)) {
		t.Helper()
		o := Options{Name: "fw-a", Realm: "default", Linger: time.Millisecond, RingBytes: 1 << 20, BufferBytes: 1 << 20, Source: "xml", Input: "-"}
		set(&o)
		if err := o.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	f("", func(*Options) {})
	f("needs --input", func(o *Options) { o.Input = "" })
	f("no table for --allow-flush", func(o *Options) { o.AllowFlush = true })
	f("no table for --allow-flush or --allow-block", func(o *Options) { o.AllowBlock = true })
	f("--netns means nothing", func(o *Options) { o.NetNS = "blue" })
	f("nothing without --source", func(o *Options) { o.Source = "kernel" })
}

package conntrack

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// readXML returns all flows of a text, how many documents ended, and the lines on
// which something was skipped.
func readXML(t testing.TB, in io.Reader) (flows []XMLFlow, ends int, bad []string) {
	t.Helper()
	x := NewXMLReader(in, func(line int, err error) { bad = append(bad, fmt.Sprintf("%d: %v", line, err)) })
	for {
		var f XMLFlow
		err := x.Next(&f)
		switch {
		case err == io.EOF: //nolint:errorlint // as it is
			return flows, ends, bad
		case err != nil:
			t.Fatal(err)
		case f.End:
			ends++
		default:
			flows = append(flows, f)
		}
	}
}

func captured(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/xml/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func describe(f *XMLFlow) string {
	s := fmt.Sprintf("%s %d %s:%d>%s:%d id %d zone %d status %#x", f.Type, f.Proto, f.Src(), f.Orig.SrcPort, f.Dst(), f.Orig.DstPort, f.ID, f.Zone, f.Status)
	if f.NAT {
		s += fmt.Sprintf(" reply %s:%d>%s:%d", f.Reply.Src.Netip(f.IPv6), f.Reply.SrcPort, f.Reply.Dst.Netip(f.IPv6), f.Reply.DstPort)
	}
	if f.HasCounters {
		s += fmt.Sprint(" ", f.Counters)
	}
	return s
}

func TestXMLAsTheToolPrintsIt(t *testing.T) {
	f := func(name string, flows int, want ...string) {
		t.Helper()
		got, ends, bad := readXML(t, strings.NewReader(captured(t, name)))
		if len(got) != flows || ends != 1 || len(bad) > 0 {
			t.Errorf("%s: %d flows, want %d; %d ends; %q", name, len(got), flows, ends, bad)
		}
		var all []string
		for i := range got {
			all = append(all, describe(&got[i]))
		}
		for _, w := range want {
			if !strings.Contains(strings.Join(all, "\n")+"\n", w+"\n") {
				t.Errorf("%s: no %q in\n%s", name, w, strings.Join(all, "\n"))
			}
		}
	}
	f("events.xml", 23,
		"NEW 6 192.0.2.1:53380>192.0.2.2:80 id 2794054514 zone 0 status 0x8",
		"NEW 6 192.0.2.1:49458>192.0.2.3:8080 id 1207752655 zone 0 status 0x28 reply 192.0.2.2:80>192.0.2.1:49458",
		"NEW 17 192.0.2.1:57177>192.0.2.2:7000 id 2632892146 zone 7 status 0x8",
		"NEW 17 2001:db8::1:51157>2001:db8::2:53 id 3673333218 zone 0 status 0x8",
		"NEW 1 192.0.2.1:0>192.0.2.2:0 id 3973673417 zone 0 status 0x8",
		"NEW 50 192.0.2.1:0>192.0.2.2:0 id 1926171522 zone 0 status 0x8",
		"DESTROY 6 192.0.2.1:49458>192.0.2.3:8080 id 1207752655 zone 0 status 0x22e reply 192.0.2.2:80>192.0.2.1:49458 {5 270 5 269}",
	)
	f("listing.xml", 12,
		"EXISTING 6 192.0.2.1:53380>192.0.2.2:80 id 2794054514 zone 0 status 0xe {6 322 5 269}",
		"EXISTING 17 192.0.2.1:43439>192.0.2.2:7001 id 3025949157 zone 8 status 0x8 {1 29 0 0}",
		"EXISTING 17 192.0.2.1:57177>192.0.2.2:7000 id 2632892146 zone 7 status 0x8 {1 29 0 0}",
	)
	// One that a program inserted is no new connection; the others' when is known.
	got, _, _ := readXML(t, strings.NewReader(captured(t, "events.xml")))
	inserted := 0
	for i := range got {
		if got[i].Type == events.Existing && !got[i].Listed {
			inserted++
		}
		if got[i].When.Format("2006-01-02 15:04") != "2026-11-26 21:52" {
			t.Errorf("when: %v", got[i].When)
		}
	}
	if inserted != 1 {
		t.Errorf("%d were inserted by a program, want 1", inserted)
	}
}

// One byte at a time is how a pipe may bring it.
func TestXMLInPieces(t *testing.T) {
	text := captured(t, "listing.xml") + captured(t, "events.xml")
	whole, _, _ := readXML(t, strings.NewReader(text))
	pieces, ends, bad := readXML(t, iotest.OneByteReader(strings.NewReader(text)))
	if len(pieces) != len(whole) || ends != 2 || len(bad) > 0 {
		t.Fatalf("%d flows, %d as a whole; %d ends; %q", len(pieces), len(whole), ends, bad)
	}
	for i := range whole {
		if pieces[i] != whole[i] {
			t.Errorf("flow %d: %+v, as a whole %+v", i, pieces[i], whole[i])
		}
	}
}

func flowText(typ, src, dst string) string {
	if typ != "" {
		typ = fmt.Sprintf(" type=%q", typ)
	}
	return fmt.Sprintf(`<flow%s><meta direction="original"><layer3 protonum="2" protoname="ipv4"><src>%s</src><dst>%s</dst></layer3><layer4 protonum="6" protoname="tcp"><sport>1024</sport><dport>80</dport></layer4></meta>`+
		`<meta direction="reply"><layer3 protonum="2" protoname="ipv4"><src>%s</src><dst>%s</dst></layer3><layer4 protonum="6" protoname="tcp"><sport>80</sport><dport>1024</dport></layer4></meta>`+
		`<meta direction="independent"><timeout>9</timeout><id>7</id><unreplied/></meta></flow>`, typ, src, dst, dst, src)
}

func TestXMLDamage(t *testing.T) {
	good := flowText("new", "192.0.2.1", "192.0.2.2")
	const head = "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>\n"
	f := func(name, text string, flows int, want ...string) {
		t.Helper()
		got, _, bad := readXML(t, strings.NewReader(text))
		if len(got) != flows || len(bad) != len(want) {
			t.Errorf("%s: %d flows, want %d; damage %q", name, len(got), flows, bad)
			return
		}
		for i := range want {
			if !strings.HasPrefix(bad[i], want[i]) {
				t.Errorf("%s: said %q, want %q…", name, bad[i], want[i])
			}
		}
	}
	swap := func(old, with string) string { return strings.Replace(good, old, with, 1) }
	f("good", head+good+"\n"+good+"\n</conntrack>\n", 2)
	f("an empty document", head+"</conntrack>\n", 0)
	f("nothing", "", 0)
	f("all on one line, no head", good+good+good, 3)
	f("cut in the middle", head+good[:200]+"\n"+good+"\n</conntrack>", 1, "3: the flow is cut off")
	f("the beginning is missing", head+good[200:]+"\n"+good+"\n", 1, "3: this is nothing")
	f("the end is missing", head+good+"\n"+good[:300], 1, "4: the flow is cut off")
	f("a word in between", head+good+"\nkilled\n"+good, 2, "4: this is nothing")
	f("no end, ever", head+good+"\n<flow>"+strings.Repeat("<x>", 20000)+"\n"+good, 2, "4: the flow has more than 16384 bytes")
	f("no XML", strings.Repeat("tcp 6 431999 ESTABLISHED src=192.0.2.1\n", 10000), 0, "1: this is nothing")
	f("address", head+swap("<src>192.0.2.1", "<src>192.0.2.256")+"\n"+good, 1, "3: src:")
	f("port", head+swap("1024", "65536"), 0, `3: sport: "65536" is no number`)
	f("protocol", head+swap(`"6"`, `"256"`), 0, "3: layer4:")
	f("protocols differ", head+swap(`"6"`, `"17"`), 0, "3: the reply's protocol is 6")
	f("family", head+swap(`protonum="2"`, `protonum="10"`), 0, "3: the original direction mixes")
	f("no reply", head+swap(`"reply"`, `"other"`), 0, "3: the reply direction is not there")
	f("no status", head+swap(`"independent"`, `"other"`), 0, "3: the flow is cut off")
	f("nesting", head+swap("</src>", "</dst>"), 0, "3: tags are not closed")
	f("depth", head+swap("<timeout>", strings.Repeat("<a>", 9)), 0, "3: tags are not closed")
	f("type", head+swap(`"new"`, `"odd"`), 0, "3: the flow is of no known type")
	f("an unknown tag", head+swap("<timeout>9</timeout>", "<helper>ftp</helper><labels><label>x</label></labels>"), 1)
	f("update", head+strings.Replace(good, "new", "update", 1), 0)
	f("UTF-16", strings.Join(strings.Split(head+good, ""), "\x00"), 0, "1: this is nothing")
	f("Latin-1", strings.Replace(head, "utf-8", "iso-8859-1", 1)+swap("<timeout>9", "<timeout>\xe4"), 1)
	bomb := `<!DOCTYPE b [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;">]>` + "\n"
	f("entities", bomb+head+swap("<src>192.0.2.1", "<src>&b;")+"\n"+good, 1, "1: this is nothing", "4: src:")
	f("by name", head+strings.NewReplacer(`protonum="6" `, "", `protonum="2" `, "").Replace(good), 1)
	f("of no known name", head+strings.NewReplacer(`protonum="6" protoname="tcp"`, `protoname="xyz"`).Replace(good), 0, `3: layer4: protocol "xyz"`)
}

func TestXMLICMPAndKeys(t *testing.T) {
	text := strings.NewReplacer(`protonum="6"`, `protonum="1"`, "<sport>1024</sport><dport>80</dport>", "<type>8</type><code>0</code><id>4711</id>",
		"<sport>80</sport><dport>1024</dport>", "<type>0</type><code>0</code><id>4711</id>").Replace(flowText("", "192.0.2.1", "192.0.2.2"))
	got, _, bad := readXML(t, strings.NewReader(text))
	if len(got) != 1 || got[0].Orig.SrcPort != 4711 || got[0].Orig.DstPort != 8<<8 || got[0].NAT {
		t.Errorf("ICMP: %+v %q", got, bad)
	}
	text = strings.NewReplacer(`protonum="6"`, `protonum="47"`, "<sport>1024</sport><dport>80</dport>", "<srckey>0x4a</srckey><dstkey>0xffff</dstkey>",
		"<sport>80</sport><dport>1024</dport>", "<srckey>0xffff</srckey><dstkey>0x4a</dstkey>").Replace(flowText("", "192.0.2.1", "192.0.2.2"))
	got, _, bad = readXML(t, strings.NewReader(text))
	if len(got) != 1 || got[0].Proto != unix.IPPROTO_GRE || got[0].Orig.SrcPort != 0x4a || got[0].Orig.DstPort != 0xffff || got[0].NAT {
		t.Errorf("GRE: %+v %q", got, bad)
	}
}

func TestXMLInputFails(t *testing.T) {
	broken := errors.New("broken pipe")
	x := NewXMLReader(io.MultiReader(strings.NewReader(flowText("new", "192.0.2.1", "192.0.2.2")), iotest.ErrReader(broken)), func(int, error) {})
	var f XMLFlow
	if err := x.Next(&f); err != nil {
		t.Fatal(err)
	}
	if err := x.Next(&f); !errors.Is(err, broken) {
		t.Errorf("%v, want that the pipe is broken", err)
	}
}

// listing makes one of so many flows, without ever having all of it.
type listing struct {
	flows, next int
	text        bytes.Buffer
}

func (l *listing) Read(p []byte) (int, error) {
	for l.text.Len() < len(p) && l.next <= l.flows {
		switch n := l.next; n {
		case 0:
			l.text.WriteString("<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<conntrack>\n")
		case l.flows:
			l.text.WriteString("</conntrack>\n")
		default:
			l.text.WriteString(flowText("", fmt.Sprintf("198.18.%d.%d", n>>8&0xff, n&0xff), "203.0.113.7") + "\n")
		}
		l.next++
	}
	return l.text.Read(p)
}

// TestXMLMillion: a listing of a million flows takes no more memory than one of ten.
func TestXMLMillion(t *testing.T) {
	flows := 1_000_000
	if testing.Short() {
		flows = 10_000
	}
	var before, now runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	x := NewXMLReader(&listing{flows: flows + 1}, func(line int, err error) { t.Errorf("line %d: %v", line, err) })
	var f XMLFlow
	n, most := 0, uint64(0)
	for {
		err := x.Next(&f)
		if err == io.EOF { //nolint:errorlint // as it is
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.End {
			continue
		}
		if n++; n%100_000 == 0 {
			runtime.GC()
			runtime.ReadMemStats(&now)
			most = max(most, now.HeapAlloc-min(now.HeapAlloc, before.HeapAlloc))
		}
	}
	if n != flows || most > 4<<20 {
		t.Errorf("%d flows, want %d; %d bytes held, want at most 4 MiB", n, flows, most)
	}
}

func FuzzXML(f *testing.F) {
	f.Add([]byte(captured(f, "listing.xml")))
	f.Add([]byte(captured(f, "events.xml")[:6000]))
	f.Add([]byte(flowText("destroy", "192.0.2.1", "192.0.2.2")))
	f.Add([]byte("<flow<flow type=\"new\"></flow></conntrack><conntrack><?xml ?>"))
	f.Fuzz(func(t *testing.T, data []byte) {
		flows, _, bad := readXML(t, bytes.NewReader(data))
		if most := bytes.Count(data, flowStart); len(flows) > most || len(bad) > 2*most+1+bytes.Count(data, []byte("<conntrack>"))+bytes.Count(data, []byte("<?xml ")) {
			t.Errorf("%d flows and %d complaints of %d beginnings", len(flows), len(bad), most)
		}
		again, _, badAgain := readXML(t, iotest.HalfReader(bytes.NewReader(data)))
		if len(again) != len(flows) || len(badAgain) != len(bad) {
			t.Errorf("in pieces %d flows and %d complaints, as a whole %d and %d", len(again), len(badAgain), len(flows), len(bad))
		}
		for i := range flows {
			var w events.BatchWriter
			if err := w.Append(&flows[i].Event); err != nil {
				t.Errorf("%+v: %v", flows[i], err)
			}
		}
	})
}

// BenchmarkXML compares with the standard library's reader of any XML, which here
// only walks the tags.
func BenchmarkXML(b *testing.B) {
	const flows = 10_000
	text, err := io.ReadAll(&listing{flows: flows + 1})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("XMLReader", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			if got, _, _ := countXML(text); got != flows {
				b.Fatal(got)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/flows, "ns/flow")
	})
	b.Run("RawToken", func(b *testing.B) {
		b.SetBytes(int64(len(text)))
		b.ReportAllocs()
		for b.Loop() {
			d := xml.NewDecoder(bytes.NewReader(text))
			for {
				if _, err := d.RawToken(); err != nil {
					break
				}
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/flows, "ns/flow")
	})
}

func countXML(text []byte) (flows, ends, bad int) {
	x := NewXMLReader(bytes.NewReader(text), func(int, error) { bad++ })
	var f XMLFlow
	for x.Next(&f) == nil {
		if f.End {
			ends++
		} else {
			flows++
		}
	}
	return flows, ends, bad
}

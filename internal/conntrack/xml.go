package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// maxFlowXML is how long one <flow> may be; the tool writes about 700 bytes.
	maxFlowXML = 16 << 10
	// xmlBuffer is all that a reader holds of its input.
	xmlBuffer = 256 << 10
	// maxTail is how much is looked at behind a <flow> for what the tool says there.
	maxTail = 128
)

// XMLFlow is one <flow>, or the end of a document.
type XMLFlow struct {
	events.Event
	// When is the wall clock of the machine that printed it, where the tool was
	// asked for it (-o timestamp): whole seconds, of a zone that it does not say.
	When time.Time
	// Listed: the flow is a row of conntrack -L, no event.
	Listed bool
	// End: this is no flow, the document is over. What was listed in it is all.
	End bool
}

// XMLReader reads what conntrack -E -o xml and conntrack -L -o xml print, one
// document or several, in a buffer of a fixed size. It is no reader of XML in
// general: it looks for <flow> and </flow>, and takes what stands between by
// words that the tool is known to write. No entity, comment or declaration means
// anything to it, so that none can do harm. A reader of any XML took five times
// as long (BenchmarkXML).
type XMLReader struct {
	in       io.Reader
	damaged  func(line int, err error)
	buf      []byte
	from, to int // what of buf is still to be read
	line     int // of buf[from]
	eof      bool
	err      error // of in

	text   bool // something stood between two flows that does not belong there
	lost   bool // within what is left of a flow that was given up: said already
	opened bool // within <conntrack>
}

// NewXMLReader returns a reader that tells damaged what it had to skip.
func NewXMLReader(in io.Reader, damaged func(line int, err error)) *XMLReader {
	return &XMLReader{in: in, damaged: damaged, buf: make([]byte, xmlBuffer), line: 1}
}

var (
	flowStart   = []byte("<flow")
	flowEnd     = []byte("</flow>")
	errCut      = errors.New("the flow is cut off")
	errLongFlow = fmt.Errorf("the flow has more than %d bytes", maxFlowXML)
	errNoFlow   = errors.New("this is nothing that conntrack -o xml prints")
)

// Next fills f with the next flow, and leaves out the updates. Time is left zero. At the end of the input it returns io.EOF, after End if all of the last
// document was there; any other error is of the input.
//
// A NEW is [events.Existing] when the tool says behind it that a program inserted
// the flow, as [Decode] has it. The tool does not print type, code and id of ICMP;
// they are 0. Status has what the tool says (assured, unreplied) and what follows
// from the rest: confirmed, the two kinds of NAT, and dying for a DESTROY.
func (x *XMLReader) Next(f *XMLFlow) error {
	for {
		found, ended := x.seek()
		switch {
		case ended:
			*f = XMLFlow{End: true}
			return nil
		case !found:
			return x.err
		}
		n := x.element()
		if n == 0 {
			continue
		}
		flow, line := x.buf[x.from:x.from+n], x.line
		typ, err := parseFlow(flow, f)
		if err != nil {
			x.damaged(line, err)
		}
		x.skip(n)
		tail := x.tail() // moves the buffer: flow is no more
		if err == nil && typ != "update" {
			if f.Type == events.New && bytes.Contains(tail, []byte("portid=")) {
				f.Type = events.Existing
			}
			return nil
		}
	}
}

// skip leaves n bytes behind.
func (x *XMLReader) skip(n int) {
	x.line += bytes.Count(x.buf[x.from:x.from+n], []byte{'\n'})
	x.from += n
}

// fill reads more and reports whether there was any. The caller has left room.
func (x *XMLReader) fill() bool {
	if x.eof {
		return false
	}
	if x.from > len(x.buf)/2 {
		copy(x.buf, x.buf[x.from:x.to])
		x.from, x.to = 0, x.to-x.from
	}
	for range 100 { // a reader that returns nothing so often is broken
		n, err := x.in.Read(x.buf[x.to:])
		x.to += n
		if err != nil {
			x.eof, x.err = true, err
			if err != io.EOF {
				x.err = fmt.Errorf("read XML: %w", err)
			}
		}
		if n > 0 || err != nil {
			return n > 0
		}
	}
	x.eof, x.err = true, fmt.Errorf("read XML: %w", io.ErrNoProgress)
	return false
}

// seek goes to the next <flow>. It reports false at the end of the input, and
// ended at the end of a document.
func (x *XMLReader) seek() (found, ended bool) {
	for {
		text := x.buf[x.from:x.to]
		text = bytes.TrimLeft(text, " \n\t\r")
		x.skip(x.to - x.from - len(text))
		switch {
		case isFlow(text):
			x.text, x.lost = false, false
			return true, false
		case bytes.HasPrefix(text, []byte("</conntrack>")):
			x.skip(len("</conntrack>"))
			ended = x.opened
			if x.opened = false; ended {
				return false, true
			}
			continue
		case bytes.HasPrefix(text, []byte("<conntrack>")):
			x.skip(len("<conntrack>"))
			x.text, x.lost, x.opened = false, false, true
			continue
		case bytes.HasPrefix(text, []byte("<?xml ")):
			if end := bytes.Index(text, []byte("?>")); end >= 0 && end < maxTail {
				x.skip(end + 2)
				x.text, x.lost = false, false
				continue
			}
		}
		if len(text) < maxTail && x.fill() {
			continue // a word of ours may not be all there yet
		}
		if len(text) == 0 {
			return false, false
		}
		x.foreign()
		// On to what may be a word of ours.
		next := bytes.IndexByte(text[1:], '<')
		if next < 0 {
			next = len(text) - 1
		}
		x.skip(1 + next)
	}
}

// isFlow: <flow> or <flow type="...">, and no <flows>.
func isFlow(p []byte) bool {
	return bytes.HasPrefix(p, flowStart) && len(p) > len(flowStart) && (p[len(flowStart)] == '>' || p[len(flowStart)] == ' ')
}

// foreign says, once until something is in order again, that what stands here does not
// belong here.
func (x *XMLReader) foreign() {
	if !x.text && !x.lost {
		x.damaged(x.line, errNoFlow)
	}
	x.text = true
}

// element returns the length of the <flow> that begins here, when all of it is there.
// Where another one begins within it, or the input ends, it is given up: 0.
func (x *XMLReader) element() int {
	for at := len(flowStart); ; {
		text := x.buf[x.from:min(x.to, x.from+maxFlowXML)]
		end := bytes.Index(text[at:], flowEnd)
		inner := text[at:]
		if end >= 0 {
			inner = inner[:end]
		}
		if next := nextFlow(inner); next >= 0 {
			return x.giveUp(at+next, errCut)
		}
		if end >= 0 {
			return at + end + len(flowEnd)
		}
		if len(text) == maxFlowXML {
			return x.giveUp(len(flowStart), errLongFlow)
		}
		at = max(at, len(text)-len(flowEnd)) // a word may be there in part
		if !x.fill() {
			return x.giveUp(x.to-x.from, errCut)
		}
	}
}

// nextFlow is where another flow begins, -1 for nowhere.
func nextFlow(p []byte) int {
	for at := 0; ; {
		i := bytes.Index(p[at:], flowStart)
		if i < 0 {
			return -1
		}
		if at += i; isFlow(p[at:]) {
			return at
		}
		at += len(flowStart)
	}
}

func (x *XMLReader) giveUp(n int, err error) int {
	x.damaged(x.line, err)
	x.skip(n)
	x.lost = true
	return 0
}

// tail returns, and leaves behind, what stands on the line after a flow: nothing, or
// [USERSPACE] portid=4711, maybe with a program's name.
func (x *XMLReader) tail() []byte {
	for {
		text := x.buf[x.from:min(x.to, x.from+maxTail)]
		if i := bytes.IndexAny(text, "\n<"); i >= 0 {
			text = text[:i]
		} else if len(text) < maxTail && x.fill() {
			continue
		}
		if s := bytes.TrimSpace(text); len(s) > 0 && !bytes.HasPrefix(s, []byte("[USERSPACE]")) {
			return nil // it will be met again as text that does not belong there
		}
		x.from += len(text) // there is no line end in it
		return text
	}
}

package demo

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Screen shows the demo to a person: redrawn in place at a terminal, line by
// line elsewhere. A nil Screen shows nothing.
type Screen struct {
	Out      io.Writer
	Terminal bool
	Header   []string   // shown on top: where to look from another terminal
	Width    func() int // columns of the terminal; longer lines are cut, or the picture would scroll

	mu     sync.Mutex
	begin  time.Time
	mark   string // in each line, behind the time
	now    string
	events []string
	rowed  time.Time
}

// keepEvents is how many of the last events a terminal shows.
const keepEvents = 10

func (s *Screen) stamp() string {
	if s.begin.IsZero() {
		s.begin = time.Now()
	}
	return fmt.Sprintf("%6.2fs%s", time.Since(s.begin).Seconds(), s.mark)
}

// aRecording fits into a terminal's line.
const aRecording = "RECORDING, made earlier in a lab: nothing is real now, flushes are simulated"

// record marks the picture and each line as those of a recording, and says why it is
// one.
func (s *Screen) record(why string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.mark = "  RECORDING"
	s.Header = append([]string{aRecording, "because " + why}, s.Header...)
	begun := !s.begin.IsZero()
	s.mu.Unlock()
	if begun { // the header, of a screen that is no terminal, has been printed
		s.Event(aRecording)
		s.Event("because " + why)
	}
}

// Say tells what is happening now.
func (s *Screen) Say(what string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begin.IsZero() && !s.Terminal {
		for _, h := range s.Header {
			fmt.Fprintln(s.Out, h)
		}
	}
	if s.now != what && !s.Terminal {
		fmt.Fprintf(s.Out, "%s  %s\n", s.stamp(), what)
	}
	s.stamp()
	s.now = what
}

// Event tells what has just happened.
func (s *Screen) Event(line string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	line = s.stamp() + "  " + line
	if !s.Terminal {
		fmt.Fprintln(s.Out, line)
		return
	}
	s.events = append(s.events, line)
	if len(s.events) > keepEvents {
		s.events = s.events[1:]
	}
}

// rowEvery is how often the state is printed where there is no terminal.
const rowEvery = 2 * time.Second

// Draw shows the fleet and the top talkers.
func (s *Screen) Draw(fleet []events.FirewallStatus, top *events.TopReply) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.Terminal {
		if time.Since(s.rowed) < rowEvery {
			return
		}
		s.rowed = time.Now()
		var parts []string
		for i := range fleet {
			parts = append(parts, fmt.Sprintf("%s %s", fleet[i].Firewall, entries(&fleet[i])))
		}
		if len(top.Rows) > 0 {
			parts = append(parts, fmt.Sprintf("top %s %d new flows/%d s", top.Rows[0].Key, top.Rows[0].Value, top.WindowS))
		}
		fmt.Fprintf(s.Out, "%s  %s\n", s.stamp(), strings.Join(parts, ", "))
		return
	}
	var b strings.Builder
	width := 80
	if s.Width != nil {
		width = max(s.Width(), 20)
	}
	line := func(format string, args ...any) {
		text := []rune(fmt.Sprintf(format, args...))
		b.WriteString(string(text[:min(len(text), width)]) + "\x1b[K\n")
	}
	bold := func(format string, args ...any) {
		b.WriteString("\x1b[1m")
		line(format, args...)
		b.WriteString("\x1b[0m")
	}
	b.WriteString("\x1b[H")
	bold("ctfleet demo  %s", s.stamp())
	for _, h := range s.Header {
		line("%s", h)
	}
	line("")
	bold("%s", s.now)
	line("")
	line("%-8s %8s %10s %9s %8s %6s", "FIREWALL", "ENTRIES", "LIMIT", "EVENTS/S", "ACTIVE", "LOST")
	for i := range fleet {
		f := &fleet[i]
		active := "unknown"
		if f.ActiveKnown {
			active = fmt.Sprint(f.Active)
		}
		count, limit := fmt.Sprint(f.Table.Count), fmt.Sprint(f.Table.Limit)
		if f.Source != "" { // which has no table
			count, limit = f.Source, f.Source
		}
		line("%-8s %8s %10s %9.0f %8s %6d", f.Firewall, count, limit, f.EventsPerS, active, f.Lost+f.Missing)
	}
	line("")
	line("TOP SOURCES, new flows within %d s", top.WindowS)
	most := uint64(1)
	for i := range top.Rows {
		most = max(most, top.Rows[i].Value)
	}
	for i := range top.Rows {
		r := &top.Rows[i]
		line("  %-22s %6d  %s", r.Key, r.Value, strings.Repeat("█", int(40*r.Value/most)))
	}
	for range 5 - len(top.Rows) {
		line("")
	}
	line("")
	for _, e := range s.events {
		line("%s", e)
	}
	b.WriteString("\x1b[J")
	io.WriteString(s.Out, b.String())
}

// entries says what a firewall's table holds, in a few words.
func entries(f *events.FirewallStatus) string {
	if f.Source != "" { // nobody knows more of its table than what was counted
		return fmt.Sprintf("%d active (%s)", f.Active, f.Source)
	}
	return fmt.Sprintf("%d entries", f.Table.Count)
}

// Clear prepares a terminal for Draw.
func (s *Screen) Clear() {
	if s != nil && s.Terminal {
		io.WriteString(s.Out, "\x1b[2J\x1b[H")
	}
}

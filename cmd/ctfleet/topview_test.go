//go:build linux

package main

import (
	"context"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/charmbracelet/x/ansi"
	"github.com/charmbracelet/x/vt"
	"github.com/creack/pty"
	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/synth"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// screen is a program that runs on a terminal of its own: what it writes is drawn, and
// what the terminal is asked for is answered.
type screen struct {
	t        *testing.T
	cmd      *exec.Cmd
	keyboard *os.File
	drawn    *vt.SafeEmulator
	raw      output // all that was written
	ended    chan struct{}
}

func (c call) onScreen(t *testing.T, columns, lines int, name string, args ...string) *screen {
	t.Helper()
	s := &screen{t: t, cmd: exec.Command(program(t, name), args...), drawn: vt.NewSafeEmulator(columns, lines), ended: make(chan struct{})}
	s.cmd.Env = append(environment(c.env...), "TERM=xterm-256color")
	var err error
	if s.keyboard, err = pty.StartWithSize(s.cmd, &pty.Winsize{Cols: uint16(columns), Rows: uint16(lines)}); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(s.ended)
		b := make([]byte, 64<<10)
		for {
			n, err := s.keyboard.Read(b)
			_, _ = s.raw.Write(b[:n])   // to memory
			_, _ = s.drawn.Write(b[:n]) // to memory, too
			if err != nil {
				_ = s.cmd.Wait() // how it ended is in ProcessState
				return
			}
		}
	}()
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := s.drawn.Read(b)
			if err != nil {
				return
			}
			_, _ = s.keyboard.Write(b[:n]) // it may have ended
		}
	}()
	t.Cleanup(func() {
		_ = s.cmd.Process.Kill() // it may have ended
		<-s.ended
		s.keyboard.Close()
		if p, ok := s.drawn.InputPipe().(io.Closer); ok { // its own Close races with Read
			p.Close()
		}
		if t.Failed() {
			t.Logf("%s %q:\n%s", name, args, s.text())
		}
	})
	return s
}

// text is what is to be seen, without the spaces at the ends of lines.
func (s *screen) text() string {
	return lineEnds.ReplaceAllString(ansi.Strip(s.drawn.Render()), "")
}

var lineEnds = regexp.MustCompile(`(?m) +$`)

func (s *screen) press(keys string) {
	s.t.Helper()
	if _, err := s.keyboard.WriteString(keys); err != nil {
		s.t.Fatal(err)
	}
}

// shows waits until a pattern is to be seen.
func (s *screen) shows(pattern string) {
	s.t.Helper()
	re := regexp.MustCompile("(?m)" + pattern)
	for deadline := time.Now().Add(30 * time.Second); !re.MatchString(s.text()); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s on\n%s", pattern, s.text())
		}
	}
}

func (s *screen) resize(columns, lines int) {
	s.t.Helper()
	s.drawn.Resize(columns, lines)
	if err := pty.Setsize(s.keyboard, &pty.Winsize{Cols: uint16(columns), Rows: uint16(lines)}); err != nil {
		s.t.Fatal(err)
	}
}

// ends expects the program to end well, and the terminal to be as it was before.
func (s *screen) ends() {
	s.t.Helper()
	select {
	case <-s.ended:
	case <-time.After(stopTime):
		s.t.Fatal("it goes on")
	}
	if code := s.cmd.ProcessState.ExitCode(); code != 0 {
		s.t.Errorf("exit code %d", code)
	}
	if raw := s.raw.String(); strings.LastIndex(raw, ansi.ResetModeAltScreenSaveCursor) < strings.LastIndex(raw, ansi.SetModeAltScreenSaveCursor) || strings.LastIndex(raw, ansi.ShowCursor) < strings.LastIndex(raw, ansi.HideCursor) {
		s.t.Errorf("the terminal is left in disorder: …%q", raw[max(len(raw)-200, 0):])
	}
}

// TestTopView sits at a terminal and looks at a fleet of simulated firewalls.
func TestTopView(t *testing.T) {
	t.Parallel()
	c, conn := newServer(t)
	agg := c.start(t, "aggregator", "--listen", "127.0.0.1:0", "--rules", file(t, "rules.yaml", fleetRules))
	url := agg.says(&agg.stderr, `msg=serving url=(http://[0-9.:]+)`)
	agg.until("it to be ready", func() bool { code, _ := get(t, url+"/readyz"); return code == 200 })
	flags := bus.Flags{NATSURL: strings.TrimPrefix(c.env[0], "NATS_URL=")}
	simulated, err := synth.NewFleet(synth.FleetConfig{
		Firewalls: 2, Rate: 200, Sources: 30, Open: 60, Linger: 20 * time.Millisecond, Bus: bus.Config{Flags: flags}, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() { gone <- simulated.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-gone; err != nil {
			t.Error(err)
		}
	})

	s := c.onScreen(t, 110, 30, "ctfleet", "top", "--every", "200ms", "--window", "60s")
	s.shows(`2 fresh · 0 firing`)
	s.shows(`^table fw-0 `)
	s.shows(`^new flows by source within 60 s, fleet`)
	source := events.Addr{Lo: 0xc6124201} // 198.18.66.1
	simulated.Attack(0, source, 4000)
	simulated.Attack(1, source, 3000)
	s.shows(`^! 198\.18\.66\.1 +7000 .*fw-0=4000 fw-1=3000`)
	s.shows(`^critical: new-flows-by-source: 198\.18\.66\.1 opened \d+ flows within 60 s`)

	s.press("d")
	s.shows(`^new flows by destination within 60 s, fleet`)
	s.press("s")
	s.shows(`^new flows by source within 60 s, fleet`)
	s.press("w")
	s.shows(`^new flows by source within 10 s`)
	s.press("W")
	s.shows(`^new flows by source within 60 s`)
	s.press("f")
	s.shows(`within 60 s, fw-0$`)
	s.shows(`^! 198\.18\.66\.1 +4000 `)
	s.press("F")
	s.shows(`within 60 s, fleet$`)
	s.press("mm")
	s.shows(`^unreplied flows by source`)
	s.press("m")
	s.shows(`^new flows by source`)
	s.press("/198.18.66.0/24\r")
	s.shows(`, of 198\.18\.66\.0/24$`)
	s.shows(`198\.18\.66\.1 +7000 +100\.0`)
	s.press("/\x15nonsense\r")
	s.shows(`within: nonsense.*"nonsense" is neither an address nor a prefix`)
	s.press("\x1b")
	s.shows(`^\? help`)
	s.press("p")
	s.shows(`^paused: this is of`)
	s.press(" ")
	s.press("\x1b[B\r") // down, Enter
	s.shows(`^198\.18\.66\.1, realm default`)
	s.shows(`new within 60 s +7000 .*fw-0=4000 fw-1=3000`)
	s.shows(`ports, a sample of \d+ events .*443`)
	s.resize(60, 20)
	s.shows(`^Esc back`)
	s.press("\x1b")
	s.shows(`^\? help`)
	s.press("?")
	s.shows(`Ctrl-C`)
	s.press("q")
	s.resize(40, 10)
	s.shows(`^! 198\.18\.66\.1 +7000 +100\.0$`)
	s.resize(110, 30)

	// The centre goes away: the picture stays, and says so. Then it is another that
	// answers, with what no terminal should get.
	agg.stop()
	s.shows(`^no answer: since \d\d:\d\d:\d\d, trying again; this is of .*is the aggregator running\?`)
	s.shows(`198\.18\.66\.1 +7000`)
	sub, err := conn.NC.Subscribe(events.SubjectQuery+".>", func(m *nats.Msg) {
		answer := nats.NewMsg(m.Reply)
		answer.Header.Set("Nats-Service-Error", "evil\u009b31m\x1b]0;owned\a words")
		answer.Header.Set("Nats-Service-Error-Code", "500")
		_ = conn.NC.PublishMsg(answer) // the test waits for it to be seen
	})
	if err != nil {
		t.Fatal(err)
	}
	s.shows(`no answer: .*evil.*words`)
	if err := sub.Unsubscribe(); err != nil {
		t.Fatal(err)
	}
	s.press("q")
	s.ends()
	if raw := s.raw.String(); strings.Contains(raw, "\x1b]0;owned") || strings.Contains(raw, "\u009b") || strings.Contains(raw, "\a words") {
		t.Error("an escape from the bus reached the terminal")
	}

	// Nobody answers from the start: it says so and ends, as everywhere.
	s = c.onScreen(t, 80, 24, "ctfleet", "top")
	<-s.ended
	if code := s.cmd.ProcessState.ExitCode(); code != 1 || !strings.Contains(s.raw.String(), "is the aggregator running?") {
		t.Errorf("exit code %d: %s", code, s.raw.String())
	}
}

// TestTopViewEnds ends it from outside, with no colours where none are wanted.
func TestTopViewEnds(t *testing.T) {
	t.Parallel()
	c, _ := newServer(t)
	agg := c.start(t, "aggregator", "--listen", "127.0.0.1:0")
	url := agg.says(&agg.stderr, `msg=serving url=(http://[0-9.:]+)`)
	agg.until("it to be ready", func() bool { code, _ := get(t, url+"/readyz"); return code == 200 })

	colour := regexp.MustCompile(`\x1b\[[0-9;]*[34][0-7]m`)
	s := c.onScreen(t, 80, 24, "ctfleet", "top")
	s.shows(`no firewall has reported`)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	s.ends()
	if !colour.MatchString(s.raw.String()) {
		t.Error("a terminal with colours gets none")
	}

	c.env = append(c.env, "NO_COLOR=1")
	s = c.onScreen(t, 80, 24, "ctfleet", "top")
	s.shows(`no firewall has reported`)
	s.press("\x03") // Ctrl-C
	s.ends()
	if got := colour.FindString(s.raw.String()); got != "" {
		t.Errorf("colours in spite of NO_COLOR: %q", got)
	}

	for want, args := range map[string][]string{
		"window 7s is not kept, these are: 10s, 60s": {"--window", "7s"},
		"--every: 1ms is not within 100ms to 1h0m0s": {"--every", "1ms"},
	} {
		s := c.onScreen(t, 80, 24, "ctfleet", append([]string{"top"}, args...)...)
		<-s.ended
		if code := s.cmd.ProcessState.ExitCode(); code != 2 || !strings.Contains(s.raw.String(), want) {
			t.Errorf("top %q: exit code %d: %s", args, code, s.raw.String())
		}
	}
}

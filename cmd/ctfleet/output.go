package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/bus"
)

// client are the flags of every command that asks the bus.
type client struct {
	bus.Flags
	Output string `short:"o" enum:"human,json,raw" default:"human" help:"human, json, or raw (tab-separated)."`
}

func (c *client) connect() (*bus.Conn, error) {
	return c.connectWith(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})))
}

func (c *client) connectWith(log *slog.Logger) (*bus.Conn, error) {
	host, _ := os.Hostname() // an empty name is fine
	return bus.Connect(bus.Config{Flags: c.Flags, Role: "operator", Name: fmt.Sprintf("%s-%d", host, os.Getpid()), Log: log})
}

// complain tells the operator about one thing that went wrong.
func complain(format string, args ...any) {
	fmt.Fprintln(os.Stderr, "ctfleet:", printable(fmt.Sprintf(format, args...)))
}

// printable makes a text safe on a terminal, whoever wrote it: errors can hold
// words that came from the bus. Line ends and tabs stay.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if hidden(r) && r != '\n' && r != '\t' {
			return unicode.ReplacementChar
		}
		return r
	}, s)
}

// printJSON writes v as one line of JSON that is safe on a terminal.
func printJSON(w io.Writer, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode JSON: %w", err)
	}
	_, err = fmt.Fprintln(w, escapeControls(string(data)))
	return err
}

// escapeControls writes the control and format characters that encoding/json
// lets through (DEL, C1, bidirectional overrides) as escapes. Within valid JSON
// they can only stand in strings.
func escapeControls(s string) string {
	if strings.IndexFunc(s, hidden) < 0 {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		switch {
		case !hidden(r):
			b.WriteRune(r)
		case r > 0xffff:
			b.WriteString("\\ufffd") // the tags of plane 14: nothing to keep
		default:
			fmt.Fprintf(&b, "\\u%04x", r)
		}
	}
	return b.String()
}

func hidden(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }

// table prints rows under a header: aligned for a person, tab-separated for raw.
type table struct {
	out  io.Writer
	tabs *tabwriter.Writer
}

func newTable(w io.Writer, format string, header ...string) *table {
	t := &table{out: w}
	if format != "raw" {
		t.tabs = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
		t.out = t.tabs
	}
	t.row(header)
	return t
}

func (t *table) row(cells []string) { fmt.Fprintln(t.out, strings.Join(cells, "\t")) }

func (t *table) add(cells ...any) {
	words := make([]string, len(cells))
	for i, c := range cells {
		words[i] = printable(fmt.Sprint(c))
	}
	t.row(words)
}

func (t *table) flush() error {
	if t.tabs == nil {
		return nil
	}
	return t.tabs.Flush()
}

// interactive reports whether somebody sits at the other end of f: every terminal, and
// nothing else, tells its size.
func interactive(f *os.File) bool {
	_, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	return err == nil
}

// terminal reports whether f is a terminal that understands escapes.
func terminal(f *os.File) bool { return interactive(f) && os.Getenv("TERM") != "dumb" }

// interruptible returns what read returns, or gives up when ctx ends: a read of
// standard input cannot be cancelled, and signals no longer end this process by
// themselves.
func interruptible[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type answer struct {
		v   T
		err error
	}
	done := make(chan answer, 1)
	go func() {
		v, err := read()
		done <- answer{v, err}
	}()
	select {
	case a := <-done:
		return a.v, a.err
	case <-ctx.Done():
		var none T
		return none, ctx.Err()
	}
}

// width is the number of columns of a terminal, 80 where it does not say.
func width(f *os.File) int {
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}

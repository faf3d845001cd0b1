//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// figure is one row of the table.
type figure struct {
	what   string
	ours   string
	others string // the same of a competitor, in the same run
	ratio  string
	target string // "": for information only
	met    bool
	why    string // a missed target's reason
}

// render writes the table with the machine above it, and the reasons of what
// was missed below.
func render(rows []figure) string {
	var b, reasons strings.Builder
	fmt.Fprintf(&b, "%s\n\n", machine())
	b.WriteString("| What | Ours | Others | Ratio | Target | |\n|---|---|---|---|---|---|\n")
	for _, f := range rows {
		verdict := ""
		switch {
		case f.target == "":
		case f.met:
			verdict = "met"
		default:
			verdict = "**missed**"
			why := f.why
			if why == "" {
				why = "Not explained."
			}
			fmt.Fprintf(&reasons, "- Missed: %s. %s\n", f.what, why)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", f.what, f.ours, f.others, f.ratio, f.target, verdict)
	}
	if reasons.Len() > 0 {
		fmt.Fprintf(&b, "\n%s", &reasons)
	}
	return b.String()
}

// machine says where the figures come from.
func machine() string {
	model := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(info)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	kernel := "unknown"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	nats := "unknown"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if d.Path == "github.com/nats-io/nats-server/v2" {
				nats = d.Version
			}
		}
	}
	return fmt.Sprintf("Taken on %s: %s, %d cores; Linux %s; %s; nats-server %s.",
		time.Now().UTC().Format(time.DateOnly), model, runtime.NumCPU(), kernel, runtime.Version(), nats)
}

// The table's place in a document.
const (
	beginMark = "<!-- make bench: begin -->\n"
	endMark   = "<!-- make bench: end -->\n"
)

// writeInto replaces what stands between the marks of a document; an empty text
// only looks for them.
func writeInto(name, text string) error {
	doc, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	before, rest, ok := bytes.Cut(doc, []byte(beginMark))
	_, after, ok2 := bytes.Cut(rest, []byte(endMark))
	if !ok || !ok2 {
		return fmt.Errorf("%s: no %q and %q", name, strings.TrimSpace(beginMark), strings.TrimSpace(endMark))
	}
	if text == "" {
		return nil
	}
	return os.WriteFile(name, slices.Concat(before, []byte(beginMark), []byte(text), []byte(endMark), after), 0o644)
}

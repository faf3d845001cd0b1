//go:build linux

// Command bench measures what ctfleet promises, as ratios against a competitor
// in the same run, and prints one table. A missed target stays in the table as
// missed, with the reason below it. It needs root; `make bench` runs it and
// writes the table into docs/reference/performance.md.
//
// Competitors run as processes of their own, so that the CPU time of one is not
// that of the traffic generator or of the NATS server. Runs are paired and the
// medians are compared: the machine may be shared. Each part of the table is a
// file, and puts back every setting of the kernel that it changes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// A part of the table is a file.
type part struct {
	name string
	run  func(context.Context) ([]figure, error)
}

// parts are the measurements, in the order of the table.
var parts = []part{
	{"wire", benchWire},
	{"capture", benchCapture},
	{"live", benchLive},
	{"loss", benchLoss},
	{"toll", benchToll},
	{"idle", benchIdle},
	{"generator", benchGenerator},
	{"resync", benchResync},
	{"flush", benchFlush},
	{"response", benchResponse},
	{"count", benchCount},
	{"memory", benchMemory},
	{"flood", benchFlood},
	{"seed", benchSeed},
	{"fleet", benchFleet},
	{"scale", benchScale},
	{"views", benchViews},
}

func main() {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	role := flag.String("role", "", "run one competitor and answer on standard output (used by this program itself)")
	netns := flag.String("netns", "", "network namespace of the competitor")
	url := flag.String("nats-url", "", "NATS server of the competitor")
	only := flag.String("only", "", "run only these parts, separated by commas: "+strings.Join(names, ", "))
	write := flag.String("write", "", "write the table into this file too, between its marks; only when all parts ran")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if *role != "" {
		err = compete(ctx, *role, *netns, *url)
	} else {
		err = run(ctx, *only, *write)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only, write string) error {
	wanted := strings.FieldsFunc(only, func(r rune) bool { return r == ',' })
	for _, w := range wanted {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == w }) {
			return fmt.Errorf("no part is called %q", w)
		}
	}
	if write != "" {
		if len(wanted) > 0 {
			return errors.New("-write takes the whole table, not -only a part of it")
		}
		if err := writeInto(write, ""); err != nil { // half an hour early
			return err
		}
	}
	var rows []figure
	var failed error
	for _, p := range parts {
		if len(wanted) > 0 && !slices.Contains(wanted, p.name) {
			continue
		}
		start := time.Now()
		fmt.Fprintf(os.Stderr, "measuring %s …", p.name)
		figures, err := p.run(ctx)
		fmt.Fprintf(os.Stderr, " %.0f s\n", time.Since(start).Seconds())
		rows = append(rows, figures...)
		if err != nil {
			// One part that cannot be taken is no reason to lose the others.
			err = fmt.Errorf("%s: %w", p.name, err)
			fmt.Fprintln(os.Stderr, err)
			failed = errors.Join(failed, err)
		}
		if ctx.Err() != nil {
			failed = ctx.Err()
			break
		}
	}
	text := render(rows)
	fmt.Print(text)
	if write != "" && failed == nil {
		return writeInto(write, text)
	}
	return failed
}

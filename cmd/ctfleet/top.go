package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type topCmd struct {
	client
	By       string `enum:"src,dst" default:"src" help:"Count by original source or destination (${default})."`
	Metric   string `enum:"new,active,unreplied" default:"new" help:"new: flows that began within the window; active: flows that are there now; unreplied: flows that ended within the window without an answer (${default})."`
	Window   string `default:"10s" placeholder:"DURATION" help:"The sliding window: 10s, 60s, or one of the rules' (${default})."`
	Firewall string `placeholder:"NAME" help:"Count one firewall instead of the fleet."`
	Realm    string `placeholder:"NAME" help:"The realm (default: default)."`
	Limit    int    `short:"n" default:"20" help:"Rows (${default})."`
	Once     bool   `help:"Print once and exit; otherwise refresh every second."`
}

func (c *topCmd) Run(ctx context.Context) error {
	window, err := time.ParseDuration(c.Window)
	if err != nil || window%time.Second != 0 || window <= 0 {
		return &exitError{2, fmt.Errorf("--window: %q is no window that is kept, these are: 10s, 60s, and those of the rules", c.Window)}
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	q := &events.TopQuery{By: c.By, Metric: c.Metric, WindowS: int(window / time.Second), Firewall: c.Firewall, Realm: c.Realm, Limit: c.Limit}
	for {
		var r events.TopReply
		if err := conn.Request(ctx, events.QuerySubject(events.QueryTop), q, &r); err != nil {
			if ctx.Err() != nil {
				return nil // told to stop while it asked
			}
			if _, ok := errors.AsType[*bus.RequestError](err); ok {
				return &exitError{2, err}
			}
			return noAggregator(err)
		}
		live := !c.Once && c.Output == "human"
		if live && terminal(os.Stdout) {
			fmt.Print("\x1b[H\x1b[2J")
		}
		if err := printTop(os.Stdout, c.Output, &r); err != nil || c.Once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// noAggregator explains the silence behind a question.
func noAggregator(err error) error {
	if errors.Is(err, bus.ErrNobody) {
		return fmt.Errorf("%w: is the aggregator running?", err)
	}
	return err
}

func printTop(w io.Writer, format string, r *events.TopReply) error {
	if format == "json" {
		return printJSON(w, r)
	}
	title := fmt.Sprintf("%s flows by %s", r.Metric, r.By)
	if r.Metric != events.MetricActive {
		title += fmt.Sprintf(" within %d s", r.WindowS)
	}
	if format == "human" {
		fmt.Fprintf(w, "%s, %s\n", title, r.Scope)
		for _, note := range notes(r) {
			fmt.Fprintln(w, "note:", note)
		}
	}
	t := newTable(w, format, "ADDRESS", "FLOWS", "FIREWALLS")
	for _, row := range r.Rows {
		var shares []string
		for fw, n := range row.Firewalls {
			shares = append(shares, fmt.Sprintf("%s=%d", fw, n))
		}
		slices.Sort(shares)
		t.add(row.Key, row.Value, strings.Join(shares, " "))
	}
	return t.flush()
}

func notes(r *events.TopReply) (out []string) {
	if len(r.Unknown) > 0 {
		out = append(out, "not known yet for "+strings.Join(r.Unknown, ", "))
	}
	if len(r.Stale) > 0 {
		out = append(out, "silent, so what they see is missing: "+strings.Join(r.Stale, ", "))
	}
	if r.Partial {
		out = append(out, "the aggregator has not counted for a whole window yet")
	}
	return out
}

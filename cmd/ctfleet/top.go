package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/alecthomas/kong"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/tui"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type topCmd struct {
	client
	By       string        `enum:"src,dst" default:"src" help:"Count by original source or destination (${default})."`
	Metric   string        `enum:"new,active,unreplied" default:"new" help:"new: flows that began within the window; active: flows that are there now; unreplied: flows that ended within the window without an answer (${default})."`
	Window   *string       `placeholder:"DURATION" help:"The sliding window: 10s, 60s, or one of the rules' (default: 10s; of the past 60s)."`
	Firewall string        `placeholder:"NAME" help:"Count one firewall instead of the fleet."`
	Realm    string        `placeholder:"NAME" help:"The realm (default: default)."`
	Limit    int           `short:"n" placeholder:"N" help:"Rows (default: 20; at a terminal 50, to scroll through)."`
	At       atTime        `placeholder:"TIME" help:"The past, from the aggregator's history: '2026-11-25 14:05' or 14:05 in local time, RFC 3339, or how long ago, such as -1h. Implies --once."`
	Every    time.Duration `default:"1s" help:"The time between two refreshes, 100ms at least (${default})."`
	Once     bool          `help:"Print once and exit."`
}

// Bounds of --every: what asks more often than it can be read only costs.
const leastEvery, mostEvery = 100 * time.Millisecond, time.Hour

// terminalRows is how many rows there are to scroll through.
const terminalRows = 50

func (c *topCmd) Run(ctx context.Context) error {
	var window time.Duration
	if c.Window != nil {
		var err error
		if window, err = time.ParseDuration(*c.Window); err != nil || window%time.Second != 0 || window <= 0 {
			return &exitError{2, fmt.Errorf("--window: %q is no window that is kept, these are: 10s, 60s, and those of the rules", *c.Window)}
		}
	}
	if c.Every < leastEvery || c.Every > mostEvery {
		return &exitError{2, fmt.Errorf("--every: %s is not within %s to %s", c.Every, leastEvery, mostEvery)}
	}
	var at int64
	if c.At != "" {
		t, err := past(string(c.At), time.Now())
		if err != nil {
			return &exitError{2, fmt.Errorf("--at: %w", err)}
		}
		at, c.Once = t.UnixMilli(), true
	}
	q := events.TopQuery{By: c.By, Metric: c.Metric, WindowS: int(window / time.Second), Firewall: c.Firewall, Realm: c.Realm, Limit: c.Limit, At: at}
	if !c.Once && c.Output == "human" && terminal(os.Stdout) && interactive(os.Stdin) {
		return c.watch(ctx, q)
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	for {
		var r events.TopReply
		if err := askTop(ctx, conn, &q, &r); err != nil {
			return quiet(ctx, err)
		}
		if at != 0 && r.At == 0 {
			return errors.New("the aggregator is of an older version, which answers about now: it keeps no history")
		}
		if !c.Once && c.Output == "human" && terminal(os.Stdout) {
			fmt.Print("\x1b[H\x1b[2J")
		}
		if err := printTop(os.Stdout, c.Output, &r); err != nil || c.Once {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Every):
		}
	}
}

// askTop asks once. What the aggregator refuses is a wrong use.
func askTop(ctx context.Context, conn *bus.Conn, q *events.TopQuery, r *events.TopReply) error {
	err := conn.Request(ctx, events.QuerySubject(events.QueryTop), q, r)
	if _, refused := errors.AsType[*bus.RequestError](err); refused {
		return &exitError{2, err}
	}
	return noAggregator(err)
}

// watch shows the view that one can press keys in. What cannot be answered at its
// beginning ends it like any other command; later it goes on with what it has.
func (c *topCmd) watch(ctx context.Context, q events.TopQuery) error {
	conn, err := c.connectWith(slog.New(slog.DiscardHandler)) // the view says it in its place
	if err != nil {
		return err
	}
	defer conn.Close()
	if q.Limit == 0 {
		q.Limit = terminalRows
	}
	if err := askTop(ctx, conn, &q, &events.TopReply{}); err != nil {
		return quiet(ctx, err)
	}
	return tui.Run(ctx, tui.Config{Query: q, Every: c.Every, Ask: func(ctx context.Context, kind string, question, answer events.Message) error {
		err := conn.Request(ctx, events.QuerySubject(kind), question, answer)
		switch away := conn.Connected(); {
		case err == nil:
			return nil
		case away != nil:
			return away
		case errors.Is(err, bus.ErrNobody):
			return noAggregator(bus.ErrNobody) // a line has no room for the subject
		case errors.Is(err, bus.ErrNoAnswer):
			return bus.ErrNoAnswer
		}
		return err
	}})
}

// atTime is a time as it was typed.
type atTime string

// Decode implements kong.MapperValue: a time ago begins like a flag, -1h, and is none.
func (t *atTime) Decode(ctx *kong.DecodeContext) error {
	if s, ok := ctx.Scan.Peek().Value.(string); ok && len(s) > 1 && s[0] == '-' && s[1] >= '0' && s[1] <= '9' {
		ctx.Scan.Pop()
		*t = atTime(s)
		return nil
	}
	return ctx.Scan.PopValueInto("time", (*string)(t))
}

// past reads a time as people write it, in the zone of now.
func past(s string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(strings.TrimSuffix(s, " ago")); err == nil {
		return now.Add(-ago.Abs()), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02 15:04", time.DateTime, "2006-01-02T15:04", "2006-01-02T15:04:05"} {
		if t, err := time.ParseInLocation(layout, s, now.Location()); err == nil {
			return t, nil
		}
	}
	for _, layout := range []string{"15:04", "15:04:05"} { // the last time it was that late
		t, err := time.Parse(layout, s)
		if err != nil {
			continue
		}
		day := time.Date(now.Year(), now.Month(), now.Day(), t.Hour(), t.Minute(), t.Second(), 0, now.Location())
		if day.After(now) {
			day = day.AddDate(0, 0, -1)
		}
		return day, nil
	}
	return time.Time{}, fmt.Errorf("%q is no time: '2026-11-25 14:05', 14:05, 2026-11-25T14:05:00Z, or -1h", s)
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
		if r.At != 0 {
			title += " from " + time.UnixMilli(r.At).Format("2006-01-02 15:04 MST") + " on"
		}
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

package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type alertsCmd struct {
	List    alertsListCmd    `cmd:"" default:"withargs" help:"What is firing."`
	Watch   alertsWatchCmd   `cmd:"" help:"Follow alerts as they fire and resolve, a line each."`
	Inspect alertsInspectCmd `cmd:"" help:"Everything known of one firing alert."`
}

type alertsListCmd struct {
	client
}

func (c *alertsListCmd) Run(ctx context.Context) error {
	r, err := firing(ctx, &c.client)
	if err != nil {
		return err
	}
	return printAlerts(os.Stdout, c.Output, r)
}

func printAlerts(w io.Writer, format string, r *events.AlertsReply) error {
	if format == "json" {
		return printJSON(w, r)
	}
	t := newTable(w, format, "ID", "SEVERITY", "RULE", "SCOPE", "KEY", "VALUE", "PEAK", "SINCE", "NOTE")
	for i := range r.Alerts {
		a := &r.Alerts[i]
		t.add(a.ID, a.Severity, a.Rule, a.Scope, a.Key, a.Value, a.Peak, time.UnixMilli(a.Started).Format(time.TimeOnly), strings.Join(a.Flags(), " "))
	}
	return t.flush()
}

type alertsInspectCmd struct {
	client
	ID string `arg:"" help:"The alert."`
}

func (c *alertsInspectCmd) Run(ctx context.Context) error {
	r, err := firing(ctx, &c.client)
	if err != nil {
		return err
	}
	for i := range r.Alerts {
		if a := &r.Alerts[i]; a.ID == c.ID {
			return printAlert(os.Stdout, c.Output, a)
		}
	}
	return fmt.Errorf("no alert %q is firing: ctfleet alerts list shows those that are", c.ID)
}

func printAlert(w io.Writer, format string, a *events.Alert) error {
	if format == "json" {
		return printJSON(w, a)
	}
	t := newTable(w, format, a.Rule, a.State)
	t.add("what", a.Text)
	t.add("severity", a.Severity)
	t.add("scope", a.Scope+", realm "+a.Realm)
	t.add("value", fmt.Sprintf("%v now, %v at its peak, threshold %v", a.Value, a.Peak, a.Count))
	for _, fw := range slices.Sorted(maps.Keys(a.Firewalls)) {
		t.add("firewall "+fw, a.Firewalls[fw])
	}
	for _, p := range a.Peers {
		t.add("peer (sample)", fmt.Sprintf("%s × %d", p.Value, p.Count))
	}
	for _, p := range a.Ports {
		t.add("port (sample)", fmt.Sprintf("%s × %d", p.Value, p.Count))
	}
	if a.Unreplied != nil {
		t.add("unreplied", fmt.Sprintf("%.0f%% of the flows that ended", 100**a.Unreplied))
	}
	t.add("flags", cmp.Or(strings.Join(a.Flags(), ", "), "none"))
	return t.flush()
}

func firing(ctx context.Context, c *client) (*events.AlertsReply, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var r events.AlertsReply
	if err := conn.Request(ctx, events.QuerySubject(events.QueryAlerts), &events.AlertsQuery{}, &r); err != nil {
		return nil, noAggregator(err)
	}
	return &r, nil
}

type alertsWatchCmd struct {
	client
	Since time.Duration `placeholder:"DURATION" help:"Begin this long ago instead of now."`
}

func (c *alertsWatchCmd) Run(ctx context.Context) error {
	if c.Since < 0 {
		return &exitError{2, fmt.Errorf("--since: must not be negative, is %s", c.Since)}
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	// Silence must mean that nothing fires, not that nothing can be heard.
	st, err := conn.State(ctx, bus.StreamAlerts)
	listen := errors.Is(err, bus.ErrDenied) && c.Since == 0 // a viewer's key
	if err != nil && !listen {
		return quiet(ctx, err)
	}
	if c.Output == "raw" {
		fmt.Println(strings.Join(watchedColumns, "\t"))
	}
	if listen {
		var heard echoes
		stop, err := conn.Subscribe(events.SubjectAlerts+".>", func(subject string, data []byte) {
			if now := time.Now(); !heard.again(subject, now) {
				c.print(subject, data, now)
			}
		})
		if err != nil {
			return err
		}
		defer stop()
		<-ctx.Done()
		return nil
	}
	var from bus.FollowFrom
	if c.Since > 0 {
		from.Time = st.Now.Add(-c.Since)
	}
	return conn.Follow(ctx, bus.StreamAlerts, from, func(m bus.Msg) { c.print(m.Subject, m.Data, m.Time) })
}

// echoes knows which alerts were heard a moment ago. The stream keeps one of what several
// aggregators say at the same time; who only listens hears each.
type echoes map[string]time.Time

// echoTime is less than the second after which an alert may be said again, and more than
// aggregators are apart.
const echoTime = 900 * time.Millisecond

// again reports whether the same was said of the same thing a moment ago.
func (e *echoes) again(subject string, now time.Time) bool {
	maps.DeleteFunc(*e, func(_ string, at time.Time) bool { return now.Sub(at) > echoTime })
	if _, heard := (*e)[subject]; heard {
		return true
	}
	if *e == nil {
		*e = echoes{}
	}
	(*e)[subject] = now
	return false
}

func (c *alertsWatchCmd) print(subject string, data []byte, at time.Time) {
	var a events.Alert
	if err := events.Unmarshal(data, &a); err != nil {
		complain("refused a message on %q: %v", subject, err)
		return
	}
	_ = printWatched(os.Stdout, c.Output, at, &a) // a closed pipe ends us by its signal
}

// watchedColumns are those of an alert as -o raw follows it. Times are in UTC.
var watchedColumns = []string{"TIME", "STATE", "ID", "SEVERITY", "RULE", "SCOPE", "REALM", "KEY", "VALUE", "PEAK", "FLAGS"}

// printWatched prints one alert that was published.
func printWatched(w io.Writer, format string, at time.Time, a *events.Alert) (err error) {
	flags := a.Flags()
	switch format {
	case "json":
		return printJSON(w, a)
	case "raw":
		_, err = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%v\t%v\t%s\n", at.UTC().Format("2006-01-02T15:04:05.000Z07:00"),
			a.State, a.ID, a.Severity, a.Rule, a.Scope, a.Realm, a.Key, a.Value, a.Peak, strings.Join(flags, " "))
		return err
	}
	note := ""
	if len(flags) > 0 {
		note = " [" + strings.Join(flags, ", ") + "]"
	}
	_, err = fmt.Fprintf(w, "%s  %-8s  %s\n", at.Local().Format("15:04:05.000"), a.State, printable(a.Text+note))
	return err
}

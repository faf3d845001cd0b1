package main

import (
	"context"
	"fmt"
	"os"
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
	if c.Output == "json" {
		return printJSON(os.Stdout, r)
	}
	t := newTable(os.Stdout, c.Output, "ID", "SEVERITY", "RULE", "SCOPE", "KEY", "VALUE", "PEAK", "SINCE", "NOTE")
	for i := range r.Alerts {
		a := &r.Alerts[i]
		t.add(a.ID, a.Severity, a.Rule, a.Scope, a.Key, a.Value, a.Peak, time.UnixMilli(a.Started).Format(time.TimeOnly), alertNote(a))
	}
	return t.flush()
}

// alertNote is what is special about an alert.
func alertNote(a *events.Alert) string {
	var words []string
	for _, flag := range []struct {
		is   bool
		word string
	}{{a.Allowlisted, "allowlisted"}, {a.Muted, "muted"}} {
		if flag.is {
			words = append(words, flag.word)
		}
	}
	return strings.Join(words, " ")
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
		a := &r.Alerts[i]
		if a.ID != c.ID {
			continue
		}
		if c.Output == "json" {
			return printJSON(os.Stdout, a)
		}
		t := newTable(os.Stdout, c.Output, a.Rule, a.State)
		t.add("what", a.Text)
		t.add("severity", a.Severity)
		t.add("scope", a.Scope+", realm "+a.Realm)
		t.add("value", fmt.Sprintf("%v now, %v at its peak, threshold %v", a.Value, a.Peak, a.Count))
		for fw, v := range a.Firewalls {
			t.add("firewall "+fw, v)
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
		t.add("flags", fmt.Sprintf("lossy %t, stale %t, approximate %t, allowlisted %t, muted %t", a.Lossy, a.Stale, a.Approximate, a.Allowlisted, a.Muted))
		return t.flush()
	}
	return fmt.Errorf("no alert %q is firing: ctfleet alerts list shows those that are", c.ID)
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
	if _, err := conn.State(ctx, bus.StreamAlerts); err != nil {
		return err
	}
	var from bus.FollowFrom
	if c.Since > 0 {
		from.Time = time.Now().Add(-c.Since)
	}
	return conn.Follow(ctx, bus.StreamAlerts, from, func(m bus.Msg) {
		var a events.Alert
		if err := events.Unmarshal(m.Data, &a); err != nil {
			complain("refused a message on %q: %v", m.Subject, err)
			return
		}
		if c.Output == "json" {
			_ = printJSON(os.Stdout, &a) // a closed pipe ends us by its signal
			return
		}
		fmt.Printf("%s  %-8s  %s\n", m.Time.Local().Format("15:04:05.000"), a.State, a.Text)
	})
}

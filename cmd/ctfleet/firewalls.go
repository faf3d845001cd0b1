package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type firewallsCmd struct {
	List    firewallsListCmd    `cmd:"" default:"withargs" help:"All firewalls, a line each."`
	Inspect firewallsInspectCmd `cmd:"" help:"Everything known of one firewall."`
	Mute    firewallsMuteCmd    `cmd:"" help:"Tell nobody of its alerts for a while, for maintenance. They fire all the same, and are acted upon."`
	Unmute  firewallsUnmuteCmd  `cmd:"" help:"Tell people of its alerts again."`
	Forget  firewallsForgetCmd  `cmd:"" help:"Take a firewall that is no more out of the fleet. Exit code 3 while it sends. One that sends again is there again."`
}

type firewallsListCmd struct {
	client
}

func (c *firewallsListCmd) Run(ctx context.Context) error {
	r, err := inventory(ctx, &c.client)
	if err != nil {
		return err
	}
	return printFirewalls(os.Stdout, c.Output, r)
}

func printFirewalls(w io.Writer, format string, r *events.FirewallsReply) error {
	if format == "json" {
		return printJSON(w, r)
	}
	t := newTable(w, format, "NAME", "REALM", "STATE", "AGE", "TABLE", "ACTIVE", "EVENTS/S", "LOST", "MISSING", "VERSION", "NOTES")
	for i := range r.Firewalls {
		f := &r.Firewalls[i]
		active := "unknown"
		if f.ActiveKnown {
			active = fmt.Sprint(f.Active)
			if f.Approximate {
				active = "~" + active
			}
		}
		table := "unknown"
		if f.Source == "" {
			table = fmt.Sprintf("%d/%d (%.1f%%)", f.Table.Count, f.Table.Limit, f.Table.Percent)
		}
		t.add(f.Firewall, f.Realm, f.State, time.Duration(f.AgeMS)*time.Millisecond, table,
			active, fmt.Sprintf("%.0f", f.EventsPerS), f.Lost, f.Missing, f.Version, remarks(f))
	}
	return t.flush()
}

func remarks(f *events.FirewallStatus) string {
	s := ""
	if f.Source != "" {
		s = "source-" + f.Source + " "
	}
	if f.AllowFlush {
		s += "flush "
	}
	if f.AllowBlock {
		s += "block "
	}
	if f.Rivals {
		s += "two-producers-with-this-name "
	}
	if f.MutedUntil > 0 {
		s += "muted-until-" + time.UnixMilli(f.MutedUntil).Format(time.RFC3339) + " "
	}
	if f.Behind {
		s += "behind "
	}
	if f.Differs {
		s += "config-differs "
	}
	if n := len(f.Problems); n > 0 {
		s += fmt.Sprintf("%d-problems ", n)
	}
	return s
}

type firewallsInspectCmd struct {
	client
	Name string `arg:"" help:"The firewall."`
}

func (c *firewallsInspectCmd) Run(ctx context.Context) error {
	r, err := inventory(ctx, &c.client)
	if err != nil {
		return err
	}
	for i := range r.Firewalls {
		if f := &r.Firewalls[i]; f.Firewall == c.Name {
			return printFirewall(os.Stdout, c.Output, f, r)
		}
	}
	return unknownFirewall(c.Name)
}

func unknownFirewall(name string) error {
	return fmt.Errorf("no firewall %q is known: ctfleet firewalls list shows the others", name)
}

// printFirewall shows one of the firewalls of an inventory.
func printFirewall(w io.Writer, format string, f *events.FirewallStatus, r *events.FirewallsReply) error {
	if format == "json" {
		return printJSON(w, f)
	}
	s := &f.Stream
	t := newTable(w, format, f.Firewall, f.State)
	t.add("realm", f.Realm)
	t.add("version", unless(!f.Behind, f.Version, "behind: the newest is "+r.Newest))
	t.add("config", unless(!f.Differs, f.Config, "most firewalls have "+r.Config))
	t.add("boot", f.Boot)
	t.add("started", time.UnixMilli(f.Started).Format(time.DateTime))
	if f.Source == "" {
		t.add("table", fmt.Sprintf("%d of %d (%.1f%%), %d buckets", f.Table.Count, f.Table.Limit, f.Table.Percent, f.Table.Buckets))
		t.add("kernel", fmt.Sprintf("drop %d, early_drop %d, insert_failed %d, invalid %d", f.Kernel.Drop, f.Kernel.EarlyDrop, f.Kernel.InsertFailed, f.Kernel.Invalid))
	} else {
		t.add("source", f.Source)
	}
	t.add("events", fmt.Sprintf("%d read, %d published, %d counted at the centre", s.Events, s.Published, f.Events))
	t.add("lost", fmt.Sprintf("%d in the socket, %d in the ring, %d at the bus, %d undecodable, %d missing at the centre", s.LostSocket, s.LostRing, s.LostBus, s.Undecodable, f.Missing))
	t.add("socket", fmt.Sprintf("%d of %d KiB used", s.BufferUsed>>10, s.Buffer>>10))
	t.add("ring", fmt.Sprintf("%d of %d KiB used, oldest batch %d ms", s.RingBytes>>10, s.RingLimit>>10, s.LagMS))
	t.add("linger", fmt.Sprintf("%d ms", s.LingerMS))
	t.add("epoch", fmt.Sprintf("%d, %d flows held, %d resyncs", s.Epoch, s.Live, s.Resyncs))
	t.add("allow flush", f.AllowFlush)
	t.add("allow block", f.AllowBlock)
	if f.MutedUntil > 0 {
		t.add("muted until", time.UnixMilli(f.MutedUntil).Format(time.DateTime))
	}
	for _, p := range f.Problems {
		t.add("problem", p)
	}
	return t.flush()
}

// unless adds a remark to a text where something is not as it should be.
func unless(good bool, text, remark string) string {
	if good {
		return text
	}
	return fmt.Sprintf("%s (%s)", text, remark)
}

func inventory(ctx context.Context, c *client) (*events.FirewallsReply, error) {
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return askInventory(ctx, conn)
}

func askInventory(ctx context.Context, conn *bus.Conn) (*events.FirewallsReply, error) {
	var r events.FirewallsReply
	if err := conn.Request(ctx, events.QuerySubject(events.QueryFirewalls), &events.FirewallsQuery{}, &r); err != nil {
		return nil, noAggregator(err)
	}
	return &r, nil
}

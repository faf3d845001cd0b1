package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// aboutFirewall are the flags of commands by which an operator says something of a
// firewall.
type aboutFirewall struct {
	client
	signing
	Name   string `arg:"" help:"The firewall."`
	Reason string `placeholder:"TEXT" help:"Why: kept in the audit."`
}

// connected checks the name and calls do with a connection and the operator's key.
func (c *aboutFirewall) connected(ctx context.Context, do func(context.Context, *bus.Conn, *seal.Signer) error) error {
	if err := events.CheckFirewall(c.Name); err != nil {
		return &exitError{2, err}
	}
	key, err := c.signer()
	if err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	return do(ctx, conn, key)
}

// find returns what the centre knows of the firewall; nil: nothing.
func (c *aboutFirewall) find(ctx context.Context, conn *bus.Conn) (*events.FirewallStatus, error) {
	r, err := askInventory(ctx, conn)
	if err != nil {
		return nil, err
	}
	for i := range r.Firewalls {
		if r.Firewalls[i].Firewall == c.Name {
			return &r.Firewalls[i], nil
		}
	}
	return nil, nil
}

type firewallsMuteCmd struct {
	aboutFirewall
	For time.Duration `required:"" placeholder:"DURATION" help:"For how long, at most 720h; 0 ends it."`
}

func (c *firewallsMuteCmd) Run(ctx context.Context) error {
	if c.For < 0 || c.For > events.MaxMute {
		return &exitError{2, fmt.Errorf("--for: %s is not within 0 to %s", c.For, events.MaxMute)}
	}
	return c.mute(ctx, c.For)
}

type firewallsUnmuteCmd struct{ aboutFirewall }

func (c *firewallsUnmuteCmd) Run(ctx context.Context) error { return c.mute(ctx, 0) }

// mute tells the responders, and waits until one confirms it.
func (c *aboutFirewall) mute(ctx context.Context, life time.Duration) error {
	return c.connected(ctx, func(ctx context.Context, conn *bus.Conn, key *seal.Signer) error {
		if life > 0 { // a name that nobody has would mute nobody
			f, err := c.find(ctx, conn)
			if err != nil {
				return err
			}
			if f == nil {
				return unknownFirewall(c.Name)
			}
		}
		clock, err := conn.BucketClock(ctx, bus.BucketGuard)
		if err != nil {
			return err
		}
		now := clock.At(time.Now())
		m := &events.Mute{Firewall: c.Name, Reason: c.Reason, Time: now.UnixMilli()}
		what, done := "unmutes "+c.Name, c.Name+" is muted no more"
		if life > 0 {
			m.Until = now.Add(life).UnixMilli()
			what = fmt.Sprintf("mutes %s for %s", c.Name, life)
			done = fmt.Sprintf("nobody is told of the alerts of %s for %s", c.Name, life)
		}
		heard := make(chan struct{}, 16)
		stop, err := conn.Subscribe(events.AuditSubject(events.ActorResponder, events.VerbMute), func(_ string, data []byte) {
			var a events.Act
			if events.Unmarshal(data, &a) == nil && a.Time == m.Time {
				select {
				case heard <- struct{}{}:
				default:
				}
			}
		})
		if err != nil {
			return err
		}
		defer stop()
		if err := record(ctx, conn, key, &events.Act{Verb: events.VerbMute, What: what, Reason: c.Reason}); err != nil {
			return err
		}
		if err := conn.Put(ctx, key, bus.BucketGuard, events.MuteKey(c.Name), m); err != nil {
			return err
		}
		select {
		case <-heard:
			fmt.Fprintln(os.Stderr, done)
			return nil
		case <-time.After(outcomeWait):
			return errors.New("no responder has confirmed it: is one running, and does it trust this key for guard?")
		case <-ctx.Done():
			return ctx.Err()
		}
	})
}

type firewallsForgetCmd struct{ aboutFirewall }

// Run has the centre forget the firewall, and waits until it has.
func (c *firewallsForgetCmd) Run(ctx context.Context) error {
	return c.connected(ctx, func(ctx context.Context, conn *bus.Conn, key *seal.Signer) error {
		f, err := c.find(ctx, conn)
		if err != nil {
			return err
		}
		if f == nil {
			return unknownFirewall(c.Name)
		}
		if f.State != events.StateSilent && f.State != events.StateStopped {
			return &exitError{3, fmt.Errorf("%s is %s: stop its producer first, only who is silent or stopped can be forgotten", c.Name, f.State)}
		}
		clock, err := conn.BucketClock(ctx, bus.BucketGuard)
		if err != nil {
			return err
		}
		if err := record(ctx, conn, key, &events.Act{Verb: events.VerbForget, What: "forgets " + c.Name, Reason: c.Reason}); err != nil {
			return err
		}
		d := &events.Dismissal{Firewall: c.Name, Boot: f.Boot, Sent: f.Sent, Reason: c.Reason, Time: clock.At(time.Now()).UnixMilli()}
		if err := conn.Put(ctx, key, bus.BucketGuard, events.DismissKey(c.Name), d); err != nil {
			return err
		}
		for begin := time.Now(); time.Since(begin) < outcomeWait; daemon.Sleep(ctx, 100*time.Millisecond) {
			now, err := c.find(ctx, conn)
			switch {
			case err != nil:
				return err
			case now == nil:
				fmt.Fprintln(os.Stderr, c.Name, "is forgotten")
				return nil
			case now.Boot != f.Boot || now.Sent > f.Sent:
				return &exitError{3, fmt.Errorf("%s sends again", c.Name)}
			}
		}
		return errors.New("the aggregator has not forgotten it: does it read the bucket " + bus.BucketGuard + "?")
	})
}

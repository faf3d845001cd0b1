package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
)

type bootstrapCmd struct {
	client
	EventsAge   time.Duration `default:"15m" help:"How long events are kept, at least 15m: a replay covers no more (${default})."`
	EventsBytes int64         `default:"2147483648" help:"How many bytes of events are kept for the whole fleet (${default})."`
	Memory      bool          `help:"Keep events and snapshots in memory. A restart of the server then loses them, which shows as a gap."`
	Replicas    int           `placeholder:"N" help:"On how many servers of a cluster each stream and bucket is kept: 1, 3 or 5. With 3, one server may be away (as they are, and new ones on 1)."`
	Anew        bool          `help:"Delete the streams of events, snapshots and last reports where they were made for one server, which cannot be replicated, and make them anew: what they keep is gone."`
	Wait        time.Duration `default:"0s" help:"Keep trying this long when the server is not there yet."`
}

func (c *bootstrapCmd) Run(ctx context.Context) error {
	if c.EventsAge < 15*time.Minute {
		return &exitError{2, fmt.Errorf("--events-age: %s is less than 15m", c.EventsAge)}
	}
	if c.EventsBytes < 1<<20 {
		return &exitError{2, fmt.Errorf("--events-bytes: %d is less than 1 MiB", c.EventsBytes)}
	}
	if c.Replicas != 0 && c.Replicas != 1 && c.Replicas != 3 && c.Replicas != 5 {
		return &exitError{2, fmt.Errorf("--replicas: %d is none of 1, 3 and 5", c.Replicas)}
	}
	deadline := time.Now().Add(c.Wait)
	conn, err := c.connect()
	for err != nil && time.Now().Before(deadline) && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "ctfleet:", printable(err.Error()), "(retrying)")
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
			conn, err = c.connect()
		}
	}
	if err != nil {
		return err
	}
	defer conn.Close()
	limits := bus.Limits{EventsAge: c.EventsAge, EventsBytes: c.EventsBytes, Memory: c.Memory, Replicas: c.Replicas}
	var made []string
	try := func() error {
		if err := c.makeRoom(ctx, conn, limits); err != nil {
			return err
		}
		more, err := conn.Bootstrap(ctx, limits, true)
		made = append(made, more...)
		return err
	}
	// Also the servers of a cluster that has only just come up have to find each other.
	for err = try(); err != nil && !errors.Is(err, errUnfit) && time.Now().Before(deadline) && ctx.Err() == nil; err = try() {
		fmt.Fprintln(os.Stderr, "ctfleet:", printable(err.Error()), "(retrying)")
		daemon.Sleep(ctx, time.Second)
	}
	if err != nil {
		return err
	}
	return printChanged(os.Stdout, c.Output, made)
}

var errUnfit = errors.New("made for one server, and cannot be replicated")

// makeRoom deletes the streams that cannot be replicated as they are, if that is wanted.
func (c *bootstrapCmd) makeRoom(ctx context.Context, conn *bus.Conn, limits bus.Limits) error {
	if limits.Replicas <= 1 {
		return nil
	}
	unfit, err := conn.Unfit(ctx, limits)
	if err != nil || len(unfit) == 0 {
		return err
	}
	if !c.Anew {
		return fmt.Errorf("%s: %w; --anew deletes what they keep and makes them anew", strings.Join(unfit, ", "), errUnfit)
	}
	for _, name := range unfit {
		if err := conn.DeleteStream(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// printChanged prints the streams and buckets that were created or changed; raw is
// a line for each.
func printChanged(w io.Writer, format string, made []string) error {
	switch {
	case format == "json":
		return printJSON(w, map[string]any{"changed": append([]string{}, made...)})
	case format == "raw":
		for _, name := range made {
			fmt.Fprintln(w, name)
		}
	case len(made) == 0:
		fmt.Fprintln(w, "all streams are there")
	default:
		fmt.Fprintln(w, "created or changed:", strings.Join(made, ", "))
	}
	return nil
}

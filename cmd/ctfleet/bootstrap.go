package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
)

type bootstrapCmd struct {
	client
	EventsAge   time.Duration `default:"15m" help:"How long events are kept, at least 15m: a replay covers no more (${default})."`
	EventsBytes int64         `default:"2147483648" help:"How many bytes of events are kept for the whole fleet (${default})."`
	Memory      bool          `help:"Keep events and snapshots in memory. A restart of the server then loses them, which shows as a gap."`
	Wait        time.Duration `default:"0s" help:"Keep trying this long when the server is not there yet."`
}

func (c *bootstrapCmd) Run(ctx context.Context) error {
	if c.EventsAge < 15*time.Minute {
		return &exitError{2, fmt.Errorf("--events-age: %s is less than 15m", c.EventsAge)}
	}
	if c.EventsBytes < 1<<20 {
		return &exitError{2, fmt.Errorf("--events-bytes: %d is less than 1 MiB", c.EventsBytes)}
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
	made, err := conn.Bootstrap(ctx, bus.Limits{EventsAge: c.EventsAge, EventsBytes: c.EventsBytes, Memory: c.Memory}, true)
	if err != nil {
		return err
	}
	return printChanged(os.Stdout, c.Output, made)
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

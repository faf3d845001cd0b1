package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/demo"
	"github.com/ctfleet/ctfleet/internal/lab"
)

type demoCmd struct {
	Duration  time.Duration `help:"End after this long; without it, run until Ctrl-C."`
	Recording bool          `help:"Play a recording of the show instead, in which nothing is flushed. So does a host on which virtual firewalls are not permitted, or that is no Linux."`
	Output    string        `short:"o" enum:"human,json" default:"human" help:"human, or json: one object at the end, nothing else on standard output."`
	Listen    string        `default:"127.0.0.1:0" placeholder:"ADDR" help:"Serve the page and the API here (${default}: a free port)."`
	daemon.Access
	NATSListen string     `name:"nats-listen" default:"127.0.0.1:0" placeholder:"ADDR" help:"Where NATS is reached, without credentials (${default}: a free port)."`
	LogLevel   slog.Level `default:"error" help:"Log the roles at debug, info, warn or error, to standard error."`
}

func (c *demoCmd) Run() error {
	if c.Duration < 0 {
		return &exitError{2, fmt.Errorf("--duration: must not be negative, is %s", c.Duration)}
	}
	if err := c.CheckAccess(c.Listen); err != nil {
		return &exitError{2, err}
	}
	// The lab may have to live in a user and network namespace of its own; what
	// the host shall reach is opened before. The process inside gets the
	// signals by itself.
	var listeners []net.Listener
	if !lab.Inside() {
		for _, addr := range []string{c.Listen, c.NATSListen} {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("listen on %s: %w", addr, err)
			}
			listeners = append(listeners, l)
		}
	}
	recording := ""
	if c.Recording {
		recording = "--recording was given"
	} else if !lab.Inside() {
		if err := lab.Permitted(); err != nil {
			recording = err.Error()
		}
	}
	if recording == "" {
		inside, inherited, code, err := lab.Enter(context.Background(), listeners)
		if err != nil {
			return err
		}
		if !inside {
			return &exitError{code: code}
		}
		listeners = inherited
	}
	return c.show(listeners[0], listeners[1], recording)
}

// show runs the demo: in the lab, or a recording for the reason given.
func (c *demoCmd) show(http, nats net.Listener, recording string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	flags := daemon.Flags{LogFormat: "text", LogLevel: c.LogLevel}
	cfg := demo.Config{HTTP: http, Access: c.Access, NATS: nats, Recording: recording, Duration: c.Duration, Log: flags.Logger(os.Stderr)}
	program := "ctfleet"
	if strings.Contains(os.Args[0], "go-build") { // started by go run: there is no ctfleet to type
		program = "go run ./cmd/ctfleet"
	}
	screen := &demo.Screen{Out: os.Stdout, Terminal: terminal(os.Stdout), Header: []string{
		fmt.Sprintf("In a browser:          http://%s/", http.Addr()),
		fmt.Sprintf("In another terminal:   %s top --nats-url %s", program, cfg.URL()),
	}}
	screen.Width = func() int { return width(os.Stdout) }
	if c.Output == "json" {
		screen.Out, screen.Terminal = os.Stderr, false
	}
	cfg.Screen = screen
	screen.Clear()
	result, err := demo.Run(ctx, cfg)
	if err != nil {
		return err
	}
	if c.Output == "json" {
		if err := printJSON(os.Stdout, result); err != nil {
			return err
		}
	} else {
		fmt.Printf("\n%s", result.Summary())
	}
	if len(result.Problems) > 0 {
		return &exitError{1, errors.New("the demo did not go as it should: " + result.Problems[0])}
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/api"
	"github.com/ctfleet/ctfleet/internal/auth"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/internal/responder"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
)

type upCmd struct {
	producer.Options
	Aggregator aggregator.Options `embed:""`
	Responder  responder.Options  `embed:""`
	Listen     string             `default:"127.0.0.1:8080" placeholder:"ADDR" help:"Serve the page and the API here, read-only (${default}); port 0 is a free one."`
	daemon.Access
	NATSListen string     `name:"nats-listen" default:"127.0.0.1:4222" placeholder:"ADDR" help:"Where the embedded NATS server listens (${default}); port 0 is a free one."`
	Dir        string     `type:"path" placeholder:"DIR" help:"Where the embedded server keeps its streams and its URL (default: ctfleet in the user's cache directory)."`
	LogFormat  string     `enum:"text,json" default:"text" help:"text or json."`
	LogLevel   slog.Level `default:"info" help:"debug, info, warn or error."`
}

// upLimits keep one host's streams small.
var upLimits = bus.Limits{EventsAge: 15 * time.Minute, EventsBytes: 256 << 20, Memory: true}

func (c *upCmd) Run() error {
	rules, err := c.Aggregator.Load()
	if err == nil {
		err = c.Aggregator.CheckHistory()
	}
	if err == nil {
		err = c.CheckAccess(c.Listen)
	}
	if err != nil {
		return &exitError{2, err}
	}
	file, err := c.Responder.Load()
	if err != nil {
		return &exitError{2, err}
	}
	if _, err := seal.OpenTrust(c.Trust); err != nil {
		return &exitError{2, fmt.Errorf("--trust: %w", err)}
	}
	flags := daemon.Flags{LogFormat: c.LogFormat, LogLevel: c.LogLevel}
	log := flags.Logger(os.Stderr)
	if code := daemon.Run(log, func(ctx context.Context) error { return c.run(ctx, rules, file, log) }); code != 0 {
		return &exitError{code: code}
	}
	return nil
}

func (c *upCmd) run(ctx context.Context, rules rule.File, file policy.File, log *slog.Logger) error {
	if c.Dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			return fmt.Errorf("--dir: %w", err)
		}
		c.Dir = filepath.Join(cache, "ctfleet")
	}
	server, err := embedded.Start(embedded.Config{Listen: c.NATSListen, Dir: c.Dir, Log: log})
	if err != nil {
		return err
	}
	defer server.Close()
	urlFile, err := server.WriteURL(c.Dir)
	if err != nil {
		return err
	}
	listener, err := c.Open(c.Listen)
	if err != nil {
		return err
	}
	key, err := c.keys()
	if err != nil {
		return err
	}
	trust, err := seal.OpenTrust(c.Trust)
	if err != nil {
		return fmt.Errorf("--trust: %w", err)
	}
	reg := prometheus.NewRegistry()
	inside := bus.Config{Server: server}
	// All roles find the streams, whichever starts first.
	setup, err := bus.Connect(bus.Config{Server: server, Role: "up", Log: log})
	if err != nil {
		return err
	}
	_, err = setup.Bootstrap(ctx, upLimits, false)
	setup.Close()
	if err != nil {
		return err
	}
	p, err := producer.New(c.Options, producer.Dependencies{Bus: inside, Log: log, Registry: reg, Options: c.again})
	if err != nil {
		return err
	}
	a, err := aggregator.New(c.Aggregator, rules, aggregator.Dependencies{Bus: inside, Limits: upLimits, Log: log, Registry: reg})
	if err != nil {
		return err
	}
	notifier, err := c.Responder.Notify(log, reg)
	if err != nil {
		return err
	}
	r, err := responder.New(file, responder.Dependencies{Notifier: notifier, Bus: inside, Signer: key, Trust: trust, Policy: c.Responder.Load, Log: log, Registry: reg})
	if err != nil {
		return err
	}
	if listener != nil {
		fmt.Printf("Page: http://%s/\n", listener.Addr())
	}
	fmt.Printf("NATS: %s, credentials in %s\nTry in another terminal: NATS_URL=$(cat %s) ctfleet top\n", server.Addr(), urlFile, urlFile)
	if _, err := os.Stat(c.keyFile("operator")); err == nil && (c.AllowFlush || c.AllowBlock) {
		fmt.Printf("Sign what is to be deleted or blocked: --sign-key %s\n", c.keyFile("operator"))
	}
	health := daemon.Health{
		Ready: func() error { return errors.Join(p.Ready(), a.Ready(), r.Ready()) },
		Alive: func() error { return errors.Join(p.Alive(), a.Alive(), r.Alive()) },
	}
	manager := daemon.OpenManager(log)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return manager.Run(ctx, health) })
	g.Go(func() error {
		return api.Serve(ctx, listener, &c.Access, a, reg, daemon.Health{Ready: a.Ready, Alive: health.Alive}, log)
	})
	g.Go(func() error { return a.Run(ctx) })
	g.Go(func() error { return r.Run(ctx) })
	g.Go(func() error { return daemon.Reloads(ctx, log, reg, manager, p.Reload, a.Reload, r.Reload) })
	g.Go(func() error { return p.Run(ctx) })
	return g.Wait()
}

// again reads the producer's options once more: those of the file may have changed.
func (c *upCmd) again() (producer.Options, error) {
	var again cli
	err := daemon.Again("ctfleet", &again)
	again.Up.Trust = c.Trust // which may be that of the directory
	return again.Up.Options, err
}

// keys returns the responder's key. Where the operator gives no trust file, the
// directory gets one of its own, with a key for the responder and one for
// whoever may read the directory.
func (c *upCmd) keys() (*seal.Signer, error) {
	if c.Trust != "" {
		return c.Responder.Signer()
	}
	c.Trust = filepath.Join(c.Dir, "trust.yaml")
	for name, role := range map[string]string{"responder": seal.RoleResponder, "operator": seal.RoleOperator} {
		file := c.keyFile(name)
		if _, err := os.Stat(file); err == nil {
			continue
		}
		if err := auth.NewKey(file, c.Trust, &seal.Party{Name: name, Role: role, Verbs: auth.DefaultVerbs(role)}); err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
	}
	if c.Responder.SignKey == "" {
		c.Responder.SignKey = c.keyFile("responder")
	}
	return c.Responder.Signer()
}

func (c *upCmd) keyFile(name string) string { return filepath.Join(c.Dir, name+".nk") }

package main

import (
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/demo"
)

// siteCmd is what the firewalls of the compose file's demo run.
type siteCmd struct {
	Name        string        `arg:"" help:"The name of the firewall."`
	Number      int           `default:"1" help:"Tells its clients from those of other sites: 198.18.NUMBER.0/24."`
	AttackEvery time.Duration `help:"Attack this often, at the same moments as other sites do; without it nobody does."`
}

func (c *siteCmd) Run(ctx context.Context) error {
	flags := daemon.Flags{LogFormat: "text", LogLevel: slog.LevelInfo}
	site := demo.Site{Name: c.Name, Number: c.Number, Every: c.AttackEvery, Log: flags.Logger(os.Stderr)}
	return site.Run(ctx)
}

// Command ctfleet is the operator's tool, and all roles in one process.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/ctfleet/ctfleet/internal/daemon"
)

type cli struct {
	Demo      demoCmd      `cmd:"" help:"Watch three virtual firewalls, an attack and its flush. Needs nothing but Linux; elsewhere it plays a recording."`
	Up        upCmd        `cmd:"" help:"Watch this host: NATS, producer, aggregator and responder in one process."`
	Top       topCmd       `cmd:"" help:"Who has the most flows."`
	Observe   observeCmd   `cmd:"" help:"The events of the whole fleet as they come, or of the past."`
	Firewalls firewallsCmd `cmd:"" help:"The fleet: which firewalls, how full, how fresh, what was lost."`
	Alerts    alertsCmd    `cmd:"" help:"What is over a threshold."`
	Flush     flushCmd     `cmd:"" help:"Delete an address's entries from the firewalls' tables, with a receipt."`
	Block     blockCmd     `cmd:"" help:"Drop the packets of an address on the firewalls, for a time."`
	Allowlist allowlistCmd `cmd:"" help:"What must not be acted upon, on every responder and firewall."`
	Approvals approvalsCmd `cmd:"" help:"What policies in mode approve propose."`
	Guard     guardCmd     `cmd:"" help:"The circuit that stops all policies when a budget is spent."`
	Audit     auditCmd     `cmd:"" help:"What was decided and done."`
	Resync    resyncCmd    `cmd:"" help:"Ask firewalls to dump their tables anew."`
	Rules     rulesCmd     `cmd:"" help:"Check a rules file, and explain why one fired."`
	Replay    replayCmd    `cmd:"" help:"What rules would have made of a recording."`
	Auth      authCmd      `cmd:"" help:"Keys, certificates and permissions."`
	Decode    decodeCmd    `cmd:"" help:"Turn a message from the bus, on standard input, into JSON: nats sub --translate 'ctfleet decode' 'ct.v1.>'."`
	Bootstrap bootstrapCmd `cmd:"" help:"Create the streams on a NATS server."`
	Ready     readyCmd     `cmd:"" help:"Ask a daemon whether it is ready: exit 0 if so. For the health check of a container."`
	Site      siteCmd      `cmd:"" hidden:"" help:"Make a firewall with traffic of the container that this runs in: the demo of the compose file."`
	Version   versionCmd   `cmd:"" help:"Print the version, or those of the whole fleet."`

	Show   kong.VersionFlag `name:"version" env:"-" help:"Print the version and exit."`
	Config string           `type:"existingfile" placeholder:"FILE" help:"Read flags from this YAML file. Environment and command line win."`
}

// exitError ends the program with a code of its own: 2 usage, 3 refused by a
// guard. Everything else that fails is 1.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

func main() {
	var c cli
	k := daemon.Parse("ctfleet", "Watches the connection tables of a fleet of Linux firewalls: who opens flows fastest, who holds the most, which table is about to fill.", &c,
		kong.UsageOnError())
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	go func() {
		<-ctx.Done()
		stop() // the next signal ends the process at once
	}()
	k.BindTo(ctx, (*context.Context)(nil))
	err := k.Run()
	stop()
	var exit *exitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		if exit.err != nil {
			complain("%v", exit.err)
		}
		os.Exit(exit.code)
	default:
		complain("%v", err)
		os.Exit(1)
	}
}

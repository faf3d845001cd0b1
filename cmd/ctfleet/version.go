package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/responder"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type versionCmd struct {
	client
	Fleet bool `help:"Ask what the whole fleet runs: aggregators, responders and firewalls."`
}

// roleVersion is what one program of the fleet runs.
type roleVersion struct {
	Role    string `json:"role"`
	Name    string `json:"name"` // of the firewall, or of the host
	Version string `json:"version"`
	Config  string `json:"config,omitempty"`  // a firewall's digest
	Behind  bool   `json:"behind,omitempty"`  // its version is not the newest
	Differs bool   `json:"differs,omitempty"` // most firewalls have another configuration
}

// fleetVersions are those of a fleet.
type fleetVersions struct {
	Version string        `json:"version"` // this program's
	Newest  string        `json:"newest"`
	Fleet   []roleVersion `json:"fleet"`
}

func (c *versionCmd) Run(ctx context.Context) error {
	if !c.Fleet {
		if c.Output == "json" {
			return printJSON(os.Stdout, map[string]string{"version": daemon.ProgramVersion()})
		}
		fmt.Println(daemon.ProgramVersion())
		return nil
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	r, err := askInventory(ctx, conn)
	if err != nil {
		return err
	}
	v := fleetVersions{Version: daemon.ProgramVersion(), Newest: r.Newest}
	for _, role := range []struct{ name, service string }{{"aggregator", aggregator.ServiceName}, {"responder", responder.ServiceName}} {
		list, err := conn.Instances(ctx, role.service, time.Second)
		if err != nil {
			return err
		}
		if len(list) == 0 && role.service == aggregator.ServiceName {
			// One has answered, all the same: we may not be permitted to ask all.
			list = []bus.Instance{{Metadata: map[string]string{"version": r.Version}}}
		}
		v.add(role.name, list)
	}
	v.addFirewalls(r)
	return printVersions(os.Stdout, c.Output, &v)
}

// add adds the programs of a role that have answered.
func (v *fleetVersions) add(role string, list []bus.Instance) {
	for _, i := range list {
		version := i.Metadata["version"]
		v.Fleet = append(v.Fleet, roleVersion{Role: role, Name: i.Metadata["host"], Version: version, Behind: version != v.Newest})
	}
}

func (v *fleetVersions) addFirewalls(r *events.FirewallsReply) {
	for i := range r.Firewalls {
		f := &r.Firewalls[i]
		v.Fleet = append(v.Fleet, roleVersion{Role: "producer", Name: f.Firewall, Version: f.Version, Config: f.Config, Behind: f.Behind, Differs: f.Differs})
	}
}

func printVersions(w io.Writer, format string, v *fleetVersions) error {
	if format == "json" {
		return printJSON(w, v)
	}
	t := newTable(w, format, "ROLE", "NAME", "VERSION", "CONFIG", "NOTES")
	for _, p := range v.Fleet {
		notes := ""
		if p.Behind {
			notes += "behind "
		}
		if p.Differs {
			notes += "config-differs "
		}
		t.add(p.Role, p.Name, p.Version, p.Config, notes)
	}
	return t.flush()
}

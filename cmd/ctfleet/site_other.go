//go:build !linux

package main

import "github.com/ctfleet/ctfleet/internal/lab"

type siteCmd struct {
	Name string `arg:"" help:"The name of the firewall."`
}

func (*siteCmd) Run() error { return lab.Permitted() }

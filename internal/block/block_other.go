//go:build !linux

package block

import "github.com/ctfleet/ctfleet/internal/host"

// kernel is a connection to nftables, which there is on Linux only.
type kernel struct{}

func open(*host.Namespace) (*kernel, error) { return nil, host.ErrNotLinux }
func (*kernel) close()                      {}

func setsOf(*Config) sets { return nil }

//go:build !linux

package conntrack

import (
	"context"
	"time"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Reader is what NewReader would return, with methods that nobody reaches.
type Reader struct{}

// NewReader fails with [host.ErrNotLinux].
func NewReader(ReaderConfig) (*Reader, error) { return nil, host.ErrNotLinux }

func (*Reader) Receive(time.Duration, func([]events.Event)) (int, error) { return 0, host.ErrNotLinux }
func (*Reader) Drops() (uint64, error)                                   { return 0, host.ErrNotLinux }
func (*Reader) Pressure() (used, limit int, err error)                   { return 0, 0, host.ErrNotLinux }
func (*Reader) Buffer() (granted, wanted int)                            { return 0, 0 }
func (*Reader) Room() int                                                { return 0 }
func (*Reader) Undecodable() uint64                                      { return 0 }
func (*Reader) Stop()                                                    {}
func (*Reader) Close() error                                             { return nil }

// Conn is what Dial would return, with methods that nobody reaches.
type Conn struct{}

// Dial fails with [host.ErrNotLinux].
func Dial(*host.Namespace) (*Conn, error) { return nil, host.ErrNotLinux }

func (*Conn) Dump(context.Context, func([]events.Event) error) error { return host.ErrNotLinux }
func (*Conn) State() (State, error)                                  { return State{}, host.ErrNotLinux }
func (*Conn) Close() error                                           { return nil }
func (*Conn) Flush(context.Context, Match, FlushOptions) (FlushResult, error) {
	return FlushResult{}, host.ErrNotLinux
}

// Enabled fails with [host.ErrNotLinux].
func Enabled(*host.Namespace) (ipv4, ipv6 bool, err error) { return false, false, host.ErrNotLinux }

// ReadSysctls fails with [host.ErrNotLinux].
func ReadSysctls(*host.Namespace) (Sysctls, error) { return Sysctls{}, host.ErrNotLinux }

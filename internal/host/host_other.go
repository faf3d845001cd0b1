//go:build !linux

package host

import "net/netip"

// Namespace is a network namespace, which no other system has: the only one is nil.
type Namespace struct{}

// OpenNamespace fails with ErrNotLinux.
func OpenNamespace(string) (*Namespace, error) { return nil, ErrNotLinux }

// Close closes nothing.
func (*Namespace) Close() error { return nil }

// Identify fails with ErrNotLinux.
func Identify(*Namespace) (Identity, error) { return Identity{}, ErrNotLinux }

// Peers fails with ErrNotLinux.
func Peers(*Namespace, ...uint16) ([]netip.Addr, error) { return nil, ErrNotLinux }

// NetAdmin is false: there is no such capability.
func NetAdmin() bool { return false }

//go:build !linux

package lab

import (
	"context"
	"errors"
	"net"
)

var errNotLinux = errors.New("virtual firewalls need Linux")

// Permitted says that a lab cannot be built here.
func Permitted() error { return errNotLinux }

// Inside is false: nothing is entered.
func Inside() bool { return false }

// Enter fails: there are no namespaces.
func Enter(context.Context, []net.Listener) (inside bool, inherited []net.Listener, exitCode int, err error) {
	return false, nil, 0, errNotLinux
}

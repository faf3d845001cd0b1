//go:build linux

package lab

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// Permitted says whether a lab can be built here: nil where this process may create
// network namespaces, or may after [Enter] has put it into a user namespace.
// Otherwise the error says what is in the way and what would remove it.
func Permitted() error {
	direct := canCreate()
	if direct == nil {
		return nil
	}
	if err := probeUserNamespace(); err != nil {
		return fmt.Errorf("network namespaces are not permitted here: %s (%w)", obstacle(err, "/proc/sys"), err)
	}
	return nil
}

// canCreate tries what a lab needs first: a network namespace.
func canCreate() error {
	ns, err := host.NewNamespace()
	if err != nil {
		return err
	}
	return ns.Close()
}

// probeUserNamespace asks the kernel for what [Enter] needs, without running
// anything: the child gets its namespaces and identity first, and only then fails
// to execute a program that does not exist.
func probeUserNamespace() error {
	_, err := syscall.ForkExec("", []string{""}, &syscall.ProcAttr{Sys: newNamespaces()})
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return err
}

// newNamespaces makes a child root of a user and a network namespace of its own, as
// whom it remains the user that it is outside.
func newNamespaces() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
	}
}

// obstacle explains why user namespaces were refused with err, by the settings
// under sysctls that refuse them.
func obstacle(err error, sysctls string) string {
	setting := func(name string) string {
		value, err := os.ReadFile(sysctls + "/" + strings.ReplaceAll(name, ".", "/"))
		if err != nil {
			return "" // this kernel has no such setting
		}
		return strings.TrimSpace(string(value))
	}
	for _, s := range []struct{ name, bad, good string }{
		{"user.max_user_namespaces", "0", "63000"},
		{"user.max_net_namespaces", "0", "63000"},
		{"kernel.unprivileged_userns_clone", "0", "1"},
		{"kernel.apparmor_restrict_unprivileged_userns", "1", "0"},
	} {
		if setting(s.name) == s.bad {
			return fmt.Sprintf("%s is %s; run as root, or allow it with `sudo sysctl -w %s=%s`", s.name, s.bad, s.name, s.good)
		}
	}
	switch {
	case errors.Is(err, unix.ENOSPC):
		return "too many namespaces exist already; raise user.max_user_namespaces and user.max_net_namespaces"
	case errors.Is(err, unix.EINVAL):
		return "this kernel was built without user namespaces (CONFIG_USER_NS); run as root"
	case os.Geteuid() == 0:
		return "root without CAP_SYS_ADMIN, as in most containers; give the container `--cap-add SYS_ADMIN --cap-add NET_ADMIN`, and a seccomp profile that allows unshare"
	}
	return "the kernel or a security module refuses unprivileged user namespaces, as most containers do; run as root, or outside the container"
}

//go:build linux

package lab

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/ctfleet/ctfleet/internal/host"
)

// Sysctl reads a setting of the firewall's namespace, under its sysctl(8) name, such as
// "net.netfilter.nf_conntrack_count".
func (fw *Firewall) Sysctl(name string) (string, error) {
	path, err := sysctlPath(name)
	if err != nil {
		return "", err
	}
	var value []byte
	err = fw.NS.Do(func() (err error) {
		value, err = os.ReadFile(path)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", name, err)
	}
	return strings.TrimSpace(string(value)), nil
}

// SetSysctl changes a setting of the firewall's namespace.
func (fw *Firewall) SetSysctl(name, value string) error {
	return setSysctls(fw.NS, map[string]string{name: value})
}

// Entries is the number of entries in the firewall's connection-tracking table as
// the kernel counts them, which includes those that have expired and were not
// collected yet.
func (fw *Firewall) Entries() (int, error) {
	value, err := fw.Sysctl("net.netfilter.nf_conntrack_count")
	if err != nil {
		return 0, err
	}
	count, err := strconv.Atoi(value)
	if err != nil {
		return 0, fmt.Errorf("read number of entries: %w", err)
	}
	return count, nil
}

func setSysctls(ns *host.Namespace, values map[string]string) error {
	return ns.Do(func() error {
		for _, name := range slices.Sorted(maps.Keys(values)) {
			path, err := sysctlPath(name)
			if err == nil {
				err = writeSysctl(path, values[name])
			}
			if err != nil {
				return fmt.Errorf("set sysctl %s=%s: %w", name, values[name], err)
			}
		}
		return nil
	})
}

func writeSysctl(path, value string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0) // never create: a missing setting is an error
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// sysctlPath refuses everything outside net: only that belongs to a network
// namespace, the rest is the host's.
func sysctlPath(name string) (string, error) {
	if !strings.HasPrefix(name, "net.") || strings.Contains(name, "/") || strings.Contains(name, "..") {
		return "", fmt.Errorf("sysctl %q: not a setting of a network namespace, want net.…", name)
	}
	return "/proc/sys/" + strings.ReplaceAll(name, ".", "/"), nil
}

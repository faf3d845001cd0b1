//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
)

// largeTable makes room for so many entries, in all namespaces, until restore
// is called. Only the initial namespace may do that.
func largeTable(entries int) (restore func() error, err error) {
	var undo []func() error
	restore = func() error {
		var errs []error
		for _, f := range undo {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	for _, s := range []struct {
		name  string
		value int
	}{{"nf_conntrack_max", entries}, {"nf_conntrack_buckets", entries / 4}} {
		path := "/proc/sys/net/netfilter/" + s.name
		old, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(path, fmt.Append(nil, s.value), 0)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("make room for %d entries: %w", entries, err), restore())
		}
		undo = append(undo, func() error { return os.WriteFile(path, []byte(strings.TrimSpace(string(old))), 0) })
	}
	return restore, nil
}

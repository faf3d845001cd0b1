//go:build linux

package conntrack

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/ctfleet/ctfleet/internal/host"
)

// sysctlNames are in the order of the fields of Sysctls.
var sysctlNames = [...]string{"nf_conntrack_events", "nf_conntrack_acct", "nf_conntrack_timestamp", "nf_conntrack_tcp_loose", "nf_conntrack_max", "nf_conntrack_buckets"}

// ReadSysctls reads the settings of ns; nil means the process's own namespace.
func ReadSysctls(ns *host.Namespace) (Sysctls, error) {
	var files sysctlFiles
	defer files.close()
	s, err := files.read(ns)
	if err != nil {
		return Sysctls{}, fmt.Errorf("read conntrack settings: %w", err)
	}
	return s, nil
}

// sysctlFiles keeps the settings' files open. A file shows the settings of the
// namespace that it was opened in, so only the first read needs a thread there.
type sysctlFiles struct {
	opened bool
	files  [len(sysctlNames)]*os.File // nil for a setting that is not there
	buf    [32]byte
}

func (f *sysctlFiles) read(ns *host.Namespace) (s Sysctls, err error) {
	if !f.opened {
		if err := ns.Do(f.open); err != nil {
			f.close()
			return s, err
		}
	}
	values := [len(sysctlNames)]**int{&s.Events, &s.Acct, &s.Timestamp, &s.TCPLoose, &s.Max, &s.Buckets}
	for i, file := range f.files {
		if file == nil {
			continue
		}
		v, err := f.value(file)
		if err != nil {
			return Sysctls{}, fmt.Errorf("%s: %w", sysctlNames[i], err)
		}
		*values[i] = &v
	}
	return s, nil
}

func (f *sysctlFiles) open() (err error) {
	for i, name := range sysctlNames {
		if f.files[i], err = openSysctl(name); err != nil {
			return err
		}
	}
	f.opened = true
	return nil
}

// openSysctl returns nil where the setting does not exist.
func openSysctl(name string) (*os.File, error) {
	file, err := os.Open("/proc/sys/net/netfilter/" + name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	return file, err
}

func (f *sysctlFiles) value(file *os.File) (int, error) {
	n, err := file.ReadAt(f.buf[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return strconv.Atoi(string(bytes.TrimSpace(f.buf[:n])))
}

func (f *sysctlFiles) close() {
	for i, file := range f.files {
		if file != nil {
			file.Close()
			f.files[i] = nil
		}
	}
	f.opened = false
}

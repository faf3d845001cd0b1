//go:build linux

package conntrack

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
)

// socket is a netlink socket of the netfilter family. It stays out of the Go
// runtime's poller on purpose: registered there, every message would wake the
// poller's thread even while the reader naps.
type socket struct {
	fd     int
	port   uint32  // our netlink address
	waiter *waiter // of a socket that is waited for; ended by close

	mu     sync.Mutex
	users  int
	closed bool
}

// openSocket opens and binds a socket inside ns. setup, if not nil, runs before
// the socket joins the multicast groups (a bit per group, group 1 is bit 0), so
// that the buffer is in place when the first event arrives.
func openSocket(ns *host.Namespace, groups uint32, setup func(fd int) error) (*socket, error) {
	s := &socket{fd: -1}
	err := ns.Do(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open netlink socket: %w", err)
		}
		return nil
	})
	if err == nil {
		err = s.bind(groups, setup)
	}
	if err != nil {
		s.closeFiles()
		return nil, err
	}
	return s, nil
}

func (s *socket) bind(groups uint32, setup func(fd int) error) error {
	if setup != nil {
		if err := setup(s.fd); err != nil {
			return err
		}
	}
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		return fmt.Errorf("bind netlink socket: %w", host.NeedsNetAdmin(err))
	}
	name, err := unix.Getsockname(s.fd)
	if err != nil {
		return fmt.Errorf("read netlink address: %w", err)
	}
	if nl, ok := name.(*unix.SockaddrNetlink); ok {
		s.port = nl.Pid
	}
	return nil
}

// acquire keeps the descriptors open until release. It fails after close.
func (s *socket) acquire() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	s.users++
	return nil
}

func (s *socket) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users--
	if s.closed && s.users == 0 {
		s.closeFiles()
	}
}

// close ends waits. The descriptors are closed by the last one who uses them,
// so that their numbers cannot mean other files while a system call is under
// way.
func (s *socket) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.waiter != nil {
		s.waiter.close()
	}
	if s.users == 0 {
		s.closeFiles()
	}
}

func (s *socket) closeFiles() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
		s.fd = -1
	}
	if s.waiter != nil {
		s.waiter.closeTimer()
	}
}

// forceBuffer asks for a receive buffer of so many bytes, beyond the system's
// limit (net.core.rmem_max) where CAP_NET_ADMIN in the initial user namespace
// allows that, up to it elsewhere.
func forceBuffer(fd, bytes int) error {
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bytes)
	if errors.Is(err, unix.EPERM) {
		err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, bytes)
	}
	if err != nil {
		return fmt.Errorf("set receive buffer: %w", err)
	}
	return nil
}

// meminfo is what SO_MEMINFO returns (SK_MEMINFO_…, linux/sock_diag.h).
type meminfo struct {
	Queued     uint32 // bytes of messages waiting, with the kernel's overhead
	ReceiveMax uint32 // of so many: twice what was asked for with SO_RCVBUF
	_          [6]uint32
	Drops      uint32
}

func (s *socket) meminfo() (meminfo, error) {
	var m meminfo
	size := uint32(unsafe.Sizeof(m))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&m)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return m, os.NewSyscallError("getsockopt SO_MEMINFO", errno)
	}
	if size < uint32(unsafe.Sizeof(m)) { // before Linux 4.12 there was no drop count
		return m, fmt.Errorf("read socket memory: the kernel reports %d bytes, the drop count needs %d", size, unsafe.Sizeof(m))
	}
	return m, nil
}

//go:build linux

package main

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/producer"
)

// What our own reader uses, see internal/conntrack.
const (
	eventBuffer = 64 << 20
	drainVector = 256
	drainSlot   = 33 * 64
	drainNap    = 25 * time.Millisecond
)

// eventSocket joins the events NEW and DESTROY of a namespace.
func eventSocket(ns *host.Namespace, buffer int) (fd int, err error) {
	err = ns.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open netlink socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		return -1, fmt.Errorf("set receive buffer: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_NO_ENOBUFS, 1); err != nil {
		return -1, fmt.Errorf("set NETLINK_NO_ENOBUFS: %w", err)
	}
	const newAndDestroy = 1<<0 | 1<<2
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: newAndDestroy}); err != nil {
		return -1, fmt.Errorf("join conntrack events: %w", err)
	}
	return fd, nil
}

// drain is the floor: it takes events out of a socket with recvmmsg and looks
// at none. It naps as long as our reader does, and in the cheapest way that was
// found, on one processor.
func drain(ns *host.Namespace) (func() mark, error) {
	producer.Alone()
	fd, err := eventSocket(ns, eventBuffer)
	if err != nil {
		return nil, err
	}
	timer, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open timer: %w", err)
	}
	every := unix.NsecToTimespec(int64(drainNap))
	if err := unix.TimerfdSettime(timer, 0, &unix.ItimerSpec{Interval: every, Value: every}, nil); err != nil {
		return nil, fmt.Errorf("set timer: %w", err)
	}
	ticks, err := os.NewFile(uintptr(timer), "timer").SyscallConn()
	if err != nil {
		return nil, err
	}
	d := &drainer{fd: fd, buf: make([]byte, drainVector*drainSlot)}
	for i := range d.msgs {
		d.iovs[i].Base = &d.buf[i*drainSlot]
		d.iovs[i].SetLen(drainSlot)
		d.msgs[i].Iov = &d.iovs[i]
		d.msgs[i].SetIovlen(1)
	}
	go d.run(ticks)
	return func() mark { return mark{Events: d.n.Load()} }, nil
}

type drainer struct {
	fd   int
	msgs [drainVector]struct {
		unix.Msghdr
		size uint32
	}
	iovs [drainVector]unix.Iovec
	buf  []byte
	n    atomic.Uint64
}

func (d *drainer) run(ticks syscall.RawConn) {
	var expired uint64 // how often; we want the timer to be silent again
	for {
		err := ticks.Read(func(timer uintptr) bool {
			_, _, errno := unix.RawSyscall(unix.SYS_READ, timer, uintptr(unsafe.Pointer(&expired)), unsafe.Sizeof(expired))
			return errno != unix.EAGAIN
		})
		if err != nil {
			return
		}
		for {
			got, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(d.fd), uintptr(unsafe.Pointer(&d.msgs[0])), drainVector, unix.MSG_DONTWAIT, 0, 0)
			if errno != 0 {
				break
			}
			d.n.Add(uint64(got))
			if got < drainVector {
				break
			}
		}
	}
}

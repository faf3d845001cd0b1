//go:build linux

package conntrack

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is struct mmsghdr of sys/socket.h; Go pads it as C does.
type mmsghdr struct {
	unix.Msghdr
	size uint32 // of the datagram received
}

// mailbox receives many datagrams with one system call into memory that it
// keeps. It is for one goroutine.
type mailbox struct {
	msgs  []mmsghdr
	iovs  []unix.Iovec
	names []unix.RawSockaddrNetlink
	buf   []byte
	slot  int // bytes for each datagram
}

func newMailbox(datagrams, slot int) *mailbox {
	m := &mailbox{
		msgs:  make([]mmsghdr, datagrams),
		iovs:  make([]unix.Iovec, datagrams),
		names: make([]unix.RawSockaddrNetlink, datagrams),
		buf:   make([]byte, datagrams*slot),
		slot:  slot,
	}
	for i := range m.msgs {
		m.iovs[i].Base = &m.buf[i*slot]
		m.iovs[i].SetLen(slot)
		h := &m.msgs[i].Msghdr
		h.Iov = &m.iovs[i]
		h.SetIovlen(1)
		h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
		h.Namelen = unix.SizeofSockaddrNetlink
	}
	return m
}

// receive takes what is there, without waiting when flags has MSG_DONTWAIT. It
// returns the number of datagrams, 0 when there are none.
func (m *mailbox) receive(s *socket, flags int) (int, error) {
	call := unix.Syscall6
	if flags&unix.MSG_DONTWAIT != 0 {
		// The call does not block, so the Go runtime need not prepare to take
		// the processor away. That alone is a tenth of the producer's cost.
		call = unix.RawSyscall6
	}
	for {
		n, _, errno := call(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&m.msgs[0])),
			uintptr(len(m.msgs)), uintptr(flags), 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		case unix.EAGAIN:
			return 0, nil
		default:
			return 0, errno
		}
	}
}

var (
	errForeign = errors.New("datagram from another sender than the kernel")
	errTooLong = errors.New("datagram longer than its buffer")
)

// datagram returns the i-th datagram received. It is valid until the next
// receive. Only the kernel has port 0; any process of root's may address us.
func (m *mailbox) datagram(i int) ([]byte, error) {
	h := &m.msgs[i]
	switch {
	case m.names[i].Pid != 0 || h.Namelen < unix.SizeofSockaddrNetlink:
		h.Namelen = unix.SizeofSockaddrNetlink // it was overwritten, and is read again
		return nil, errForeign
	case h.Flags&unix.MSG_TRUNC != 0:
		return nil, errTooLong
	}
	return m.buf[i*m.slot : i*m.slot+int(h.size)], nil
}

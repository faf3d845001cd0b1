//go:build linux

package traffic

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// mmsghdr is the kernel's struct mmsghdr, which x/sys/unix does not have: a
// message, and how many bytes of it were sent or received. Go pads it as C does.
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// batch is a fixed number of packets that one system call sends or receives. The
// headers and vectors that the kernel reads are built once and point into the
// packets' memory.
type batch struct {
	memory []byte
	size   int // of one packet's place in memory
	iovs   []unix.Iovec
	hdrs   []mmsghdr
}

func newBatch(n, size int) *batch {
	b := &batch{memory: make([]byte, n*size), size: size, iovs: make([]unix.Iovec, n), hdrs: make([]mmsghdr, n)}
	for i := range n {
		b.iovs[i].Base = &b.memory[i*size]
		b.iovs[i].SetLen(size)
		b.hdrs[i].hdr.Iov = &b.iovs[i]
		b.hdrs[i].hdr.SetIovlen(1)
	}
	return b
}

func (b *batch) len() int { return len(b.hdrs) }

// packet is the place of packet i, all of it.
func (b *batch) packet(i int) []byte { return b.memory[i*b.size : (i+1)*b.size] }

// received is packet i as the last receive left it.
func (b *batch) received(i int) []byte { return b.packet(i)[:min(int(b.hdrs[i].len), b.size)] }

// setLen says how much of packet i is to be sent.
func (b *batch) setLen(i, n int) { b.iovs[i].SetLen(n) }

// send sends packets from..to-1 and returns how many the kernel took: at least one, or an error.
func (b *batch) send(fd, from, to int) (int, error) {
	return mmsg(unix.SYS_SENDMMSG, fd, b.hdrs[from:to], 0)
}

// receive waits for a packet as long as the socket's receive timeout allows, and
// returns how many there were. It returns unix.EAGAIN when there was none.
func (b *batch) receive(fd int) (int, error) {
	for i := range b.iovs {
		b.iovs[i].SetLen(b.size)
	}
	return mmsg(unix.SYS_RECVMMSG, fd, b.hdrs, unix.MSG_WAITFORONE)
}

func mmsg(call uintptr, fd int, hdrs []mmsghdr, flags uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(&hdrs[0])), uintptr(len(hdrs)), flags, 0, 0)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}

package bus

import (
	"io"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nats-io/nats.go"
)

// writeTimeout is how long a peer may take nothing.
const writeTimeout = 3 * time.Second

// quietDialer dials connections whose reads and writes the Go runtime does not
// hear of.
type quietDialer struct{ net.Dialer }

func newQuietDialer() *quietDialer {
	return &quietDialer{net.Dialer{Timeout: nats.DefaultTimeout}}
}

// Dial implements [nats.CustomDialer].
func (d *quietDialer) Dial(network, address string) (net.Conn, error) {
	c, err := d.Dialer.Dial(network, address)
	if err != nil {
		return nil, err
	}
	tcp, ok := c.(*net.TCPConn)
	if !ok {
		return c, nil
	}
	return newQuietConn(tcp)
}

// quietConn reads and writes with system calls that the Go runtime does not
// hear of. The socket does not block, so there is nothing to prepare for; but
// each call that the runtime hears of wakes its monitor thread out of a deep
// sleep, and that then polls every 20 µs for as long as anything runs. For a
// process that sends a hundred messages a second this was the largest part of
// its cost. Waiting is left to the runtime's poller, as ever.
type quietConn struct {
	*net.TCPConn
	raw      syscall.RawConn
	in, out  transfer
	deadline time.Time // for a write that must wait
}

// transfer is one read or write. It lives in the connection, so that a call
// allocates nothing: there is one of each at a time.
type transfer struct {
	buf  []byte
	n    int
	err  unix.Errno
	call func(fd uintptr) (done bool)
	try  func(fd uintptr) // the same for whoever does not wait
	done bool
}

func newQuietConn(tcp *net.TCPConn) (*quietConn, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		_ = tcp.Close()
		return nil, err
	}
	c := &quietConn{TCPConn: tcp, raw: raw}
	c.in.init(unix.SYS_READ)
	c.out.init(unix.SYS_WRITE)
	return c, nil
}

func (t *transfer) init(number uintptr) {
	t.call = func(fd uintptr) bool {
		for {
			n, _, errno := unix.RawSyscall(number, fd, uintptr(unsafe.Pointer(&t.buf[0])), uintptr(len(t.buf)))
			switch errno {
			case unix.EINTR:
				continue
			case unix.EAGAIN:
				return false
			}
			if t.n, t.err = int(n), errno; errno != 0 {
				t.n = 0
			}
			return true
		}
	}
	t.try = func(fd uintptr) { t.done = t.call(fd) }
}

// Read implements [net.Conn].
func (c *quietConn) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	c.in.buf = b
	err := c.raw.Read(c.in.call)
	c.in.buf = nil
	switch {
	case err != nil:
		return 0, err
	case c.in.err != 0:
		return 0, os.NewSyscallError("read", c.in.err)
	case c.in.n == 0:
		return 0, io.EOF
	}
	return c.in.n, nil
}

// Write implements [net.Conn].
func (c *quietConn) Write(b []byte) (written int, err error) {
	for written < len(b) {
		c.out.buf, c.out.done = b[written:], false
		if err = c.raw.Control(c.out.try); err == nil && !c.out.done {
			err = c.wait()
		}
		c.out.buf = nil
		if err == nil && c.out.err != 0 {
			err = os.NewSyscallError("write", c.out.err)
		}
		if err != nil {
			return written, err
		}
		written += c.out.n
	}
	return written, nil
}

// wait writes when the peer has made room, or fails at the deadline. Then the
// connection ends: the library would go on with it and leave out what it could
// not write, be it a subscription.
func (c *quietConn) wait() error {
	err := c.TCPConn.SetWriteDeadline(c.deadline)
	if err == nil {
		err = c.raw.Write(c.out.call)
	}
	if err != nil {
		_ = c.Close() // the error says why already
	}
	return err
}

// SetDeadline implements [net.Conn].
func (c *quietConn) SetDeadline(t time.Time) error {
	c.deadline = t
	return c.SetReadDeadline(t)
}

// SetWriteDeadline holds for the writes that follow. It is set with each, and
// costs the runtime a timer only where one has to wait.
func (c *quietConn) SetWriteDeadline(t time.Time) error {
	c.deadline = t
	return nil
}

//go:build linux

package conntrack

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const (
	// dumpDatagrams of dumpSlot bytes are fetched per system call. The kernel
	// builds dump datagrams as large as the reader's buffer was before, up to
	// 32 KiB.
	dumpDatagrams = 4
	dumpSlot      = 32 << 10

	// maxBatch is how many DELETE messages go into one system call. The
	// acknowledgements of all of them wait in the socket's buffer until they
	// are read, at ackCost bytes each.
	maxBatch     = 256
	ackSlot      = 64
	ackCost      = 1280
	deleteBuffer = 2 * maxBatch * ackCost

	// answerTimeout bounds the wait for the kernel's answer. It answers within
	// the system call that asks; a longer wait means that nothing will come.
	answerTimeout = 10 * time.Second
)

// Conn is the control plane of one namespace's table: dump, flush, state. It is
// cheap to open and for one goroutine at a time.
type Conn struct {
	ns     *host.Namespace
	read   *channel // for dumps; nil after one was abandoned
	write  *channel // for deletes, which go on while a dump does
	req    message
	rows   []events.Event // of a dump, on their way to the caller
	sysctl sysctlFiles
	batch  batch
	closed bool
}

// channel is a socket for requests and their answers.
type channel struct {
	*socket
	box *mailbox
	seq uint32 // of the last request; answers to others are stale
}

// Dial opens a connection to the table of ns; nil means the process's own
// namespace. Closing ns later closes the way to reopen a socket, which an
// aborted dump makes necessary.
func Dial(ns *host.Namespace) (*Conn, error) {
	c := &Conn{ns: ns}
	var err error
	if c.read, err = openChannel(ns, dumpDatagrams, dumpSlot, 0); err != nil {
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	if c.write, err = openChannel(ns, maxBatch, ackSlot, deleteBuffer); err != nil {
		c.read.close()
		return nil, fmt.Errorf("open conntrack: %w", err)
	}
	return c, nil
}

func openChannel(ns *host.Namespace, datagrams, slot, buffer int) (*channel, error) {
	sock, err := openSocket(ns, 0, func(fd int) error {
		if buffer > 0 {
			if err := forceBuffer(fd, buffer); err != nil {
				return err
			}
		}
		// An error's acknowledgement need not repeat the request.
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
			return fmt.Errorf("set NETLINK_CAP_ACK: %w", err)
		}
		timeout := unix.NsecToTimeval(int64(answerTimeout))
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return fmt.Errorf("set receive timeout: %w", err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &channel{socket: sock, box: newMailbox(datagrams, slot)}, nil
}

// Close closes the connection.
func (c *Conn) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	for _, ch := range []*channel{c.read, c.write} {
		if ch != nil {
			ch.close()
		}
	}
	c.sysctl.close()
	return nil
}

// reader returns the channel for reading, a new one where the last was
// abandoned.
func (c *Conn) reader() (*channel, error) {
	if c.closed {
		return nil, ErrClosed
	}
	if c.read == nil {
		ch, err := openChannel(c.ns, dumpDatagrams, dumpSlot, 0)
		if err != nil {
			return nil, err
		}
		c.read = ch
	}
	return c.read, nil
}

func (ch *channel) send(b []byte) error {
	if err := unix.Sendto(ch.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send request: %w", err)
	}
	return nil
}

// errNoAnswer should never be seen; see answerTimeout.
var errNoAnswer = fmt.Errorf("the kernel did not answer within %s", answerTimeout)

// answers hands every message that answers the requests first to last to fn,
// until fn says done.
func (ch *channel) answers(first, last uint32, fn func(msg []byte) (done bool, err error)) error {
	for {
		n, err := ch.box.receive(ch.socket, unix.MSG_WAITFORONE)
		if err != nil {
			// ENOBUFS: the answers did not fit into the buffer and are lost.
			return fmt.Errorf("receive answer: %w", err)
		}
		if n == 0 {
			return errNoAnswer
		}
		for i := range n {
			rest, err := ch.box.datagram(i)
			if err != nil {
				return fmt.Errorf("receive answer: %w", err)
			}
			for rest != nil {
				var msg []byte
				if msg, rest, err = cut(rest); err != nil {
					return fmt.Errorf("receive answer: message %w", err)
				}
				if seq := native.Uint32(msg[8:]); seq-first > last-first { // also right when the numbers wrap
					continue
				}
				if done, err := fn(msg); done || err != nil {
					return err
				}
			}
		}
	}
}

// status returns what an NLMSG_ERROR or NLMSG_DONE says: 0, or the error.
func status(msg []byte) (unix.Errno, error) {
	if len(msg) < nlmsgHeader+4 {
		return 0, fmt.Errorf("acknowledgement: %w", errTruncated)
	}
	return unix.Errno(-int32(native.Uint32(msg[nlmsgHeader:]))), nil
}

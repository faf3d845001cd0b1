//go:build linux

package traffic

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// messageLen is the length of each message, in bytes: its number and nothing.
const messageLen = 32

// conversation is one client's TCP connection to, or UDP exchange with, an echo
// server. It is used by one goroutine.
type conversation struct {
	network string // tcp or udp
	client  netip.Addr
	server  netip.AddrPort
	conn    net.Conn
	stop    func() bool // calls off closing conn when the context ends that the conversation was opened under
	number  uint64      // of the last message
	out, in [messageLen]byte
}

func (c *conversation) close() {
	c.stop()
	_ = c.conn.Close()
}

// exchange sends a message and waits for its echo. UDP may lose one: it is sent
// again in every interval, and the conversation has broken only when nothing came
// back within the timeout.
func (c *conversation) exchange(interval, timeout time.Duration) error {
	c.number++
	binary.BigEndian.PutUint64(c.out[:], c.number)
	deadline := time.Now().Add(timeout)
	for {
		if _, err := c.conn.Write(c.out[:]); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		until := deadline
		if again := time.Now().Add(interval); c.network == "udp" && again.Before(deadline) {
			until = again
		}
		err := c.awaitEcho(until)
		if errors.Is(err, os.ErrDeadlineExceeded) && until.Before(deadline) && time.Now().Before(deadline) {
			continue
		}
		return err
	}
}

// awaitEcho reads until the last message has come back. Echoes of earlier ones,
// which came late, are passed over.
func (c *conversation) awaitEcho(until time.Time) error {
	if err := c.conn.SetReadDeadline(until); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	for {
		if _, err := io.ReadFull(c.conn, c.in[:]); err != nil {
			return fmt.Errorf("wait for echo: %w", err)
		}
		if c.in == c.out {
			return nil
		}
	}
}

// echoTCP serves every connection until the listener closes, and each until it ends or ctx does.
func echoTCP(ctx context.Context, l net.Listener, work *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		work.Go(func() {
			stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
			defer stop()
			_, _ = io.Copy(conn, conn) // its end shows at the client
			_ = conn.Close()
		})
	}
}

// echoUDP sends every datagram back until the socket closes.
func echoUDP(conn *net.UDPConn) {
	var message [messageLen]byte
	for {
		n, from, err := conn.ReadFromUDPAddrPort(message[:])
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = conn.WriteToUDPAddrPort(message[:n], from) // a lost echo shows at the client
		}
	}
}

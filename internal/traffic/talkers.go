//go:build linux

package traffic

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/lab"
)

// Talk describes ordinary traffic: clients that keep up conversations with echo servers.
type Talk struct {
	// Clients and Servers are addresses of the client and the server side. Each
	// client talks to one server, in turn, of those of its own address family.
	Clients, Servers []netip.Addr
	Port             uint16 // of the servers, TCP and UDP; 0 means 7, echo

	// Kept is how many conversations each client keeps up in each of TCP and UDP.
	Kept int
	// NewPerSecond is how many short conversations, of one message, are begun in a
	// second besides: by the clients in turn, TCP and UDP alternating.
	NewPerSecond float64
	// Interval is between the messages of a kept conversation; 0 means half a second.
	Interval time.Duration
	// Timeout is how long an echo may take, before its conversation counts as
	// broken; 0 means two seconds.
	Timeout time.Duration
}

// Addresses returns the first n addresses of a prefix, fewer where it has no more.
func Addresses(p netip.Prefix, n int) []netip.Addr {
	var list []netip.Addr
	for a := p.Masked().Addr(); len(list) < n && p.Contains(a); a = a.Next() {
		list = append(list, a)
	}
	return list
}

// TalkStats counts since the start.
type TalkStats struct {
	Opened uint64 // conversations, kept and short ones
	Echoed uint64 // messages that came back
	Broken uint64 // conversations that could not be opened, ended, or got no echo in time; a kept one is opened anew
}

// Talkers is ordinary traffic under way.
type Talkers struct {
	fw     *lab.Firewall
	talk   Talk
	cancel context.CancelFunc
	work   sync.WaitGroup

	opened, echoed, broken atomic.Uint64
}

// Start opens the servers and all kept conversations, each of which has had an echo
// when Start returns, and keeps them up until ctx ends or Close is called.
func Start(ctx context.Context, fw *lab.Firewall, talk Talk) (*Talkers, error) {
	if talk.Port == 0 {
		talk.Port = 7
	}
	if talk.Interval == 0 {
		talk.Interval = 500 * time.Millisecond
	}
	if talk.Timeout == 0 {
		talk.Timeout = 2 * time.Second
	}
	if err := talk.validate(fw); err != nil {
		return nil, fmt.Errorf("start talkers: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	t := &Talkers{fw: fw, talk: talk, cancel: cancel}
	if err := t.start(ctx); err != nil {
		t.Close()
		return nil, fmt.Errorf("start talkers: %w", err)
	}
	return t, nil
}

func (t *Talkers) start(ctx context.Context) error {
	for _, server := range t.talk.Servers {
		if err := t.serve(ctx, netip.AddrPortFrom(server, t.talk.Port)); err != nil {
			return fmt.Errorf("echo server on %s: %w", server, err)
		}
	}
	var kept []*conversation
	for i, client := range t.talk.Clients {
		for range t.talk.Kept {
			for _, network := range []string{"tcp", "udp"} {
				c, err := t.open(ctx, network, client, t.talk.server(i))
				if err == nil {
					err = c.exchange(t.talk.Interval, t.talk.Timeout)
				}
				if err != nil {
					for _, c := range kept {
						c.close()
					}
					return fmt.Errorf("%s from %s: %w", network, client, err)
				}
				t.echoed.Add(1)
				kept = append(kept, c)
			}
		}
	}
	for i, c := range kept {
		// Spread over the interval, so that they do not all talk at once.
		phase := t.talk.Interval * time.Duration(i) / time.Duration(len(kept))
		t.work.Go(func() { t.keep(ctx, c, phase) })
	}
	if t.talk.NewPerSecond > 0 {
		t.work.Go(func() { t.openShort(ctx) })
	}
	return nil
}

// Stats returns the counts so far.
func (t *Talkers) Stats() TalkStats {
	return TalkStats{Opened: t.opened.Load(), Echoed: t.echoed.Load(), Broken: t.broken.Load()}
}

// Close ends all conversations, which does not count as breaking them, and the servers.
func (t *Talkers) Close() {
	t.cancel()
	t.work.Wait()
}

// server is the address that client i talks to. The validated talk has one.
func (talk Talk) server(i int) netip.AddrPort {
	var family []netip.Addr
	for _, s := range talk.Servers {
		if s.Is4() == talk.Clients[i].Is4() {
			family = append(family, s)
		}
	}
	if len(family) == 0 {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(family[i%len(family)], talk.Port)
}

func (talk Talk) validate(fw *lab.Firewall) error {
	for i, c := range talk.Clients {
		switch {
		case !lab.ClientPrefix4.Contains(c) && !lab.ClientPrefix6.Contains(c):
			return fmt.Errorf("client %s: not at the client side", c)
		case c.Is6() && !fw.IPv6:
			return fmt.Errorf("client %s: firewall %s does not forward IPv6", c, fw.Name)
		case !talk.server(i).IsValid():
			return fmt.Errorf("client %s: no server of its address family", c)
		}
	}
	for _, s := range talk.Servers {
		if atServer := lab.ServerPrefix4.Contains(s) || fw.IPv6 && lab.ServerPrefix6.Contains(s); !atServer {
			return fmt.Errorf("server %s: not at the server side", s)
		}
	}
	if talk.Kept < 0 || talk.NewPerSecond < 0 || talk.Interval < 0 || talk.Timeout < 0 {
		return errors.New("a negative number")
	}
	if talk.NewPerSecond > 0 && len(talk.Clients) == 0 {
		return errors.New("new conversations without clients")
	}
	return nil
}

// keep sends a message in every interval until ctx ends, and opens the conversation
// anew when it breaks.
func (t *Talkers) keep(ctx context.Context, c *conversation, phase time.Duration) {
	defer func() { c.close() }()
	for wait := phase; daemon.Sleep(ctx, wait); wait = t.talk.Interval {
		err := c.exchange(t.talk.Interval, t.talk.Timeout)
		if err == nil {
			t.echoed.Add(1)
			continue
		}
		if ctx.Err() != nil {
			return
		}
		t.broken.Add(1)
		c.close()
		for {
			again, err := t.open(ctx, c.network, c.client, c.server)
			if err == nil {
				c = again
				break
			}
			if !daemon.Sleep(ctx, t.talk.Interval) {
				return
			}
		}
	}
}

// openShort begins short conversations at the rate asked for.
func (t *Talkers) openShort(ctx context.Context) {
	start := time.Now()
	for n := 0; ; n++ {
		due := start.Add(time.Duration(float64(n+1) / t.talk.NewPerSecond * float64(time.Second)))
		if !daemon.Sleep(ctx, time.Until(due)) {
			return
		}
		i := n / 2 % len(t.talk.Clients)
		network := []string{"tcp", "udp"}[n%2]
		t.work.Go(func() {
			c, err := t.open(ctx, network, t.talk.Clients[i], t.talk.server(i))
			if err == nil {
				err = c.exchange(t.talk.Interval, t.talk.Timeout)
				c.close()
			}
			switch {
			case err == nil:
				t.echoed.Add(1)
			case ctx.Err() == nil:
				t.broken.Add(1)
			}
		})
	}
}

// open begins a conversation from client to server.
func (t *Talkers) open(ctx context.Context, network string, client netip.Addr, server netip.AddrPort) (*conversation, error) {
	d := net.Dialer{Timeout: t.talk.Timeout}
	local := netip.AddrPortFrom(client, 0)
	if network == "tcp" {
		d.LocalAddr = net.TCPAddrFromAddrPort(local)
	} else {
		d.LocalAddr = net.UDPAddrFromAddrPort(local)
	}
	c := &conversation{network: network, client: client, server: server}
	err := t.fw.Client.Do(func() (err error) {
		// With one address and no name to resolve, the dialer makes its socket on this thread.
		c.conn, err = d.DialContext(ctx, network, server.String())
		return err
	})
	if err != nil {
		return nil, err
	}
	c.stop = context.AfterFunc(ctx, func() { _ = c.conn.Close() })
	t.opened.Add(1)
	return c, nil
}

// serve starts the TCP and the UDP echo server on one address.
func (t *Talkers) serve(ctx context.Context, at netip.AddrPort) error {
	var tcp net.Listener
	var udp *net.UDPConn
	err := t.fw.Server.Do(func() (err error) {
		var config net.ListenConfig
		config.SetMultipathTCP(false)
		if tcp, err = config.Listen(ctx, "tcp", at.String()); err != nil {
			return err
		}
		if udp, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
			return errors.Join(err, tcp.Close())
		}
		return nil
	})
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, func() {
		_ = tcp.Close()
		_ = udp.Close()
	})
	t.work.Go(func() { echoTCP(ctx, tcp, &t.work) })
	t.work.Go(func() { echoUDP(udp) })
	return nil
}

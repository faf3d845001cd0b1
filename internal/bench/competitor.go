package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/ti-mo/conntrack"
	"github.com/ti-mo/netfilter"
	"golang.org/x/sync/errgroup"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/producer"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Roles of competitors.
const (
	roleProducer = "producer" // the whole producer: socket to acknowledged batch
	roleTimo     = "timo"     // ti-mo/conntrack's Listen: receives and does nothing
)

// mark is what a competitor has done and used so far.
type mark struct {
	Events uint64        `json:"events"`
	Lost   uint64        `json:"lost"`
	CPU    time.Duration `json:"cpu"`
}

// compete runs a competitor until standard input ends. It prints "ready", then
// answers each line with a mark.
func compete(ctx context.Context, role, netns, url string) error {
	ns, err := host.OpenNamespace(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	var progress func() mark
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	g, ctx := errgroup.WithContext(ctx)
	switch role {
	case roleProducer:
		opt := producer.Options{Name: "fw-a", Realm: events.RealmDefault, Trust: "none", BufferBytes: 64 << 20, Linger: 10 * time.Millisecond, RingBytes: 64 << 20}
		p, err := producer.New(opt, producer.Dependencies{Bus: bus.Config{Flags: bus.Flags{NATSURL: url}}, Namespace: ns, Log: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		g.Go(func() error { return p.Run(ctx) })
		for p.Ready() != nil {
			time.Sleep(10 * time.Millisecond)
		}
		progress = func() mark { s := p.Stream(); return mark{Events: s.Published, Lost: s.Lost()} }
	case roleTimo:
		if progress, err = listen(ns); err != nil {
			return err
		}
	default:
		return fmt.Errorf("no competitor is called %q", role)
	}
	fmt.Println("ready")
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		m := progress()
		m.CPU = cpu()
		if err := json.NewEncoder(os.Stdout).Encode(m); err != nil {
			return err
		}
	}
	stop()
	return g.Wait()
}

// listen receives events the way ti-mo/conntrack's users do, with as large a
// buffer as ours.
func listen(ns *host.Namespace) (func() mark, error) {
	var conn *conntrack.Conn
	err := ns.Do(func() (err error) {
		conn, err = conntrack.Dial(&netlink.Config{})
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := conn.SetReadBuffer(64 << 20); err != nil {
		return nil, err
	}
	received := make(chan conntrack.Event, 4096)
	failed, err := conn.Listen(received, 1, []netfilter.NetlinkGroup{netfilter.GroupCTNew, netfilter.GroupCTDestroy})
	if err != nil {
		return nil, err
	}
	var n atomic.Uint64
	go func() {
		for range received {
			n.Add(1)
		}
	}()
	go func() {
		for err := range failed {
			fmt.Fprintln(os.Stderr, "ti-mo Listen:", err)
		}
	}()
	return func() mark { return mark{Events: n.Load()} }, nil
}

// cpu is the processor time of this process, user and system.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// competitor is a running child process.
type competitor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(ctx context.Context, role string, ns *host.Namespace, url string) (*competitor, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	c := &competitor{cmd: exec.CommandContext(ctx, self, "-role", role, "-netns", ns.Path(), "-nats-url", url)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	line, err := c.out.ReadString('\n')
	if err != nil || strings.TrimSpace(line) != "ready" {
		return nil, fmt.Errorf("%s did not start: %q: %w", role, line, errors.Join(err, c.stop()))
	}
	return c, nil
}

func (c *competitor) mark() (m mark, err error) {
	if _, err = io.WriteString(c.in, "mark\n"); err != nil {
		return m, err
	}
	line, err := c.out.ReadBytes('\n')
	if err != nil {
		return m, err
	}
	return m, json.Unmarshal(line, &m)
}

func (c *competitor) stop() error {
	return errors.Join(c.in.Close(), c.cmd.Wait())
}

//go:build linux

package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/host"
)

// Roles of competitors.
const (
	roleProducer = "producer" // the whole producer: socket to acknowledged batch
	roleDrain    = "drain"    // recvmmsg alone: receives and looks at nothing
	roleBlocking = "blocking" // poll and one recvmsg per event, as a simple reader does
	roleDeaf     = "deaf"     // a listener that never reads
	roleTimo     = "timo"     // ti-mo/conntrack's Listen: receives and does nothing
	roleTool     = "tool"     // conntrack -E >/dev/null, a program of its own

	// No competitors: what shall not run in this process.
	roleServer     = "server"     // a NATS server, all streams in memory
	roleDisk       = "disk"       // a NATS server as ctfleet sets it up, on disk
	roleAggregator = "aggregator" // the centre
	roleFlood      = "flood"      // a counter in a flood of forged sources
)

// mark is what a competitor has done and used so far.
type mark struct {
	Events  uint64        `json:"events"` // received, by the producer: acknowledged; the tool does not say
	Lost    uint64        `json:"lost"`
	CPU     time.Duration `json:"cpu"`
	Mallocs uint64        `json:"mallocs"`

	// Of the producer.
	Live    uint64 `json:"live"`
	Resyncs uint64 `json:"resyncs"`

	Behind float64 `json:"behind"` // of the aggregator: ms from the server to the counting of the last batch
}

// compete runs a competitor until standard input ends. It prints "ready" and
// perhaps a word more, then answers each line with a mark.
func compete(ctx context.Context, role, netns, url string) error {
	switch role {
	case roleServer:
		return serve(ctx, streams)
	case roleDisk:
		return serve(ctx, bus.DefaultLimits)
	case roleAggregator:
		api, progress, end, err := aggregate(ctx, url)
		return answer(api, progress, end, err)
	case roleFlood:
		return floodCounter()
	}
	ns, err := host.OpenNamespace(netns)
	if err != nil {
		return err
	}
	defer ns.Close()
	var progress func() mark
	end := func() error { return nil }
	switch role {
	case roleProducer:
		progress, end, err = produce(ctx, ns, url)
	case roleDrain:
		progress, err = drain(ns)
	case roleBlocking:
		progress, err = block(ns)
	case roleDeaf:
		progress, err = deaf(ns)
	case roleTimo:
		progress, err = listen(ns)
	default:
		err = fmt.Errorf("no competitor is called %q", role)
	}
	return answer("", progress, end, err)
}

// answer says that a child is ready, and a word more, and answers each line with a mark.
func answer(word string, progress func() mark, end func() error, err error) error {
	if err != nil {
		return err
	}
	fmt.Println("ready", word)
	return errors.Join(marks(progress), end())
}

// marks answers each line of standard input with a mark, until it ends.
func marks(progress func() mark) error {
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		m := progress()
		m.CPU = cpu()
		var mem runtime.MemStats
		runtime.ReadMemStats(&mem)
		m.Mallocs = mem.Mallocs
		if err := json.NewEncoder(os.Stdout).Encode(m); err != nil {
			return err
		}
	}
	return nil
}

// cpu is the processor time of this process, user and system.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rival is a running competitor.
type rival interface {
	mark() (mark, error)
	pid() int
	stop() error
}

// start runs a competitor in a namespace.
func start(ctx context.Context, role string, ns *host.Namespace, url string) (rival, error) {
	if role == roleTool {
		return startTool(ctx, ns)
	}
	c, _, err := startSelf(ctx, "-role", role, "-netns", ns.Path(), "-nats-url", url)
	if err != nil {
		return nil, err // not a nil competitor in an interface
	}
	return c, nil
}

// competitor is a child process of this program.
type competitor struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// startSelf runs this program again and returns what it said when it was ready.
func startSelf(ctx context.Context, args ...string) (*competitor, string, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	c := &competitor{cmd: exec.CommandContext(ctx, self, args...)}
	c.cmd.Stderr = os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		return nil, "", err
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	c.out = bufio.NewReader(out)
	if err := c.cmd.Start(); err != nil {
		return nil, "", err
	}
	line, err := c.out.ReadString('\n')
	word, ok := strings.CutPrefix(line, "ready")
	if err != nil || !ok {
		return nil, "", fmt.Errorf("%s did not start: %q: %w", strings.Join(args, " "), line, errors.Join(err, c.stop()))
	}
	return c, strings.TrimSpace(word), nil
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

func (c *competitor) pid() int { return c.cmd.Process.Pid }

func (c *competitor) stop() error {
	return errors.Join(c.in.Close(), c.cmd.Wait())
}

// settled waits until a competitor has received want events since before, or
// nothing more comes, and returns its mark then.
func settled(c rival, before mark, want uint64) (mark, error) {
	for last := before; ; {
		time.Sleep(500 * time.Millisecond)
		now, err := c.mark()
		if err != nil || now.Events-before.Events >= want || now.Events == last.Events && now.CPU-last.CPU < 50*time.Millisecond {
			return now, err
		}
		last = now
	}
}

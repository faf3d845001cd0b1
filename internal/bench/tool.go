//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/ctfleet/ctfleet/internal/host"
)

// tool is conntrack-tools' own listener, its output thrown away.
type tool struct{ cmd *exec.Cmd }

func startTool(ctx context.Context, ns *host.Namespace) (*tool, error) {
	cmd := exec.CommandContext(ctx, "conntrack", "-E", "-e", "NEW,DESTROY", "-b", strconv.Itoa(eventBuffer))
	// Both streams go to /dev/null: at the end it says how many it showed.
	if err := ns.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("run conntrack (conntrack-tools): %w", err)
	}
	time.Sleep(200 * time.Millisecond) // it does not say when it listens
	return &tool{cmd}, nil
}

// mark knows only the processor time, from the scheduler's account of its one
// thread.
func (t *tool) mark() (m mark, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/schedstat", t.pid()))
	if err != nil {
		return m, err
	}
	ns, _, _ := strings.Cut(string(text), " ")
	spent, err := strconv.ParseInt(ns, 10, 64)
	m.CPU = time.Duration(spent)
	return m, err
}

func (t *tool) pid() int { return t.cmd.Process.Pid }

func (t *tool) stop() error {
	err := t.cmd.Process.Signal(syscall.SIGINT)
	var exit *exec.ExitError
	if waitErr := t.cmd.Wait(); !errors.As(waitErr, &exit) { // however it ends
		err = errors.Join(err, waitErr)
	}
	return err
}

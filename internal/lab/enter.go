//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// insideVar is set in the environment of a process that Enter started. Its value is
// how many listeners it inherited.
const insideVar = "CTFLEET_LAB_INSIDE"

// firstInherited is the descriptor of the first inherited listener: after standard
// input, output and error.
const firstInherited = 3

// stopGrace is how long the process inside may take to end once ctx has.
const stopGrace = 10 * time.Second

// Inside reports whether this is the process that Enter started inside: the
// listeners have been opened already.
func Inside() bool {
	_, ok := os.LookupEnv(insideVar)
	return ok
}

// Enter makes sure that the program runs where a lab can be built. Where it may
// create network namespaces already, as root may, nothing happens: inside is true,
// inherited is listeners. Otherwise the same program is executed again, with the
// same arguments, as root of a user and a network namespace of its own, and Enter
// waits for its end:
//
//	inside, listeners, code, err := lab.Enter(ctx, listeners)
//	if err != nil || !inside {
//		os.Exit(…)
//	}
//
// In the new process Enter returns inside at once, with the listeners that the
// first one had opened. They stay where they were opened: clients reach them on the
// host's loopback although the process lives in another network namespace, whose
// own loopback is up, and empty. Enter takes listeners over; they must be of TCP.
//
// In the first process it returns inside false and the exit code of the other, 128
// and the signal's number where a signal ended it. Standard streams are shared and
// signals are passed on, so ctx should not be one that ends with a signal: when it
// ends, the other process gets a SIGTERM. When the first process dies, the other is
// killed.
func Enter(ctx context.Context, listeners []net.Listener) (inside bool, inherited []net.Listener, exitCode int, err error) {
	if count, ok := os.LookupEnv(insideVar); ok {
		inherited, err := arrive(count)
		return err == nil, inherited, 0, err
	}
	if canCreate() == nil {
		return true, listeners, 0, nil
	}
	if err := Permitted(); err != nil {
		closeAll(listeners)
		return false, nil, 0, err
	}
	exitCode, err = reexecute(ctx, listeners)
	if err != nil {
		return false, nil, 0, fmt.Errorf("enter namespaces: %w", err)
	}
	return false, nil, exitCode, nil
}

// arrive is Enter's end in the new process.
func arrive(count string) ([]net.Listener, error) {
	// Children of this process are on their own.
	if err := os.Unsetenv(insideVar); err != nil {
		return nil, fmt.Errorf("enter namespaces: %w", err)
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 {
		return nil, fmt.Errorf("enter namespaces: %s=%q: not a number of listeners", insideVar, count)
	}
	var inherited []net.Listener
	for fd := firstInherited; fd < firstInherited+n; fd++ {
		f := os.NewFile(uintptr(fd), fmt.Sprintf("listener %d", fd))
		l, err := net.FileListener(f)
		err = errors.Join(err, f.Close()) // the listener has a copy
		if err != nil {
			return nil, fmt.Errorf("enter namespaces: inherit descriptor %d: %w", fd, err)
		}
		inherited = append(inherited, l)
	}
	if err := loopbackUp(nil); err != nil {
		return nil, fmt.Errorf("enter namespaces: %w", err)
	}
	return inherited, nil
}

// reexecute runs the program inside new namespaces and returns its exit code.
func reexecute(ctx context.Context, listeners []net.Listener) (int, error) {
	cmd := exec.CommandContext(ctx, "/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideVar+"="+strconv.Itoa(len(listeners)))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = newNamespaces()
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopGrace
	files, err := listenerFiles(listeners)
	// Once the child has its copies, ours must go: a port that nobody serves any more has to be closed.
	release := func() {
		closeAll(files)
		closeAll(listeners)
	}
	if err != nil {
		release()
		return 0, err
	}
	cmd.ExtraFiles = files

	forwarded := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT, unix.SIGUSR1, unix.SIGUSR2}
	sharesTerminal := inForeground()
	if !sharesTerminal {
		// A group of its own, so that a signal to our group does not reach it twice.
		cmd.SysProcAttr.Setpgid = true
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)

	// Pdeathsig is sent when the thread that forked ends, not the process: that
	// thread must stay for as long as the child lives.
	started, ended := make(chan error, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		ended <- cmd.Wait()
	}()
	err = <-started
	release()
	if err != nil {
		return 0, err
	}
	for {
		select {
		case s := <-signals:
			// The terminal sends Ctrl-C and Ctrl-\ to all of the foreground group,
			// hence to the child too.
			if sharesTerminal && slices.Contains([]os.Signal{unix.SIGINT, unix.SIGQUIT}, s) {
				continue
			}
			_ = cmd.Process.Signal(s) // it may have ended meanwhile
		case err := <-ended:
			return exitCodeOf(cmd, err)
		}
	}
}

// listenerFiles returns a descriptor for each listener, as far as it got.
func listenerFiles(listeners []net.Listener) ([]*os.File, error) {
	var files []*os.File
	for _, l := range listeners {
		tcp, ok := l.(*net.TCPListener)
		if !ok {
			return files, fmt.Errorf("listener on %s: a %T cannot be inherited", l.Addr(), l)
		}
		f, err := tcp.File()
		if err != nil {
			return files, fmt.Errorf("listener on %s: %w", l.Addr(), err)
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll[C io.Closer](closers []C) {
	for _, c := range closers {
		_ = c.Close()
	}
}

// inForeground says whether this process is in the foreground group of its terminal.
func inForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}

func exitCodeOf(cmd *exec.Cmd, err error) (int, error) {
	if cmd.ProcessState == nil {
		return 0, err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

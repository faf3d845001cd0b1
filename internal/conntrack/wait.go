//go:build linux

package conntrack

import (
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waiter puts a goroutine to sleep until a time, or until a socket has
// something to read if that is sooner. What it costs decides what an idle or a
// napping reader costs, so it is neither of the two plain ways:
//
//   - A thread that blocks in a system call makes the runtime's monitor take
//     its processor away. The monitor then polls every 20 µs for as long as
//     anything runs: half of the producer's cost at 30,000 events per second.
//   - time.Sleep wakes the monitor along with the sleeper, each time.
//
// The runtime's network poller does neither. It watches one epoll instance of
// ours, in which a timer stands always, and the socket only while we wait for
// it: whoever sends a message to a socket in there wakes us, and during a nap
// nobody must.
type waiter struct {
	file    *os.File // of the epoll instance, as the runtime's poller knows it
	raw     syscall.RawConn
	ready   func(fd uintptr) bool
	closed  atomic.Bool
	stopped atomic.Bool

	timer  int           // timerfd; setting it again clears what it has to tell
	sock   int           // to be waited for, -1 during a nap
	until  time.Duration // from now
	armed  bool
	failed error
	events [2]unix.EpollEvent
}

func newWaiter() (*waiter, error) {
	w := &waiter{timer: -1}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(epoll, true); err != nil { // or os.NewFile keeps it out of the poller
		_ = unix.Close(epoll)
		return nil, os.NewSyscallError("fcntl", err)
	}
	w.file = os.NewFile(uintptr(epoll), "epoll")
	w.ready = w.look
	if w.timer, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		err = os.NewSyscallError("timerfd_create", err)
	} else if err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, w.timer, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.timer)}); err != nil {
		err = os.NewSyscallError("epoll_ctl", err)
	} else {
		w.raw, err = w.file.SyscallConn()
	}
	if err != nil {
		w.close()
		w.closeTimer()
		return nil, fmt.Errorf("open timer: %w", err)
	}
	return w, nil
}

// nap sleeps for d whatever arrives.
func (w *waiter) nap(d time.Duration) error { return w.sleep(-1, d) }

// wait sleeps until something is there to be read from sock, for d at most. The
// kernel pays for it: whoever sends the message also wakes us.
func (w *waiter) wait(sock int, d time.Duration) error { return w.sleep(sock, d) }

// sleep is for one goroutine. After close, and when close comes meanwhile, it
// returns ErrClosed.
func (w *waiter) sleep(sock int, d time.Duration) error {
	w.sock, w.until, w.armed, w.failed = sock, max(d, 1), false, nil // a timer set to 0 is off
	err := w.raw.Read(w.ready)
	if err != nil && w.closed.Load() { // the poller's own error for this is not exported
		return ErrClosed
	}
	if err == nil {
		err = w.failed
	}
	return err
}

// look is called by the poller: once before it waits, and whenever the epoll
// instance has something to tell. It returns true when the wait is over.
func (w *waiter) look(epoll uintptr) bool {
	if !w.armed {
		// Only here, after the poller has begun to take notice of us: what
		// comes from now on is not missed.
		w.armed = true
		if !w.arm(epoll) {
			return true
		}
		if w.stopped.Load() { // before we set the timer; after, it goes off at once
			w.settle(epoll)
			return true
		}
		return false
	}
	// These calls do not block: the runtime need not hear of them.
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, epoll, uintptr(unsafe.Pointer(&w.events[0])), uintptr(len(w.events)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return w.fail("epoll_pwait", errno)
	}
	if n == 0 || errno != 0 {
		return false
	}
	w.settle(epoll)
	return true
}

// arm sets the timer and puts the socket beside it. It reports success.
func (w *waiter) arm(epoll uintptr) bool {
	if errno := w.set(w.until); errno != 0 {
		return !w.fail("timerfd_settime", errno)
	}
	return w.sock < 0 || w.control(epoll, unix.EPOLL_CTL_ADD)
}

// settle takes the socket out again.
func (w *waiter) settle(epoll uintptr) {
	if w.sock >= 0 {
		w.control(epoll, unix.EPOLL_CTL_DEL)
	}
}

func (w *waiter) set(d time.Duration) unix.Errno {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	_, _, errno := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(w.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0)
	return errno
}

func (w *waiter) control(epoll, op uintptr) bool {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.sock)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, op, uintptr(w.sock), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno == 0 || !w.fail("epoll_ctl", errno)
}

// stop ends a sleep, and every later one at once.
func (w *waiter) stop() {
	w.stopped.Store(true)
	_ = w.set(1) // fails only where there is no timer, and nobody sleeps
}

// fail keeps the error for sleep and ends the wait.
func (w *waiter) fail(call string, errno unix.Errno) bool {
	w.failed = os.NewSyscallError(call, errno)
	return true
}

// close ends a sleep, and every later one at once. The epoll instance goes when
// nobody sleeps on it any more, and the socket's place in it too.
func (w *waiter) close() {
	w.closed.Store(true)
	_ = w.file.Close()
}

// closeTimer is for when nobody sleeps any more.
func (w *waiter) closeTimer() {
	if w.timer >= 0 {
		_ = unix.Close(w.timer)
		w.timer = -1
	}
}

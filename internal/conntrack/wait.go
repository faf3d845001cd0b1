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
	file   *os.File // of the epoll instance, as the runtime's poller knows it
	raw    syscall.RawConn
	ready  func(fd uintptr) bool
	closed atomic.Bool

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
		return !w.arm(int(epoll))
	}
	// These calls do not block: the runtime need not hear of them.
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, epoll, uintptr(unsafe.Pointer(&w.events[0])), uintptr(len(w.events)), 0, 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return w.fail("epoll_pwait", errno)
	}
	if n == 0 || errno != 0 {
		return false
	}
	if w.sock >= 0 {
		if err := w.control(epoll, unix.EPOLL_CTL_DEL); err != 0 {
			return w.fail("epoll_ctl", err)
		}
	}
	return true
}

// arm sets the timer and puts the socket beside it. It reports success.
func (w *waiter) arm(epoll int) bool {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(w.until))}
	if _, _, errno := unix.RawSyscall6(unix.SYS_TIMERFD_SETTIME, uintptr(w.timer), 0, uintptr(unsafe.Pointer(&spec)), 0, 0, 0); errno != 0 {
		w.fail("timerfd_settime", errno)
		return false
	}
	if w.sock >= 0 {
		if errno := w.control(uintptr(epoll), unix.EPOLL_CTL_ADD); errno != 0 {
			w.fail("epoll_ctl", errno)
			return false
		}
	}
	return true
}

func (w *waiter) control(epoll uintptr, op uintptr) unix.Errno {
	e := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.sock)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, epoll, op, uintptr(w.sock), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
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

//go:build linux

package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// namespaceDirs are where iproute2 (`ip netns add NAME`) keeps named network
// namespaces, newest layout first.
var namespaceDirs = []string{"/run/netns", "/var/run/netns"}

// threadNamespace names the network namespace of the calling thread. /proc/self
// would name the one of the process's first thread, which may differ from ours.
const threadNamespace = "/proc/thread-self/ns/net"

// Namespace is a network namespace held open by a file descriptor. The kernel keeps
// the namespace alive as long as the descriptor, a socket or a process is in it.
// All methods may be called concurrently. A nil *Namespace stands for the namespace
// that the process is in already.
type Namespace struct {
	mu   sync.RWMutex // held for reading while a thread uses fd to enter, so that Close cannot pull it away
	fd   int          // -1 once closed
	name string       // for errors
}

// OpenNamespace opens the namespace called nameOrPath: a name is looked for in
// /run/netns, where `ip netns add` puts it; anything with a slash is a path, such
// as /proc/PID/ns/net.
func OpenNamespace(nameOrPath string) (*Namespace, error) {
	switch {
	case nameOrPath == "" || nameOrPath == "." || nameOrPath == "..":
		return nil, fmt.Errorf("open network namespace %q: not a name; give a name from `ip netns list` or a path such as /proc/PID/ns/net", nameOrPath)
	case strings.Contains(nameOrPath, "/"):
		return openNamespaceFile(nameOrPath, nameOrPath)
	}
	var first error
	for _, dir := range namespaceDirs {
		n, err := openNamespaceFile(filepath.Join(dir, nameOrPath), nameOrPath)
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		if first == nil {
			first = err
		}
	}
	return nil, fmt.Errorf("%w; `ip netns list` shows the names there are, `ip netns add %s` makes one; a path such as /proc/PID/ns/net works too", first, nameOrPath)
}

// CurrentNamespace opens the namespace that the calling thread is in.
func CurrentNamespace() (*Namespace, error) {
	return openNamespaceFile(threadNamespace, "current")
}

// NewNamespace creates a network namespace without a name. It is empty but for a
// loopback link that is down, and it goes when it is closed and nothing lives in it
// any more. It needs CAP_SYS_ADMIN in the user namespace.
func NewNamespace() (*Namespace, error) {
	var created *Namespace
	err := onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w%s", err, permissionHint(err))
		}
		n, err := openNamespaceFile(threadNamespace, "unnamed")
		created = n
		return err
	})
	if err != nil {
		return nil, err
	}
	return created, nil
}

// openNamespaceFile opens path and makes sure that it is a network namespace: setns
// on another kind of namespace would fail late, and an ordinary file would fail
// without saying why.
func openNamespaceFile(path, name string) (*Namespace, error) {
	// O_NONBLOCK: opening a FIFO by mistake must not hang.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %q: %w", name, &os.PathError{Op: "open", Path: path, Err: err})
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("open network namespace %q: %s is not a network namespace", name, path)
	}
	return &Namespace{fd: fd, name: name}, nil
}

// FD returns the descriptor, which belongs to the Namespace and lives until Close;
// -1 when closed or nil.
func (n *Namespace) FD() int {
	if n == nil {
		return -1
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.fd
}

// Path returns a path under which another process of the same user can open the
// namespace while this process keeps it open.
func (n *Namespace) Path() string {
	if n == nil {
		return fmt.Sprintf("/proc/%d/ns/net", os.Getpid())
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD())
}

// Close lets go of the namespace. Sockets made inside it go on working.
func (n *Namespace) Close() error {
	if n == nil {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fd < 0 {
		return nil
	}
	fd := n.fd
	n.fd = -1
	if err := unix.Close(fd); err != nil {
		return fmt.Errorf("close network namespace %q: %w", n.name, err)
	}
	return nil
}

// Do runs fn on an operating-system thread inside the namespace and returns its
// error. Sockets that fn creates stay in the namespace for life, so Do is for
// creating them, and for reading and writing /proc/sys/net, which shows the
// namespace of the thread that reads. Goroutines started by fn are not inside. fn
// runs on another goroutine than the caller's: t.FailNow must not be called from
// it.
func (n *Namespace) Do(fn func() error) error {
	if n == nil {
		return fn()
	}
	return onThread(func() error {
		if err := n.enter(); err != nil {
			return err
		}
		return fn()
	})
}

func (n *Namespace) enter() error {
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.fd < 0 {
		return fmt.Errorf("enter network namespace %q: %w", n.name, os.ErrClosed)
	}
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %q: %w%s", n.name, err, permissionHint(err))
	}
	return nil
}

// errThreadEnded is what the caller sees when fn ended its goroutine
// (runtime.Goexit) instead of returning.
var errThreadEnded = errors.New("network namespace: the function ended its goroutine instead of returning")

// onThread runs fn on a thread that may change its network namespace, and waits.
// The thread is brought back to where it was before it serves other goroutines;
// where that fails, the goroutine ends with the thread still locked, and the
// runtime destroys the thread.
func onThread(fn func() error) error {
	err := errThreadEnded
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		origin, openErr := openNamespaceFile(threadNamespace, "origin")
		if openErr != nil {
			err = openErr
			runtime.UnlockOSThread() // nothing was changed yet
			return
		}
		defer func() {
			if origin.enter() == nil {
				runtime.UnlockOSThread()
			}
			_ = origin.Close()
		}()
		err = fn()
	}()
	<-done
	return err
}

// NeedsNetAdmin puts the kernel's error into words where CAP_NET_ADMIN is the remedy.
func NeedsNetAdmin(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (needs CAP_NET_ADMIN: run as root, or give a container cap_add NET_ADMIN)", err)
	}
	return err
}

func permissionHint(err error) string {
	if errors.Is(err, unix.EPERM) {
		return " (needs CAP_SYS_ADMIN: run as root, or give a container cap_add SYS_ADMIN)"
	}
	return ""
}

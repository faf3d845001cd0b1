//go:build linux

package host

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// newNamespace makes a namespace for one test, or says why the test cannot run here.
func newNamespace(t *testing.T) *Namespace {
	t.Helper()
	n, err := NewNamespace()
	if errors.Is(err, unix.EPERM) && os.Getenv("CTFLEET_REQUIRE_KERNEL") != "1" {
		t.Skipf("needs root or a user namespace: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// inode identifies a namespace: two descriptors of one namespace have the same.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestDoRunsInsideAndComesBack(t *testing.T) {
	runtime.LockOSThread() // so that "the current thread" is one thread
	defer runtime.UnlockOSThread()
	before := inode(t, threadNamespace)
	n := newNamespace(t)
	if got := inode(t, threadNamespace); got != before {
		t.Fatalf("creating a namespace moved this thread from %d to %d", before, got)
	}

	var links []net.Interface
	var inside uint64
	err := n.Do(func() (err error) {
		info, err := os.Stat(threadNamespace)
		if err != nil {
			return err
		}
		inside = info.Sys().(*syscall.Stat_t).Ino
		links, err = net.Interfaces()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := inode(t, n.Path()); inside != want {
		t.Errorf("ran in namespace %d, want %d", inside, want)
	}
	for _, l := range links {
		if l.Flags&net.FlagUp != 0 {
			t.Errorf("a new namespace has link %s up; it should hold nothing but a loopback that is down", l.Name)
		}
	}

	sentinel := errors.New("sentinel")
	if err := n.Do(func() error { return sentinel }); !errors.Is(err, sentinel) {
		t.Errorf("Do returned %v, want the function's own error", err)
	}
}

func TestDoLeavesNoThreadBehind(t *testing.T) {
	n := newNamespace(t)
	want := inode(t, n.Path())
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			for range 20 {
				if err := n.Do(func() error { return nil }); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil || len(tasks) == 0 {
		t.Fatalf("no threads to look at: %v", err)
	}
	for _, task := range tasks {
		info, err := os.Stat(task)
		if errors.Is(err, os.ErrNotExist) {
			continue // the thread ended meanwhile
		}
		if err != nil {
			t.Fatal(err)
		}
		if info.Sys().(*syscall.Stat_t).Ino == want {
			t.Errorf("thread %s was left inside the namespace", task)
		}
	}
}

func TestDoReportsAnEndedGoroutine(t *testing.T) {
	n := newNamespace(t)
	if err := n.Do(func() error { runtime.Goexit(); return nil }); !errors.Is(err, errThreadEnded) {
		t.Errorf("got %v, want %v", err, errThreadEnded)
	}
}

func TestDoOfNilIsHere(t *testing.T) {
	var n *Namespace
	ran := false
	if err := n.Do(func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("ran=%v err=%v", ran, err)
	}
	if n.FD() != -1 {
		t.Errorf("fd %d, want -1", n.FD())
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestNamespaceOpenedByPathIsTheSame(t *testing.T) {
	n := newNamespace(t)
	again, err := OpenNamespace(n.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if a, b := inode(t, n.Path()), inode(t, again.Path()); a != b {
		t.Errorf("opened %d by path, want %d", b, a)
	}
}

func TestClosedNamespaceRefuses(t *testing.T) {
	n := newNamespace(t)
	for range 2 { // closing twice is allowed
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v, want os.ErrClosed", err)
	}
}

func TestOpenNamespaceByName(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	dir := t.TempDir()
	old := namespaceDirs
	namespaceDirs = []string{filepath.Join(dir, "missing"), dir}
	defer func() { namespaceDirs = old }()
	if err := os.Symlink(threadNamespace, filepath.Join(dir, "blue")); err != nil {
		t.Fatal(err)
	}
	n, err := OpenNamespace("blue")
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	current, err := CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer current.Close()
	if a, b := inode(t, n.Path()), inode(t, current.Path()); a != b {
		t.Errorf("name opened %d, want the current namespace %d", a, b)
	}
}

func TestOpenNamespaceErrors(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, want string }{
		{"", "not a name"},
		{"..", "not a name"},
		{"no-such-namespace", "ip netns add no-such-namespace"},
		{"/no/such/file", "no such file"},
		{"/proc/self/ns/uts", "/proc/self/ns/uts is not a network namespace"},
		{"/dev/null", "not a network namespace"},
		{fifo, "not a network namespace"},
	} {
		n, err := OpenNamespace(c.name)
		if err == nil {
			_ = n.Close()
			t.Errorf("%q: opened, want an error", c.name)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.name) {
			t.Errorf("%q: %q does not say %q", c.name, err, c.want)
		}
	}
}

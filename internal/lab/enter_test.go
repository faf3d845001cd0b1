//go:build linux

package lab_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
)

// nobody is the user that tests become when they run as root.
const nobody = 65534

// program is a running copy of the test binary in a role of play.
type program struct {
	*exec.Cmd
	stdout *bufio.Reader
	stderr *strings.Builder
}

// start runs the program without root's rights.
func start(t *testing.T, role string) *program {
	t.Helper()
	return startAt(t, role, nil)
}

// startAt runs it in a session of its own whose terminal is tty, unless that is nil.
func startAt(t *testing.T, role string, tty *os.File) *program {
	t.Helper()
	if err := lab.Permitted(); err != nil {
		labtest.Lacks(t, "a lab: %v", err)
	}
	// /proc/self/exe: go test builds the binary in a directory that nobody else may look into.
	p := &program{Cmd: exec.CommandContext(t.Context(), "/proc/self/exe"), stderr: &strings.Builder{}}
	p.Env = append(os.Environ(), roleVar+"="+role)
	p.Dir = "/"
	p.Stderr = p.stderr
	p.SysProcAttr = &syscall.SysProcAttr{Setpgid: tty == nil} // a process group of its own, as in a shell
	if tty != nil {
		p.Stdin = tty
		p.SysProcAttr.Setsid, p.SysProcAttr.Setctty = true, true // of descriptor 0
	}
	if os.Geteuid() == 0 {
		if users, err := os.ReadFile("/proc/self/uid_map"); err != nil || len(strings.Fields(string(users))) != 3 || strings.Fields(string(users))[2] == "1" {
			labtest.Lacks(t, "another user to become, which root of a user namespace with one user has not")
		}
		p.SysProcAttr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	}
	stdout, err := p.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.stdout = bufio.NewReader(stdout)
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // also when the test failed half way
		_ = p.Process.Kill()
		_ = p.Wait()
		if t.Failed() && p.stderr.Len() > 0 {
			t.Logf("stderr of the program: %s", p.stderr)
		}
	})
	return p
}

func (p *program) line(t *testing.T) string {
	t.Helper()
	line, err := p.stdout.ReadString('\n')
	if err != nil {
		t.Fatalf("program's output: %v after %q, stderr %s", err, line, p.stderr)
	}
	return strings.TrimSpace(line)
}

func (p *program) expectExit(t *testing.T, want int) {
	t.Helper()
	var exit *exec.ExitError
	if err := p.Wait(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if got := p.ProcessState.ExitCode(); got != want {
		t.Errorf("exit code %d, want %d; stderr %s", got, want, p.stderr)
	}
}

func TestEnterBuildsALabWithoutRoot(t *testing.T) {
	p := start(t, "lab")
	conn, err := net.DialTimeout("tcp", p.line(t), 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.TrimSpace(string(said)), "uid 0, 500 entries"; got != want {
		t.Errorf("the process inside says %q over the inherited listener, want %q; stderr %s", got, want, p.stderr)
	}
	p.expectExit(t, 7)
}

func TestEnterPassesSignalsOn(t *testing.T) {
	for _, c := range []struct {
		name    string
		signal  syscall.Signal
		toGroup bool
	}{
		{"SIGTERM", syscall.SIGTERM, false},
		{"SIGINT", syscall.SIGINT, false},
		{"SIGINT to the group, as timeout(1) sends it", syscall.SIGINT, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := start(t, "signal")
			p.line(t)
			to := p.Process.Pid
			if c.toGroup {
				to = -to
			}
			if err := syscall.Kill(to, c.signal); err != nil {
				t.Fatal(err)
			}
			if got := p.line(t); got != c.signal.String() {
				t.Errorf("the process inside got %q, want %q", got, c.signal)
			}
			p.expectExit(t, 5)
		})
	}
}

// The terminal sends Ctrl-C to both processes; the one inside must get it once, and
// the other live on to report its exit code.
func TestEnterAtATerminal(t *testing.T) {
	master, tty := openTerminal(t)
	p := startAt(t, "signal", tty)
	p.line(t)
	if _, err := master.Write([]byte{0x03}); err != nil {
		t.Fatal(err)
	}
	if got := p.line(t); got != "interrupt" {
		t.Errorf("the process inside got %q, want interrupt", got)
	}
	p.expectExit(t, 5)
}

// openTerminal makes a pseudo-terminal.
func openTerminal(t *testing.T) (master, tty *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		labtest.Lacks(t, "a pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { _ = master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	return master, tty
}

func TestEnterReportsASignalAsExitCode(t *testing.T) {
	p := start(t, "killed")
	p.line(t)
	p.expectExit(t, 128+int(syscall.SIGKILL))
}

func TestEnterDiesWithItsParent(t *testing.T) {
	p := start(t, "wait")
	p.line(t)
	if err := p.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Both processes hold the pipe: it ends when both are gone.
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, p.stdout)
		ended <- err
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the process inside is still there 10 s after its parent was killed")
	}
}

func TestEnterAsRootStaysWhereItIs(t *testing.T) {
	if os.Geteuid() != 0 {
		labtest.Lacks(t, "root")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	inside, inherited, code, err := lab.Enter(t.Context(), []net.Listener{l})
	if err != nil || !inside || code != 0 || len(inherited) != 1 || inherited[0] != l {
		t.Errorf("got %v %v %d %v, want to be inside with the listener as it is", inside, inherited, code, err)
	}
}

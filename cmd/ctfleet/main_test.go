package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"

	"github.com/ctfleet/ctfleet/internal/web/webtest"
)

// These tests run the four programs as an operator does: as processes, with
// command lines, files and signals, and look at nothing but what they print,
// how they exit, and what they answer.

var update = flag.Bool("update", false, "write the golden files anew")

// programs is the folder of the four programs, built when the first is needed:
// the workers of a fuzz run need none.
var programs = sync.OnceValues(func() (string, error) {
	var err error
	if built, err = os.MkdirTemp("", "ctfleet-e2e-"); err != nil {
		return "", err
	}
	if err := os.Chmod(built, 0o755); err != nil { // one test runs them as another user
		return "", err
	}
	out, err := exec.Command("go", "build", "-o", built, "../producer", "../aggregator", "../responder", ".").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return built, nil
})

// built is what TestMain removes.
var built string

func TestMain(m *testing.M) {
	if conf := os.Getenv(serveEnv); conf != "" { // a server of a cluster that a test started
		os.Exit(serve(conf))
	}
	flag.Parse()
	time.Local = time.UTC // golden files hold times
	// Most of the time these tests wait for other processes, not for a processor.
	// A fuzzing run has as many workers as that, and they do need one.
	if flag.Lookup("test.fuzz").Value.String() == "" && flag.Lookup("test.parallel").Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		_ = flag.Set("test.parallel", "6") // a number, hence no error
	}
	code := m.Run()
	webtest.Close()
	if built != "" {
		_ = os.RemoveAll(built) // in the temporary directory: what is left there is not ours to report
	}
	os.Exit(code)
}

// program is the path of a program.
func program(t testing.TB, name string) string {
	t.Helper()
	dir, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// environment is ours without what would configure the programs.
func environment(extra ...string) []string {
	var env []string
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "CTFLEET_") && !strings.HasPrefix(v, "NATS_") && !strings.HasPrefix(v, "COLUMNS=") {
			env = append(env, v)
		}
	}
	return append(append(env, "COLUMNS=100", "TERM=dumb"), extra...)
}

// nobody is a user without rights.
var nobody = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}

// call is one run of a program that ends by itself.
type call struct {
	env   []string
	stdin []byte
	as    *syscall.SysProcAttr
	dir   string
}

// result is how it ended.
type result struct {
	stdout, stderr string
	code           int
}

// callTime is how long a program that ends by itself may take.
const callTime = 60 * time.Second

func (c call) run(t testing.TB, name string, args ...string) result {
	t.Helper()
	path := program(t, name)
	ctx, cancel := context.WithTimeout(t.Context(), callTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr, cmd.Stdin = &stdout, &stderr, bytes.NewReader(c.stdin)
	cmd.Env, cmd.SysProcAttr, cmd.Dir = environment(c.env...), c.as, c.dir
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || ctx.Err() != nil) {
		t.Fatalf("%s %q: %v\n%s", name, args, err, stderr.String())
	}
	return result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// parse reads one JSON object.
func parse[T any](t *testing.T, text string) T {
	t.Helper()
	var v T
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("not the JSON that is expected: %v\n%s", err, text)
	}
	return v
}

// process is a program that runs until it is told to stop.
type process struct {
	t       *testing.T
	program string
	cmd     *exec.Cmd
	stdout  output
	stderr  output
	ended   chan struct{}
}

// output collects what a process prints.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts a daemon, which the test stops at its end.
func (c call) start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return c.startWith(t, nil, name, args...)
}

// startWith is start with something to read from.
func (c call) startWith(t *testing.T, stdin *os.File, name string, args ...string) *process {
	t.Helper()
	p := &process{t: t, program: name, cmd: exec.Command(program(t, name), args...), ended: make(chan struct{})}
	p.cmd.Env, p.cmd.SysProcAttr, p.cmd.Dir = environment(c.env...), c.as, c.dir
	p.cmd.Stdout, p.cmd.Stderr = &p.stdout, &p.stderr
	p.cmd.WaitDelay = time.Second
	if stdin != nil {
		p.cmd.Stdin = stdin
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		_ = p.cmd.Wait() // how it ended is in ProcessState
	}()
	t.Cleanup(func() {
		if !p.running() {
			return
		}
		_ = p.cmd.Process.Kill() // the test has failed already, or does not care
		<-p.ended
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s %q\n%s%s", name, args, p.stdout.String(), p.stderr.String())
		}
	})
	return p
}

// openTerminal returns the two ends of a pseudo-terminal.
func openTerminal(t *testing.T) (keyboard, tty *os.File) {
	t.Helper()
	keyboard, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { keyboard.Close(); tty.Close() })
	return keyboard, tty
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// stopTime is what every daemon promises.
const stopTime = 5 * time.Second

// stop sends SIGTERM and expects a clean end in time.
func (p *process) stop() {
	p.t.Helper()
	begin := time.Now()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Errorf("%s had ended before it was stopped: %v", p.program, p.cmd.ProcessState)
		return
	}
	select {
	case <-p.ended:
	case <-time.After(2 * stopTime):
		p.t.Fatalf("%s still runs %s after SIGTERM", p.program, 2*stopTime)
	}
	if code, took := p.cmd.ProcessState.ExitCode(), time.Since(begin); code != 0 || took > stopTime {
		p.t.Errorf("%s after SIGTERM: exit code %d after %s, want 0 within %s", p.program, code, took, stopTime)
	}
}

// says waits until the process has printed something that matches, and returns
// the first group.
func (p *process) says(o *output, pattern string) string {
	p.t.Helper()
	re := regexp.MustCompile(pattern)
	var m []string
	p.until("it to say "+pattern, func() bool { m = re.FindStringSubmatch(o.String()); return m != nil })
	return m[len(m)-1]
}

func (p *process) until(what string, ok func() bool) {
	p.t.Helper()
	until(p.t, p.program+": "+what, func() bool {
		if !p.running() && !ok() {
			p.t.Fatalf("%s ended (%v) while waiting for %s", p.program, p.cmd.ProcessState, what)
		}
		return ok()
	})
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// get asks an HTTP server and returns the status and the body.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	return getAs(t, "", url)
}

// getAs is get with a Host header, "" for the one that belongs there.
func getAs(t *testing.T, host, url string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// file writes a file of the test.
func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// golden compares with a file under testdata, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run the test with -update and look at the diff):\n%s", path, got)
	}
}

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/signal"
	"reflect"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Version and Commit are set by the linker for releases and images; otherwise
// they are what the Go toolchain recorded.
var Version, Commit = "", ""

// ProgramVersion returns the version to show: "devel" and the revision, or only
// that, where there is none.
func ProgramVersion() string {
	if Version != "" {
		return Version
	}
	if c := recorded("vcs.revision"); c != "" {
		return "devel-" + c[:min(12, len(c))]
	}
	return "devel"
}

// ProgramCommit returns the revision that the program was built from; "+" after it
// says that files had been changed, "unknown" that nobody said.
func ProgramCommit() string {
	if Commit != "" {
		return Commit
	}
	c := recorded("vcs.revision")
	switch {
	case c == "":
		return "unknown"
	case recorded("vcs.modified") == "true":
		return c + "+"
	}
	return c
}

// VersionLine is what --version prints. No time is in it: the same source makes the
// same program.
func VersionLine() string {
	return ProgramVersion() + " (commit " + ProgramCommit() + ")"
}

// recorded is a setting of the build that the Go toolchain put into the program.
func recorded(key string) string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == key {
				return s.Value
			}
		}
	}
	return ""
}

// Flags are common to the daemons.
type Flags struct {
	Config        string           `type:"existingfile" placeholder:"FILE" help:"Read flags from this YAML file; its keys are the flags' names. Environment and command line win."`
	Check         bool             `env:"-" help:"Print what would be used and what is missing on this host, then exit 0 or 1."`
	MetricsListen string           `placeholder:"ADDR" default:"127.0.0.1:0" help:"Serve /metrics, /healthz and /readyz here (${default}: a free loopback port; \"none\": not at all)."`
	LogFormat     string           `enum:"text,json" default:"text" help:"text or json."`
	LogLevel      slog.Level       `default:"info" help:"debug, info, warn or error."`
	Version       kong.VersionFlag `env:"-" help:"Print the version and exit."`
}

// BadInput is the exit code for a file that cannot be used: --check answers
// yes or no, otherwise it is a mistake of usage.
func (f *Flags) BadInput() int {
	if f.Check {
		return 1
	}
	return 2
}

// Logger returns the logger that the flags describe, writing to w.
func (f *Flags) Logger(w io.Writer) *slog.Logger {
	opts := &slog.HandlerOptions{Level: f.LogLevel}
	if f.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}

// Parse parses the command line of a program into cli, whose flags can also be
// given as CTFLEET_<FLAG> and in the file named by --config. It ends the
// process on --help, --version (0) and on errors (2).
func Parse(name, description string, cli any, options ...kong.Option) *kong.Context {
	ctx, blame, err := parse(name, description, cli, options)
	if err != nil {
		if blame {
			fmt.Fprintf(os.Stderr, "%s: %v\n", name, err)
		} else {
			fmt.Fprintf(os.Stderr, "%s: %v\nRun '%s --help' for the flags.\n", name, err, name)
		}
		os.Exit(2)
	}
	return ctx
}

// Again parses the command line once more, into an empty cli: what the file named by
// --config says may have changed since.
func Again(name string, cli any) error {
	_, _, err := parse(name, "", cli, nil)
	return err
}

// settings are how every program reads its command line.
func settings(name, description string, more []kong.Option) []kong.Option {
	return append([]kong.Option{
		kong.Name(name),
		kong.Description(description),
		kong.DefaultEnvars("CTFLEET"),
		kong.Vars{"version": VersionLine()},
		kong.TypeMapper(reflect.TypeFor[netip.Prefix](), kong.MapperFunc(prefix)),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true, WrapUpperBound: 120}),
	}, more...)
}

// Model is what Parse would read into cli, as data: for the reference.
func Model(name string, cli any) (*kong.Application, error) {
	parser, err := kong.New(cli, settings(name, "", nil)...)
	if err != nil {
		return nil, err
	}
	return parser.Model, nil
}

// parse reports with an error whether a file is to blame.
func parse(name, description string, cli any, options []kong.Option) (ctx *kong.Context, blame bool, err error) {
	options = settings(name, description, options)
	var file *config.FlagFile
	if path := configPath(os.Args[1:]); path != "" {
		if file, err = config.LoadFlags(path); err != nil {
			return nil, true, err
		}
		options = append(options, kong.Resolvers(file))
	}
	parser, err := kong.New(cli, options...)
	if err != nil {
		panic(err) // a mistake in the struct tags of cli: no input can cause it
	}
	if ctx, err = parser.Parse(os.Args[1:]); err != nil {
		err, blame = file.Explain(err)
		return nil, blame, err
	}
	return ctx, false, nil
}

// prefix reads an address or a prefix; the type itself takes prefixes only.
func prefix(ctx *kong.DecodeContext, target reflect.Value) error {
	var s string
	if err := ctx.Scan.PopValueInto("prefix", &s); err != nil {
		return err
	}
	p, err := events.ParsePrefix(s)
	if err != nil {
		return err
	}
	target.Set(reflect.ValueOf(p))
	return nil
}

// configPath finds --config before kong parses, since the file's values are
// part of what is parsed.
func configPath(args []string) string {
	const flag = "--config"
	for i, a := range args {
		switch {
		case a == "--":
			return ""
		case a == flag && i+1 < len(args):
			return args[i+1]
		case len(a) > len(flag) && a[:len(flag)+1] == flag+"=":
			return a[len(flag)+1:]
		}
	}
	return os.Getenv("CTFLEET_CONFIG")
}

// stopDeadline is how long a daemon may take to drain after SIGTERM.
const stopDeadline = 5 * time.Second

// Run calls run with a context that SIGINT and SIGTERM cancel, and returns the
// exit code: 0 when run returned nil or the cancellation itself. A second
// signal, or stopDeadline after the first, ends the process at once.
func Run(log *slog.Logger, run func(context.Context) error) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer context.AfterFunc(ctx, stop)() // the next signal kills
	// Whoever asks us to read our files again before we listen (see Reloads) must not
	// kill us: we have not even read them.
	early := make(chan os.Signal, 1)
	signal.Notify(early, syscall.SIGHUP)
	defer signal.Stop(early)
	return supervise(ctx, log, run, os.Exit)
}

// supervise is Run without signals: ctx ends when the program is to stop, and
// exit is called when it does not.
func supervise(ctx context.Context, log *slog.Logger, run func(context.Context) error, exit func(int)) int {
	returned := make(chan struct{})
	defer close(returned)
	go func() {
		select {
		case <-ctx.Done():
		case <-returned:
			return
		}
		select {
		case <-time.After(stopDeadline):
			log.Error("stopping took too long", "deadline", stopDeadline)
			exit(1)
		case <-returned:
		}
	}()
	err := run(ctx)
	if err != nil && (ctx.Err() == nil || !errors.Is(err, context.Canceled)) {
		log.Error(err.Error())
		return 1
	}
	return 0
}

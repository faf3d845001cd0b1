package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Where events come from.
const (
	sourceKernel = "kernel"
	sourceXML    = "xml"
	sourceReplay = "replay"
)

// kernel reports whether this producer watches a table. Any other reads a file: it
// has no table to report of, to dump or to delete from.
func (o *Options) kernel() bool { return o.Source == "" || o.Source == sourceKernel }

// source is what health says of it: nothing where it is the kernel.
func (o *Options) source() string {
	if o.kernel() {
		return ""
	}
	return o.Source
}

// validateSource reports what does not go with the source.
func (o *Options) validateSource() error {
	switch {
	case o.kernel() && o.Input != "":
		return errors.New("--input is nothing without --source xml or replay")
	case o.InputFirewall != "" && o.Source != sourceReplay:
		return errors.New("--input-firewall is nothing without --source replay")
	case o.kernel():
		return nil
	case o.Input == "":
		return fmt.Errorf("--source %s needs --input: a file, or - for standard input", o.Source)
	case o.AllowFlush, o.AllowBlock:
		return fmt.Errorf("--source %s reads what was written elsewhere: there is no table for --allow-flush or --allow-block", o.Source)
	case o.InputFirewall != "" && events.CheckFirewall(o.InputFirewall) != nil:
		return fmt.Errorf("--input-firewall: %w", events.CheckFirewall(o.InputFirewall))
	case o.NetNS != "":
		return fmt.Errorf("--source %s watches no table: --netns means nothing", o.Source)
	}
	return nil
}

// input is the file that is read instead of the kernel's events.
type input struct {
	io.ReadCloser
	// stored: all of it is there, and can wait. What comes through a pipe is lost to
	// somebody else, uncounted, when we do not read.
	stored bool
}

func (o *Options) openInput() (*input, error) {
	if o.kernel() {
		return nil, nil
	}
	f := os.Stdin
	if o.Input != "-" {
		var err error
		if f, err = os.Open(o.Input); err != nil {
			return nil, fmt.Errorf("--input: %w", err)
		}
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory", o.Input)
	}
	if err != nil {
		return nil, fmt.Errorf("--input: %w", err)
	}
	return &input{ReadCloser: f, stored: info.Mode().IsRegular()}, nil
}

func (p *Producer) closeSource() {
	if p.input != nil {
		p.input.Close()
	} else {
		p.reader.Close()
	}
}

// readInput publishes what the input holds.
func (p *Producer) readInput(ctx context.Context) error {
	if p.opt.Source == sourceReplay {
		return p.readRecording(ctx)
	}
	return p.readXML(ctx)
}

// watching says what is begun.
func (p *Producer) watching() string {
	if p.input != nil {
		return "reading " + p.opt.Source
	}
	return "watching the connection table"
}

// limits says what such a producer cannot do, for its health and its log.
func (o *Options) limits() string {
	return fmt.Sprintf("The events come from --source %s: how full the table is is not known, and nothing is flushed or blocked here.", o.Source)
}

// errNoTable is the answer to whoever wants something of the table.
var errNoTable = errors.New("this producer reads a file: there is no table")

// drained waits until the bus has acknowledged all, or ctx ends.
func (p *Producer) drained(ctx context.Context) {
	for (!p.ring.Empty() || !p.snapRing.Empty()) && daemon.Sleep(ctx, 5*time.Millisecond) {
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type replayCmd struct {
	File    string `arg:"" help:"The recording, - for standard input: what ctfleet observe -o raw wrote."`
	Rules   string `required:"" type:"existingfile" placeholder:"FILE" help:"The rules to judge it by."`
	MaxKeys int    `default:"2097152" help:"Addresses remembered for each way to count, as by the aggregator (${default})."`
	Output  string `short:"o" enum:"human,json,raw" default:"human" help:"human, json (each alert as it would have been published), or raw (tab-separated)."`
}

func (c *replayCmd) Run(ctx context.Context) error {
	opt := aggregator.Options{Rules: c.Rules, MaxKeys: c.MaxKeys}
	err := opt.Validate()
	var file rule.File
	if err == nil {
		file, err = opt.Load()
	}
	if err != nil {
		return &exitError{2, err}
	}
	for i := range file.Rules {
		if r := &file.Rules[i]; r.Track == rule.Table {
			complain("rule %s is not judged: a recording does not say how full the tables are", r.Name)
		}
	}
	in, size := os.Stdin, int64(0)
	if c.File != "-" {
		if in, err = os.Open(c.File); err != nil {
			return err
		}
		defer in.Close()
		if info, err := in.Stat(); err == nil && info.Mode().IsRegular() {
			size = info.Size()
		}
	}
	t := &retelling{format: c.Output, out: os.Stdout}
	replay, err := aggregator.NewReplay(file, c.MaxKeys, t.tell)
	if err != nil {
		return err
	}
	begin := time.Now()
	err = playAll(ctx, in, size, replay)
	s := replay.Summary()
	t.end(&s, usesActive(file), time.Since(begin))
	if err == nil {
		err = t.err
	}
	return err
}

// playAll replays a recording to its end.
func playAll(ctx context.Context, in io.Reader, size int64, replay *aggregator.Replay) error {
	r, err := interruptible(ctx, func() (*recording.Reader, error) { return recording.NewReader(in) })
	if err != nil {
		return err
	}
	progress := newProgress(os.Stderr, size)
	defer progress.clear()
	var m recording.Message
	next := func() error { return r.Next(&m) }
	if size == 0 { // a pipe may keep us waiting
		next = func() error {
			_, err := interruptible(ctx, func() (struct{}, error) { return struct{}{}, r.Next(&m) })
			return err
		}
	}
	refused := 0
	for {
		err := next()
		switch {
		case ctx.Err() != nil:
			return errors.New("stopped before the end of the recording")
		case err == io.EOF: //nolint:errorlint // as it is
			if refused > 0 {
				complain("%d messages were refused", refused)
			}
			return nil
		case err != nil:
			return err
		}
		if err := replay.Take(&m); err != nil {
			if refused++; refused == 1 {
				complain("%v", err)
			}
		}
		progress.show(r.Offset())
	}
}

// usesActive: such rules need a complete dump of each firewall.
func usesActive(f rule.File) bool {
	return slices.ContainsFunc(f.Rules, func(r rule.Rule) bool { return r.Metric == rule.Active })
}

// retelling prints what would have fired.
type retelling struct {
	format string
	out    io.Writer
	fired  int
	table  *table // of raw, begun with the first line
	err    error
}

func (t *retelling) tell(kind rule.Kind, a *events.Alert) {
	if kind == rule.Fired {
		t.fired++
	}
	if t.err != nil {
		return
	}
	at := time.UnixMilli(a.Updated).Format("2006-01-02 15:04:05.000")
	switch {
	case t.format == "json":
		t.err = printJSON(t.out, a)
	case kind == rule.Updated: // the same alert with another value
	case t.format == "raw":
		if t.table == nil {
			t.table = newTable(t.out, "raw", "TIME", "STATE", "ID", "RULE", "SCOPE", "KEY", "VALUE", "PEAK")
		}
		t.table.add(at, a.State, a.ID, a.Rule, a.Scope, a.Key, a.Value, a.Peak)
	default:
		fmt.Fprintf(t.out, "%s  %-8s  %s\n", at, a.State, printable(a.Text))
		if kind == rule.Fired {
			if why := why(a); why != "" {
				fmt.Fprintf(t.out, "%35s%s\n", "", printable(why))
			}
		}
	}
}

// why is what an alert stands on: the firewalls' shares, and a sample of whom and what
// it was about.
func why(a *events.Alert) string {
	var parts []string
	var shares []string
	for _, fw := range slices.Sorted(maps.Keys(a.Firewalls)) {
		shares = append(shares, fmt.Sprintf("%s %v", fw, a.Firewalls[fw]))
	}
	list := func(what string, s []string) {
		if len(s) > 0 {
			parts = append(parts, what+" "+strings.Join(s, ", "))
		}
	}
	sample := func(of []events.Share) (s []string) {
		for _, v := range of {
			s = append(s, fmt.Sprintf("%s × %d", v.Value, v.Count))
		}
		return s
	}
	list("by", shares)
	list("peers (sample)", sample(a.Peers))
	list("ports (sample)", sample(a.Ports))
	if a.Unreplied != nil {
		parts = append(parts, fmt.Sprintf("%.0f%% of those that ended were unanswered", 100**a.Unreplied))
	}
	return strings.Join(parts, "; ")
}

// end says, on standard error, what was replayed and what was missing in it.
func (t *retelling) end(s *aggregator.ReplaySummary, active bool, took time.Duration) {
	for i := range s.Firewalls {
		f := &s.Firewalls[i]
		if f.Lost+f.Missing > 0 {
			complain("%s: %d events were lost before the bus, %d are missing in the recording", f.Firewall, f.Lost, f.Missing)
		}
		if active && !f.ActiveKnown {
			complain("%s: there is no complete dump in the recording, so that active is not known", f.Firewall)
		}
	}
	complain("%d fired, %d still at the end; %d batches, %d events, %d firewalls, %s, in %s",
		t.fired, s.Firing, s.Batches, s.Events, len(s.Firewalls), s.Span.Round(time.Millisecond), took.Round(time.Millisecond))
}

// progress is how far a long work has come, where somebody sits at a terminal.
type progress struct {
	out   *os.File
	size  int64
	begin time.Time
	next  time.Time
	shown bool
	calls int
}

const (
	progressAfter = time.Second // what is over by then needs none
	progressEvery = 200 * time.Millisecond
)

// newProgress is of something of a size, 0 where that is not known.
func newProgress(out *os.File, size int64) *progress {
	p := &progress{begin: time.Now(), size: size}
	if terminal(out) {
		p.out = out
	}
	p.next = p.begin.Add(progressAfter)
	return p
}

func (p *progress) show(done int64) {
	if p.calls++; p.out == nil || p.calls%16 != 0 {
		return
	}
	now := time.Now()
	if now.Before(p.next) {
		return
	}
	p.next, p.shown = now.Add(progressEvery), true
	mib := float64(done) / (1 << 20)
	rate := mib / now.Sub(p.begin).Seconds()
	if p.size > 0 {
		fmt.Fprintf(p.out, "\r\x1b[K%3.0f %% of %.0f MiB, %.0f MiB/s", 100*float64(done)/float64(p.size), float64(p.size)/(1<<20), rate)
	} else {
		fmt.Fprintf(p.out, "\r\x1b[K%.0f MiB, %.0f MiB/s", mib, rate)
	}
}

// clear takes away what was shown.
func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type allowlistCmd struct {
	List   allowListCmd   `cmd:"" default:"withargs" help:"What is in force."`
	Add    allowAddCmd    `cmd:"" help:"Never act upon an address or a prefix, from now on."`
	Delete allowDeleteCmd `cmd:"" help:"Take an entry out."`
	Check  allowCheckCmd  `cmd:"" help:"Which entry covers an address. Exit code 1 if none does."`
	Import allowImportCmd `cmd:"" help:"Add each line of a file: an address or a prefix, and a comment."`
}

// allowRealm is the flag of every command about entries.
type allowRealm struct {
	Realm string `placeholder:"NAME" help:"Whose addresses are meant (default: every realm's)."`
}

func (r *allowRealm) check() error {
	if r.Realm == "" {
		return nil
	}
	if err := events.CheckName(r.Realm); err != nil {
		return &exitError{2, fmt.Errorf("--realm: %w", err)}
	}
	return nil
}

type allowAddCmd struct {
	client
	signing
	allowRealm
	Prefix  string        `arg:"" help:"An address or a prefix."`
	For     time.Duration `placeholder:"DURATION" help:"For how long (default: until it is deleted)."`
	Comment string        `placeholder:"TEXT" help:"Why: shown where it stops something."`
	Except  bool          `help:"The other way round: what lies within may be acted upon, though a wider entry of the live allowlist covers it."`
}

func (c *allowAddCmd) Run(ctx context.Context) error {
	p, err := events.ParsePrefix(c.Prefix)
	if err != nil {
		return &exitError{2, err}
	}
	if c.For < 0 {
		return &exitError{2, fmt.Errorf("--for: must not be negative, is %s", c.For)}
	}
	if err := c.check(); err != nil {
		return err
	}
	w, err := c.openAllowlist(ctx, &c.signing)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	e := &events.AllowEntry{Prefix: events.FormatPrefix(p), Realm: c.Realm, Except: c.Except, Comment: c.Comment}
	if c.For > 0 {
		e.Until = w.now().Add(c.For).UnixMilli()
	}
	if err := w.put(ctx, p, e); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, describe(e), "is in force")
	return nil
}

type allowDeleteCmd struct {
	client
	signing
	allowRealm
	Prefix string `arg:"" help:"As it was added."`
}

func (c *allowDeleteCmd) Run(ctx context.Context) error {
	p, err := events.ParsePrefix(c.Prefix)
	if err != nil {
		return &exitError{2, err}
	}
	if err := c.check(); err != nil {
		return err
	}
	w, err := c.openAllowlist(ctx, &c.signing)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	var had events.AllowEntry
	rev, err := w.conn.Get(ctx, bus.BucketAllowlist, events.AllowKey(c.Realm, p), &had)
	if rev == 0 && err != nil {
		return err
	}
	if rev == 0 || err == nil && had.Removed {
		where := "for every realm"
		if c.Realm != "" {
			where = "for realm " + c.Realm
		}
		return fmt.Errorf("%s is not on the live allowlist %s", events.FormatPrefix(p), where)
	}
	return w.put(ctx, p, &events.AllowEntry{Prefix: events.FormatPrefix(p), Realm: c.Realm, Removed: true})
}

type allowImportCmd struct {
	client
	signing
	allowRealm
	File string        `arg:"" help:"The file; - is standard input. What follows # is ignored."`
	For  time.Duration `placeholder:"DURATION" help:"For how long (default: until they are deleted)."`
}

func (c *allowImportCmd) Run(ctx context.Context) error {
	if err := c.check(); err != nil {
		return err
	}
	in := io.Reader(os.Stdin)
	if c.File != "-" {
		f, err := os.Open(c.File)
		if err != nil {
			return &exitError{2, err}
		}
		defer f.Close()
		in = f
	}
	// All of it is read before any of it is in force.
	entries, err := readEntries(c.File, in)
	if err != nil {
		return &exitError{2, err}
	}
	w, err := c.openAllowlist(ctx, &c.signing)
	if err != nil {
		return err
	}
	defer w.conn.Close()
	for i := range entries {
		e := &entries[i]
		if e.Realm = c.Realm; c.For > 0 {
			e.Until = w.now().Add(c.For).UnixMilli()
		}
		p, err := events.ParsePrefix(e.Prefix)
		if err == nil {
			err = w.put(ctx, p, e)
		}
		if err != nil {
			return fmt.Errorf("%d of %d entries are in force: %s: %w", i, len(entries), e.Prefix, err)
		}
	}
	fmt.Fprintf(os.Stderr, "%d entries are in force\n", len(entries))
	return nil
}

// readEntries reads lines of a prefix and a comment.
func readEntries(name string, in io.Reader) ([]events.AllowEntry, error) {
	var out []events.AllowEntry
	lines := bufio.NewScanner(in)
	for n := 1; lines.Scan(); n++ {
		text, _, _ := strings.Cut(lines.Text(), "#")
		word, comment, _ := strings.Cut(strings.TrimSpace(text), " ")
		if word == "" {
			continue
		}
		p, err := events.ParsePrefix(word)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		e := events.AllowEntry{Prefix: events.FormatPrefix(p), Comment: strings.TrimSpace(comment), Time: 1}
		if err := e.Validate(); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, n, err)
		}
		out = append(out, e)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}

// allowlistWriter changes the live allowlist.
type allowlistWriter struct {
	conn  *bus.Conn
	key   *seal.Signer
	clock bus.Clock
}

func (c *client) openAllowlist(ctx context.Context, s *signing) (*allowlistWriter, error) {
	key, err := s.signer()
	if err != nil {
		return nil, err
	}
	conn, err := c.connect()
	if err != nil {
		return nil, err
	}
	clock, err := conn.BucketClock(ctx, bus.BucketAllowlist)
	if err != nil {
		conn.Close()
		return nil, err
	}
	return &allowlistWriter{conn, key, clock}, nil
}

// now is by the server's clock, by which entries end.
func (w *allowlistWriter) now() time.Time { return w.clock.At(time.Now()) }

// put sets an entry, and records who did.
func (w *allowlistWriter) put(ctx context.Context, p netip.Prefix, e *events.AllowEntry) error {
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	key := events.AllowKey(e.Realm, p)
	var held events.AllowEntry
	rev, err := w.conn.Get(ctx, bus.BucketAllowlist, key, &held)
	if rev == 0 && err != nil {
		return err
	}
	// After what is there, also where the server's clock was set back. What cannot be
	// read there is replaced.
	e.Time = max(w.now().UnixMilli(), held.Time+1)
	if err := e.Validate(); err != nil {
		return &exitError{2, err}
	}
	what := "added " + describe(e)
	if e.Removed {
		what = "deleted " + describe(e)
	}
	// First the record, then the deed.
	if err := record(ctx, w.conn, w.key, &events.Act{Verb: events.VerbAllowlist, What: what, Key: e.Prefix, Realm: e.Realm, Reason: e.Comment}); err != nil {
		return err
	}
	_, err = w.conn.Update(ctx, w.key, bus.BucketAllowlist, key, e, rev)
	return err
}

// describe says what an entry lists, in words.
func describe(e *events.AllowEntry) string {
	s := e.Prefix
	if e.Except {
		s += ", an exception,"
	}
	if e.Realm != "" {
		s += " in realm " + e.Realm
	}
	if e.Until > 0 {
		s += " until " + time.UnixMilli(e.Until).Format(time.DateTime)
	}
	return s
}

// readAllowlist reads the live allowlist as it is now.
func (c *client) readAllowlist(ctx context.Context, t *trusting) (*allowlist.Live, time.Time, error) {
	trust, err := t.open()
	if err != nil {
		return nil, time.Time{}, err
	}
	conn, err := c.connect()
	if err != nil {
		return nil, time.Time{}, err
	}
	defer conn.Close()
	clock, err := conn.BucketClock(ctx, bus.BucketAllowlist)
	if err != nil {
		return nil, time.Time{}, err
	}
	values, err := conn.Entries(ctx, bus.BucketAllowlist)
	if err != nil {
		return nil, time.Time{}, err
	}
	live := allowlist.NewLive(trust)
	for _, m := range values {
		if err := live.Put(bus.BucketKey(bus.BucketAllowlist, m.Subject), m.Subject, m.Data, m.Seal); err != nil {
			complain("%q: %v", m.Subject, err)
		}
	}
	return live, clock.At(time.Now()), nil
}

type allowListCmd struct {
	client
	trusting
}

// allowRow is an entry as `list` and `check` print it.
type allowRow struct {
	events.AllowEntry
	Who        string `json:"who,omitempty"`
	Unverified string `json:"unverified,omitempty"` // why it lists its prefix, whatever it says
}

func (c *allowListCmd) Run(ctx context.Context) error {
	live, now, err := c.readAllowlist(ctx, &c.trusting)
	if err != nil {
		return err
	}
	return printEntries(os.Stdout, c.Output, live.Entries(now), now)
}

func printEntries(w io.Writer, format string, entries []allowlist.LiveEntry, now time.Time) error {
	rows := make([]allowRow, len(entries))
	for i, e := range entries {
		rows[i] = allowRow{AllowEntry: e.AllowEntry, Who: e.Who}
		if e.Unverified != nil {
			rows[i].Unverified = e.Unverified.Error()
		}
	}
	if format == "json" {
		return printJSON(w, map[string]any{"entries": rows})
	}
	t := newTable(w, format, "PREFIX", "REALM", "ENDS", "BY", "COMMENT")
	for i := range rows {
		r := &rows[i]
		prefix, realm, ends := r.Prefix, r.Realm, "never"
		if r.Except {
			prefix = "not " + prefix
		}
		if realm == "" {
			realm = "all"
		}
		if r.Until > 0 {
			ends = "in " + time.UnixMilli(r.Until).Sub(now).Round(time.Second).String()
		}
		comment := r.Comment
		if r.Unverified != "" {
			comment = "cannot be verified: " + r.Unverified
		}
		t.add(prefix, realm, ends, r.Who, comment)
	}
	return t.flush()
}

type allowCheckCmd struct {
	client
	trusting
	Address string `arg:"" help:"An address or a prefix."`
	Realm   string `default:"default" placeholder:"NAME" help:"Whose address it is (${default})."`
}

func (c *allowCheckCmd) Run(ctx context.Context) error {
	p, err := events.ParsePrefix(c.Address)
	if err != nil {
		return &exitError{2, err}
	}
	live, now, err := c.readAllowlist(ctx, &c.trusting)
	if err != nil {
		return err
	}
	e, listed := live.List(c.Realm, now).Covers(p)
	if c.Output == "json" {
		covered := map[string]any{"listed": listed}
		if listed {
			covered["prefix"], covered["why"] = e.Prefix.String(), e.Why
		}
		if err := printJSON(os.Stdout, covered); err != nil {
			return err
		}
	}
	if !listed {
		return &exitError{1, errors.New(events.FormatPrefix(p) + " is not on the live allowlist")}
	}
	if c.Output != "json" {
		fmt.Printf("%s is covered by %s: %s\n", events.FormatPrefix(p), e.Prefix, e.Why)
	}
	return nil
}

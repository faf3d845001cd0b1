package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type flushCmd struct {
	client
	signing
	Address    string   `arg:"" help:"An address or a prefix."`
	Firewall   []string `placeholder:"NAME" help:"Only these firewalls; may be repeated (default: all of the realm)."`
	Realm      string   `placeholder:"NAME" help:"Whose entries are meant (default: the realm default; with --firewall, each one's own). A conntrack zone is a realm of its own: default_z7."`
	By         string   `enum:"src,dst,either" default:"src" help:"Match the original source, destination, or either (${default})."`
	Unanswered bool     `help:"Only entries that have had no answer."`
	DryRun     bool     `help:"Count what would be deleted and delete nothing."`
	Reason     string   `placeholder:"TEXT" help:"Why: kept in the audit."`
	Yes        bool     `short:"y" env:"-" help:"Do not ask. Without it, a terminal shows the dry run first and asks; without a terminal it is needed."`
}

// flushLife is how long a command may be carried out, and how long its answer
// is waited for.
const flushLife = 15 * time.Second

func (c *flushCmd) Run(ctx context.Context) error {
	prefix, err := events.ParsePrefix(c.Address)
	if err != nil {
		return &exitError{2, err}
	}
	slices.Sort(c.Firewall)
	c.Firewall = slices.Compact(c.Firewall) // twice would be a repetition, which a firewall refuses
	for _, f := range c.Firewall {
		if err := events.CheckFirewall(f); err != nil {
			return &exitError{2, err}
		}
	}
	if !c.DryRun && !c.Yes && !interactive(os.Stdin) {
		return &exitError{2, errors.New("standard input is no terminal to ask at: give --yes, or --dry-run")}
	}
	key, err := c.signer()
	if err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	firewalls := c.Firewall
	if len(firewalls) == 0 {
		if firewalls, err = realmFirewalls(ctx, conn, cmp.Or(c.Realm, events.RealmDefault)); err != nil {
			return err
		}
	}
	addresses := []string{prefix.String()}
	if prefix.IsSingleIP() {
		addresses[0] = prefix.Addr().String()
	}
	run := func(dry bool) (string, []events.Receipt) {
		id := strings.ToLower(rand.Text())
		return id, command(ctx, conn, key, firewalls, events.Command{
			ID: id, Verb: events.VerbFlush, Actor: events.ActorOperator, Reason: c.Reason, Realm: c.Realm, Addresses: addresses, By: c.By, DryRun: dry, Unanswered: c.Unanswered,
		})
	}
	if !c.DryRun && !c.Yes {
		_, receipts := run(true)
		if err := printReceipts(os.Stderr, "human", "", receipts); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "Delete these entries of %s on %d firewalls? [y/N] ", addresses[0], len(firewalls))
		// No answer is a no, whatever ended it.
		answer, _ := interruptible(ctx, func() (string, error) { return bufio.NewReader(os.Stdin).ReadString('\n') })
		if !strings.EqualFold(strings.TrimSpace(answer), "y") {
			return &exitError{1, errors.New("nothing was deleted")}
		}
	}
	id, receipts := run(c.DryRun)
	if err := printReceipts(os.Stdout, c.Output, id, receipts); err != nil {
		return err
	}
	return outcome(receipts)
}

// realmFirewalls lists the firewalls of a realm that have not announced a clean
// stop, by their last health.
func realmFirewalls(ctx context.Context, conn *bus.Conn, realm string) ([]string, error) {
	if _, err := conn.State(ctx, bus.StreamLast); err != nil {
		return nil, err
	}
	last, err := conn.Last(ctx, bus.StreamLast, events.SubjectHealth+".*")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, m := range last {
		var h events.Health
		name, err := events.SubjectFirewall(m.Subject, events.SubjectHealth)
		if err == nil {
			err = events.Unmarshal(m.Data, &h)
		}
		if err == nil && h.Firewall == name && inRealm(h.Realm, realm) && !h.Stopping {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("no firewall of realm %q is known", realm)
	}
	slices.Sort(names)
	return names, nil
}

// inRealm reports whether a firewall of the realm own has entries of realm: its
// own, or one of its conntrack zones.
func inRealm(own, realm string) bool {
	_, ok := events.ZoneOf(realm, own)
	return ok
}

// command sends one command to each firewall and collects the receipts, in the
// order of the firewalls. One that does not answer gets a receipt that says so.
func command(ctx context.Context, conn *bus.Conn, key *seal.Signer, firewalls []string, cmd events.Command) []events.Receipt {
	receipts := make([]events.Receipt, len(firewalls))
	var wg sync.WaitGroup
	for i, name := range firewalls {
		wg.Go(func() {
			r := &receipts[i]
			if err := ask(ctx, conn, key, name, cmd, r); err != nil {
				*r = events.Receipt{ID: cmd.ID, Firewall: name, Verb: cmd.Verb, DryRun: cmd.DryRun, Refused: []events.Refusal{}, Error: err.Error()}
			}
		})
	}
	wg.Wait()
	return receipts
}

// ask learns the firewall's clock and present run, then sends the command.
func ask(ctx context.Context, conn *bus.Conn, key *seal.Signer, firewall string, cmd events.Command, r *events.Receipt) error {
	ctx, cancel := context.WithTimeout(ctx, flushLife)
	defer cancel()
	var h events.Health
	status := events.Command{Verb: events.VerbStatus, Firewall: firewall, Actor: events.ActorOperator}
	if err := conn.Request(ctx, events.CommandSubject(firewall, events.VerbStatus), &status, &h); err != nil {
		if errors.Is(err, bus.ErrNobody) {
			return errors.New("no answer: its producer is not connected")
		}
		return err
	}
	cmd.Firewall, cmd.Boot, cmd.Expires = firewall, h.Boot, h.Sent+int64(flushLife)
	return conn.Command(ctx, key, events.CommandSubject(firewall, cmd.Verb), &cmd, r)
}

func printReceipts(w io.Writer, format, id string, receipts []events.Receipt) error {
	if format == "json" {
		return printJSON(w, map[string]any{"id": id, "receipts": receipts})
	}
	t := newTable(w, format, "FIREWALL", "MATCHED", "DELETED", "GONE", "REFUSED", "TABLE", "MS", "NOTE")
	for i := range receipts {
		r := &receipts[i]
		var refused []string
		for _, f := range r.Refused {
			refused = append(refused, strings.TrimSpace(fmt.Sprintf("%s %s", f.Reason, countOf(f.Count))))
		}
		note := r.Error
		if note == "" && r.DryRun {
			note = "dry run: nothing was deleted"
		}
		if note == "" && r.TCPLoose && r.Deleted > 0 {
			note = "tcp_loose=1: routed TCP comes back with its next packet"
		}
		size := fmt.Sprintf("%d → %d", r.TableBefore, r.TableAfter)
		if r.TableBefore == 0 && r.Error != "" {
			size = "" // it was not looked at
		}
		t.add(r.Firewall, r.Matched, r.Deleted, r.Gone, strings.Join(refused, ", "), size, r.DurationMS, note)
	}
	return t.flush()
}

func countOf(n uint64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("× %d", n)
}

// outcome is exit code 1 if any firewall failed, else 3 if any refused.
func outcome(receipts []events.Receipt) error {
	failed, refused := false, false
	for i := range receipts {
		r := &receipts[i]
		// A command that was refused as a whole has a refusal without a count,
		// and its error says why.
		whole := slices.ContainsFunc(r.Refused, func(f events.Refusal) bool { return f.Count == 0 })
		failed = failed || r.Error != "" && !whole
		refused = refused || len(r.Refused) > 0
	}
	switch {
	case failed:
		return &exitError{code: 1}
	case refused:
		return &exitError{code: 3}
	}
	return nil
}

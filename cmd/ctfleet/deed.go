package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// where are the flags that say which firewalls are meant.
type where struct {
	Firewall []string `placeholder:"NAME" help:"Only these firewalls; may be repeated (default: all of the realm)."`
	Realm    string   `placeholder:"NAME" help:"Whose addresses are meant (default: the realm default; with --firewall, each one's own). A conntrack zone is a realm of its own: default_z7."`
}

func (w *where) check() error {
	slices.Sort(w.Firewall)
	w.Firewall = slices.Compact(w.Firewall) // twice would be a repetition, which a firewall refuses
	for _, f := range w.Firewall {
		if err := events.CheckFirewall(f); err != nil {
			return &exitError{2, err}
		}
	}
	return nil
}

// firewalls are those that are named, or all of the realm.
func (w *where) firewalls(ctx context.Context, conn *bus.Conn) ([]string, error) {
	if len(w.Firewall) > 0 {
		return w.Firewall, nil
	}
	return realmFirewalls(ctx, conn, cmp.Or(w.Realm, events.RealmDefault))
}

// deed are the flags of every command that has firewalls change something.
type deed struct {
	client
	signing
	where
	DryRun bool   `help:"Tell what would be done, and do nothing."`
	Reason string `placeholder:"TEXT" help:"Why: kept in the audit."`
	Yes    bool   `short:"y" env:"-" help:"Do not ask. Without it, a terminal shows the dry run first and asks; without a terminal it is needed."`
}

// order is what a deed asks of each firewall.
type order struct {
	cmd      events.Command // what is the same for all
	question string         // at a terminal, with a place for the number of firewalls
	nothing  string         // what has happened when the answer is no
	wait     bool           // for what came back
}

// prefix reads the address that a deed is about, and returns it as it is written on
// the bus.
func prefix(s string) (string, error) {
	p, err := events.ParsePrefix(s)
	if err != nil {
		return "", &exitError{2, err}
	}
	return events.FormatPrefix(p), nil
}

// carryOut shows the dry run and asks, at a terminal, then sends the command to all
// firewalls that are meant, and prints their receipts.
func (d *deed) carryOut(ctx context.Context, o order) error {
	if err := d.check(); err != nil {
		return err
	}
	if !d.DryRun && !d.Yes && !interactive(os.Stdin) {
		return &exitError{2, errors.New("standard input is no terminal to ask at: give --yes, or --dry-run")}
	}
	key, err := d.signer()
	if err != nil {
		return err
	}
	conn, err := d.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	firewalls, err := d.firewalls(ctx, conn)
	if err != nil {
		return err
	}
	o.cmd.Actor, o.cmd.Reason, o.cmd.Realm = events.ActorOperator, d.Reason, d.Realm
	send := func(dry bool) []events.Receipt {
		o.cmd.ID, o.cmd.DryRun = strings.ToLower(rand.Text()), dry
		return command(ctx, conn, key, firewalls, o.cmd)
	}
	if !d.DryRun && !d.Yes {
		if err := printReceipts(os.Stderr, "human", &o, send(true)); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, o.question+" [y/N] ", len(firewalls))
		// No answer is a no, whatever ended it.
		answer, _ := interruptible(ctx, func() (string, error) { return bufio.NewReader(os.Stdin).ReadString('\n') })
		if !strings.EqualFold(strings.TrimSpace(answer), "y") {
			return &exitError{1, errors.New(o.nothing)}
		}
	}
	var clock bus.Clock
	if o.wait {
		if clock, err = conn.Clock(ctx, bus.StreamAudit); err != nil {
			return err
		}
	}
	receipts := send(d.DryRun)
	if o.wait {
		if err := awaitResiduals(ctx, conn, clock.Server, receipts); err != nil {
			return err
		}
	}
	if err := printReceipts(os.Stdout, d.Output, &o, receipts); err != nil {
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

// each runs fn for all firewalls at once, and returns the answers in their order.
func each[T any](firewalls []string, fn func(firewall string) T) []T {
	out := make([]T, len(firewalls))
	var wg sync.WaitGroup
	for i, name := range firewalls {
		wg.Go(func() { out[i] = fn(name) })
	}
	wg.Wait()
	return out
}

// commandLife is how long a command may be carried out, and how long its answer is
// waited for.
const commandLife = 15 * time.Second

// command sends one command to each firewall and collects the receipts, in the
// order of the firewalls. One that does not answer gets a receipt that says so.
func command(ctx context.Context, conn *bus.Conn, key *seal.Signer, firewalls []string, cmd events.Command) []events.Receipt {
	clock, clockErr := conn.BucketClock(ctx, bus.BucketAllowlist)
	cmd.Issued = clock.At(time.Now()).UnixMilli()
	receipts := each(firewalls, func(name string) (r events.Receipt) {
		if clockErr != nil {
			return events.Receipt{ID: cmd.ID, Firewall: name, Verb: cmd.Verb, DryRun: cmd.DryRun, Refused: []events.Refusal{}, Error: clockErr.Error()}
		}
		if err := ask(ctx, conn, key, name, cmd, &r); err != nil {
			return events.Receipt{ID: cmd.ID, Firewall: name, Verb: cmd.Verb, DryRun: cmd.DryRun, Refused: []events.Refusal{}, Error: err.Error()}
		}
		return r
	})
	unsigned := func(f events.Refusal) bool { return f.Reason == guard.Unsigned }
	if key == nil && slices.ContainsFunc(receipts, func(r events.Receipt) bool { return slices.ContainsFunc(r.Refused, unsigned) }) {
		complain("firewalls want this signed: --sign-key FILE, which ctfleet auth key makes")
	}
	return receipts
}

// ask learns the firewall's clock and present run, then sends the command.
func ask(ctx context.Context, conn *bus.Conn, key *seal.Signer, firewall string, cmd events.Command, r *events.Receipt) error {
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	h, err := status(ctx, conn, firewall)
	if err != nil {
		return err
	}
	cmd.Firewall, cmd.Boot, cmd.Expires = firewall, h.Boot, h.Sent+int64(commandLife)
	if err := conn.Command(ctx, key, events.CommandSubject(firewall, cmd.Verb), &cmd, r); err != nil {
		return err
	}
	if r.ID != cmd.ID || r.Firewall != firewall {
		return fmt.Errorf("the answer is about command %s of %s: somebody else answers", r.ID, r.Firewall)
	}
	return nil
}

// status asks a firewall how it is.
func status(ctx context.Context, conn *bus.Conn, firewall string) (h events.Health, err error) {
	cmd := events.Command{Verb: events.VerbStatus, Firewall: firewall, Actor: events.ActorOperator}
	err = conn.Request(ctx, events.CommandSubject(firewall, events.VerbStatus), &cmd, &h)
	if errors.Is(err, bus.ErrNobody) {
		err = errors.New("no answer: its producer is not connected")
	}
	return h, err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type guardCmd struct {
	Status guardStatusCmd `cmd:"" default:"withargs" help:"Whether the circuit is open, and what was done lately. Exit code 3 if it is open."`
	Close  guardCloseCmd  `cmd:"" help:"Let policies act again."`
	Open   guardOpenCmd   `cmd:"" help:"Stop all of them: they only observe until it is closed."`
}

type guardStatusCmd struct {
	client
	trusting
}

func (c *guardStatusCmd) Run(ctx context.Context) error {
	trust, err := c.open()
	if err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	clock, err := conn.BucketClock(ctx, bus.BucketGuard)
	if err != nil {
		return err
	}
	l, _, err := readLedger(ctx, conn, trust)
	if err != nil {
		return err
	}
	now := clock.At(time.Now())
	if err := printLedger(os.Stdout, c.Output, &l, now); err != nil {
		return err
	}
	if l.Circuit.Open {
		return &exitError{code: 3}
	}
	return nil
}

// readLedger reads the ledger of those who act, or where there is none of those who
// only observe, and verifies it if it is known whom to trust.
func readLedger(ctx context.Context, conn *bus.Conn, trust *seal.Trust) (l events.Ledger, found bool, err error) {
	m, err := conn.Value(ctx, bus.BucketGuard, events.KeyLedger)
	signed := m.Seq > 0
	if err == nil && !signed {
		m, err = conn.Value(ctx, bus.BucketGuard, events.KeyUnsigned)
	}
	if err != nil || m.Seq == 0 {
		return l, false, err
	}
	if signed {
		party, err := trust.Verify(m.Seal, seal.VerbFlush, m.Subject, m.Data)
		if err == nil && !trust.Open() && party.Role != seal.RoleResponder {
			err = fmt.Errorf("%s is no responder", party.Name)
		}
		if err != nil {
			return l, true, fmt.Errorf("the ledger cannot be believed, which responders take for an open circuit: %w", err)
		}
	}
	return l, true, events.Unmarshal(m.Data, &l)
}

func printLedger(w io.Writer, format string, l *events.Ledger, now time.Time) error {
	switch format {
	case "json":
		if l.Acts == nil {
			l.Acts = []events.Acted{}
		}
		return printJSON(w, l)
	case "human":
		state := "closed: policies act as their modes say"
		if l.Circuit.Open {
			state = "OPEN: policies only observe"
		}
		fmt.Fprintln(w, "circuit", state)
		if c := l.Circuit; c.Since > 0 {
			who := "a responder"
			if c.Who != "" {
				who = c.Who
			}
			fmt.Fprintf(w, "since %s ago, by %s: %s\n", now.Sub(time.UnixMilli(c.Since)).Round(time.Second), printable(who), printable(c.Why))
		}
		if len(l.Acts) == 0 {
			fmt.Fprintln(w, "nothing was done lately")
			return nil
		}
	}
	t := newTable(w, format, "ADDRESS", "REALM", "AGO", "LEFT ALONE FOR", "NOTE")
	for _, a := range l.Acts {
		note, ago := "", now.Sub(time.UnixMilli(a.At)).Round(time.Second).String()
		switch {
		case a.At == 0:
			note, ago = "every firewall refused it", "-"
		case a.Simulated:
			note = "simulated"
		}
		t.add(a.Address, a.Realm, ago, max(0, time.UnixMilli(a.Until).Sub(now).Round(time.Second)), note)
	}
	return t.flush()
}

type circuitCmd struct {
	client
	signing
	trusting
	Reason string `placeholder:"TEXT" help:"Why: kept in the audit."`
}

type (
	guardCloseCmd struct{ circuitCmd }
	guardOpenCmd  struct{ circuitCmd }
)

func (c *guardCloseCmd) Run(ctx context.Context) error { return c.order(ctx, false) }

func (c *guardOpenCmd) Run(ctx context.Context) error { return c.order(ctx, true) }

// order tells the responders, and waits until one has obeyed.
func (c *circuitCmd) order(ctx context.Context, open bool) error {
	trust, err := c.trusting.open()
	if err != nil {
		return err
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
	ctx, cancel := context.WithTimeout(ctx, commandLife)
	defer cancel()
	clock, err := conn.BucketClock(ctx, bus.BucketGuard)
	if err != nil {
		return err
	}
	what := "closes the circuit"
	if open {
		what = "opens the circuit"
	}
	if err := record(ctx, conn, key, &events.Act{Verb: events.VerbCircuit, What: what, Reason: c.Reason}); err != nil {
		return err
	}
	o := &events.CircuitOrder{Open: open, Reason: c.Reason, Time: clock.At(time.Now()).UnixMilli()}
	if err := conn.Put(ctx, key, bus.BucketGuard, events.KeyCircuit, o); err != nil {
		return err
	}
	for begin := time.Now(); time.Since(begin) < outcomeWait; daemon.Sleep(ctx, 50*time.Millisecond) {
		l, found, err := readLedger(ctx, conn, trust)
		if err != nil && !found {
			return err
		}
		if err == nil && l.Circuit.Open == open && (found || !open) {
			fmt.Fprintln(os.Stderr, map[bool]string{true: "the circuit is open: policies only observe", false: "the circuit is closed"}[open])
			return nil
		}
	}
	return errors.New("no responder has obeyed: is one running, and does it trust this key for guard?")
}

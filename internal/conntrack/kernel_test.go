//go:build linux

package conntrack

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// firewall builds a lab of one firewall with both families.
func firewall(t testing.TB, spec lab.FirewallSpec) *lab.Firewall {
	t.Helper()
	spec.Name, spec.IPv6 = "fw-a", true
	return labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{spec}}).Firewall("fw-a")
}

func dial(t testing.TB, ns *host.Namespace) *Conn {
	t.Helper()
	c, err := Dial(ns)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func open(t testing.TB, ns *host.Namespace, bytes int) *Reader {
	t.Helper()
	r, err := NewReader(ReaderConfig{Namespace: ns, BufferBytes: bytes})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// oracle opens the library's connection to the firewall's table.
func oracle(t testing.TB, ns *host.Namespace) *timo.Conn {
	t.Helper()
	var c *timo.Conn
	err := ns.Do(func() (err error) {
		c, err = timo.Dial(nil)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// flood makes the flows and checks that all were sent.
func flood(t testing.TB, fw *lab.Firewall, f traffic.Flood) {
	t.Helper()
	report, err := f.Run(t.Context(), fw)
	if err != nil {
		t.Fatal(err)
	}
	if f.Count > 0 && report.Sent != f.Count {
		t.Fatalf("flood sent %d packets, want %d", report.Sent, f.Count)
	}
}

// udp is a flood of n flows from src, all of one address, to the server of its family.
func udp(src netip.Prefix, n int) traffic.Flood {
	f := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: src, Destinations: server4, Port: 53, Count: n}
	if src.Addr().Is6() {
		f.Destinations = server6
	}
	return f
}

// patience bounds every wait for something that the kernel does at once.
const patience = 10 * time.Second

// collect receives until it has n events.
func collect(t testing.TB, r *Reader, n int) []events.Event {
	t.Helper()
	var got []events.Event
	for deadline := time.Now().Add(patience); len(got) < n; {
		if time.Now().After(deadline) {
			drops, err := r.Drops()
			t.Fatalf("%d events within %s, want %d (dropped: %d, %v)", len(got), patience, n, drops, err)
		}
		_, err := r.Receive(time.Second, func(evs []events.Event) { got = append(got, evs...) })
		if err != nil {
			t.Fatal(err)
		}
	}
	return got
}

// entries dumps the table.
func entries(t testing.TB, c *Conn) []events.Event {
	t.Helper()
	var got []events.Event
	err := c.Dump(t.Context(), func(rows []events.Event) error {
		got = append(got, rows...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func errorsIs(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("error %v, want %v", err, want)
	}
}

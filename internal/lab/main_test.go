//go:build linux

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

// roleVar makes the test binary play a program that calls lab.Enter, instead of running tests.
const roleVar = "LAB_TEST_ROLE"

func TestMain(m *testing.M) {
	role := os.Getenv(roleVar)
	if role == "" {
		os.Exit(m.Run())
	}
	code, err := play(role)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// play is main of the program under test: it opens a listener, enters, and does what its role says.
func play(role string) (int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var listeners []net.Listener
	if _, arriving := os.LookupEnv("CTFLEET_LAB_INSIDE"); !arriving && role == "lab" {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		fmt.Println(l.Addr())
		listeners = []net.Listener{l}
	}
	inside, inherited, code, err := lab.Enter(ctx, listeners)
	if err != nil || !inside {
		return code, err
	}
	switch role {
	case "lab":
		return 7, serveLab(ctx, inherited)
	case "signal":
		signals := make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
		fmt.Println("ready")
		select {
		case s := <-signals:
			fmt.Println(s)
			// A program that is told twice to end takes it as "at once".
			select {
			case <-signals:
				return 6, nil
			case <-time.After(100 * time.Millisecond):
				return 5, nil
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	case "killed":
		fmt.Println("ready")
		return 0, unix.Kill(os.Getpid(), unix.SIGKILL)
	case "wait":
		fmt.Println("ready")
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return 0, fmt.Errorf("no role %q", role)
}

// serveLab builds a lab, sends flows through it, and tells the first client of the
// listener what it found.
func serveLab(ctx context.Context, listeners []net.Listener) error {
	if len(listeners) != 1 {
		return fmt.Errorf("inherited %d listeners, want 1", len(listeners))
	}
	// The loopback of the new namespace must work too.
	own, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	conn, err := net.Dial("tcp", own.Addr().String())
	if err != nil {
		return err
	}
	_ = conn.Close()

	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{
		Name: "fw-a", IPv6: true,
		Sysctls: map[string]string{"net.netfilter.nf_conntrack_acct": "1", "net.netfilter.nf_conntrack_timestamp": "1", "net.netfilter.nf_conntrack_tcp_loose": "0"},
	}}})
	if err != nil {
		return err
	}
	fw := l.Firewall("fw-a")
	for _, f := range []traffic.Flood{
		{Protocol: unix.IPPROTO_UDP, Sources: netip.MustParsePrefix("198.18.0.1/32"), Destinations: netip.MustParsePrefix("203.0.113.1/32"), Port: 53, Count: 300},
		{Protocol: unix.IPPROTO_TCP, Sources: netip.MustParsePrefix("2001:db8:18::1/128"), Destinations: netip.MustParsePrefix("2001:db8:113::1/128"), Port: 443, Count: 200, Answer: true},
	} {
		if _, err := f.Run(ctx, fw); err != nil {
			return err
		}
	}
	entries, err := fw.Entries()
	if err != nil {
		return err
	}
	client, err := listeners[0].Accept()
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(client, "uid %d, %d entries\n", os.Getuid(), entries)
	return errors.Join(err, client.Close())
}

//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
)

const (
	tollRounds = 7
	tollFlows  = 250_000
)

// benchToll measures what a listener takes from the core that forwards: the
// rate of new flows at the generator's full speed without and with one. The
// generator, in whose system calls packets are forwarded, has one core, the
// listener and the NATS server have the other.
func benchToll(ctx context.Context) (rows []figure, err error) {
	if runtime.NumCPU() < 2 {
		return nil, errors.New("needs two cores: one that forwards, one for the listener")
	}
	if err := pin(os.Getpid(), 0); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, unpin(os.Getpid())) }()
	server, url, err := startSelf(ctx, "-role", roleServer)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := pin(server.pid(), 1); err != nil {
		return nil, err
	}
	listeners := []string{nobody, roleProducer, roleDeaf, roleBlocking, roleTimo}
	rates := map[string][]float64{}
	for range tollRounds {
		for _, role := range listeners {
			rate, err := tollOnce(ctx, role, url)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", role, err)
			}
			rates[role] = append(rates[role], rate/1000)
		}
	}
	free, ours := median(rates[nobody]), median(rates[roleProducer])
	const target = 0.7
	rows = append(rows,
		figure{what: "new flows/s of one forwarding core, producer attached against nobody", ours: spread(rates[roleProducer], "k/s"), others: spread(rates[nobody], "k/s"),
			ratio: fmt.Sprintf("%.2f", ours/free), target: fmt.Sprintf("≥ %.2f", target), met: ours/free >= target,
			why: fmt.Sprintf("A listener that never reads leaves %.2f: what the kernel spends on building a message for each event, %.1f µs on a flow of %.1f µs. Ours adds %.1f µs, for memory that comes back from another core and a queue that two cores share.",
				median(rates[roleDeaf])/free, 1000/median(rates[roleDeaf])-1000/free, 1000/free, 1000/ours-1000/median(rates[roleDeaf]))})
	for _, other := range []struct{ role, name string }{{roleDeaf, "a listener that never reads: what the messages themselves cost"}, {roleBlocking, "a blocking reader (one recv per event)"}, {roleTimo, "ti-mo `Listen`"}} {
		they := median(rates[other.role])
		rows = append(rows, figure{what: "the same, " + other.name + " against nobody", others: spread(rates[other.role], "k/s"), ratio: fmt.Sprintf("%.2f", they/free)})
	}
	return rows, nil
}

// nobody is no role: there is no listener.
const nobody = "nobody"

// tollOnce returns the flows per second of one flood.
func tollOnce(ctx context.Context, role, url string) (rate float64, err error) {
	l, err := lab.New(ctx, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: firewall}}})
	if err != nil {
		return 0, err
	}
	defer l.Close()
	fw := l.Firewall(firewall)
	if role != nobody {
		r, err := start(ctx, role, fw.NS, url)
		if err != nil {
			return 0, err
		}
		defer func() { err = errors.Join(err, r.stop()) }()
		if err := pin(r.pid(), 1); err != nil {
			return 0, err
		}
	}
	time.Sleep(300 * time.Millisecond)
	rep, err := send(ctx, fw, udp(settlers, tollFlows, 0))
	return float64(rep.Sent) / rep.Elapsed.Seconds(), err
}

// pin binds a process, with all threads that it has and will have, to a core.
func pin(pid, core int) error {
	var set unix.CPUSet
	set.Set(core)
	return bind(pid, &set)
}

func unpin(pid int) error {
	var set unix.CPUSet
	for i := range 1024 {
		set.Set(i) // the kernel leaves out those that are not there
	}
	return bind(pid, &set)
}

func bind(pid int, set *unix.CPUSet) error {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return err
	}
	for _, t := range threads {
		tid, err := strconv.Atoi(t.Name())
		if err == nil {
			err = unix.SchedSetaffinity(tid, set)
		}
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("bind thread %s: %w", t.Name(), err)
		}
	}
	return nil
}

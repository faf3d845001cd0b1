package producer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// preflight logs what an operator should know about this host and keeps it for
// the health messages.
func (p *Producer) preflight() {
	if p.input != nil {
		p.problems.Store(&[]string{p.opt.limits()})
		return
	}
	granted, wanted := p.reader.Buffer()
	var list []string
	for _, f := range host.Preflight(gather(p.opt, p.ns, p.trust, granted, wanted)) {
		level := slog.LevelWarn
		if f.Fatal {
			level = slog.LevelError
		}
		p.log.Log(context.Background(), level, f.What, "remedy", f.Remedy)
		list = append(list, f.String())
	}
	p.problems.Store(&list)
}

// gather reads the facts that the preflight judges.
func gather(opt Options, ns *host.Namespace, trust *seal.Trust, granted, wanted int) host.Facts {
	f := host.Facts{
		NetAdmin: host.NetAdmin(), BufferGranted: granted, BufferWanted: wanted,
		AllowFlush: opt.AllowFlush, AllowBlock: opt.AllowBlock, Unsigned: trust.Open(), Trusted: trust.Len(),
	}
	conn, err := conntrack.Dial(ns)
	if err == nil {
		_, err = conn.State()
		conn.Close()
	}
	f.TableError = err
	if s, err := conntrack.ReadSysctls(ns); err == nil {
		f.Events, f.Acct, f.TCPLoose = s.Events, s.Acct, s.TCPLoose
	}
	_, f.PeersError = host.Peers(ns, opt.SSHPort...)
	if ipv4, ipv6, err := conntrack.Enabled(ns); err == nil {
		on := ipv4 || ipv6
		f.Tracking = &on
	}
	return f
}

// ErrCheck is returned by Check when something fatal was found.
var ErrCheck = errors.New("the preflight found something that keeps the producer from working")

// Check prints what would be used and what is missing on this host.
func Check(w io.Writer, opt Options, nats bus.Flags) error {
	if err := opt.Validate(); err != nil {
		return err
	}
	trust, err := seal.OpenTrust(opt.Trust)
	if err != nil {
		return fmt.Errorf("--trust: %w", err)
	}
	if !opt.kernel() {
		return checkInput(w, opt, nats)
	}
	var ns *host.Namespace
	if opt.NetNS != "" {
		if ns, err = host.OpenNamespace(opt.NetNS); err != nil {
			return fmt.Errorf("--netns: %w", err)
		}
		defer ns.Close()
	}
	granted, wanted := 0, opt.BufferBytes
	r, err := conntrack.NewReader(conntrack.ReaderConfig{Namespace: ns, BufferBytes: opt.BufferBytes})
	if err == nil {
		granted, wanted = r.Buffer()
		r.Close()
	}
	facts := gather(opt, ns, trust, granted, wanted)
	_, facts.BlockError = opt.openBlocks(ns)
	if facts.TableError == nil {
		facts.TableError = err
	}
	fmt.Fprintf(w, "name %s, realm %s, linger %s, ring %d MiB, socket buffer %d of %d KiB, allow-flush %t, allow-block %s, protect %v, trusts %s, NATS %s\n",
		opt.Name, opt.Realm, opt.Linger, opt.RingBytes>>20, granted>>10, wanted>>10, opt.AllowFlush, opt.blocking(), opt.Protect, trust, nats.Servers())
	if id, err := host.Identify(ns); err == nil {
		peers, _ := host.Peers(ns, opt.SSHPort...) // the preflight says why not
		fmt.Fprintf(w, "never flushed or blocked: own addresses %v, gateways %v, resolvers %v, SSH sessions %v, the NATS server\n", id.Addresses, id.Gateways, id.Resolvers, peers)
	}
	return report(w, host.Preflight(facts), opt, nats)
}

// report prints what was found, and what is found on the way to the bus.
func report(w io.Writer, found []daemon.Finding, opt Options, nats bus.Flags) error {
	found = append(found, nats.Check(context.Background(), opt.needs())...)
	if !daemon.Report(w, found) {
		return ErrCheck
	}
	return nil
}

// needs are what a producer does on the bus. Its health goes to whoever listens, so
// that is not tried.
func (o *Options) needs() bus.Needs {
	n := bus.Needs{
		Role: "producer", Name: o.Name, Permits: "ctfleet auth add-firewall " + o.Name + " --dir DIR --nats-url URL",
		Publish:   []string{events.EventsSubject(o.Name), events.SnapshotsSubject(o.Name), events.AuditSubject(o.Name, events.VerbReload)},
		Subscribe: []string{events.SubjectPace},
	}
	for _, verb := range []string{events.VerbFlush, events.VerbBlock, events.VerbUnblock, events.VerbResync, events.VerbStatus} {
		n.Subscribe = append(n.Subscribe, events.CommandSubject(o.Name, verb))
	}
	n.Streams = []string{bus.StreamEvents, bus.StreamSnapshots, bus.StreamLast, bus.StreamAudit, bus.BucketStream(bus.BucketAllowlist)}
	return n
}

// checkInput is Check for a producer that watches no table.
func checkInput(w io.Writer, opt Options, nats bus.Flags) error {
	in, err := opt.openInput()
	if err != nil {
		return err
	}
	if opt.Input != "-" {
		in.Close()
	}
	fmt.Fprintf(w, "name %s, realm %s, source %s from %s, linger %s, ring %d MiB, NATS %s\nnote   %s\n",
		opt.Name, opt.Realm, opt.Source, opt.Input, opt.Linger, opt.RingBytes>>20, nats.Servers(), opt.limits())
	return report(w, nil, opt, nats)
}

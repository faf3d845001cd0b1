//go:build linux

package producer

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// blocking are the options of a producer that may do everything.
func blocking() Options { return Options{AllowFlush: true, AllowBlock: true} }

// block sends a block, for a minute unless the command says otherwise.
func (r *rig) block(c events.Command) *events.Receipt {
	r.t.Helper()
	if c.BlockS == 0 {
		c.BlockS = 60
	}
	return r.command(events.VerbBlock, c)
}

func (r *rig) unblock(c events.Command) *events.Receipt {
	r.t.Helper()
	return r.command(events.VerbUnblock, c)
}

// wantBlocked checks what an answer to a status command lists.
func (r *rig) wantBlocked(want ...string) {
	r.t.Helper()
	var h events.Health
	c := events.Command{Verb: events.VerbStatus, Firewall: "fw-a", Actor: events.ActorOperator}
	if err := r.conn.Request(r.t.Context(), events.CommandSubject("fw-a", events.VerbStatus), &c, &h); err != nil {
		r.t.Fatal(err)
	}
	var got []string
	for _, b := range h.Blocked {
		if b.LeftS <= 0 {
			r.t.Errorf("%s has %g s left", b.Prefix, b.LeftS)
		}
		got = append(got, b.Prefix)
	}
	if !slices.Equal(got, want) || h.BlockedMore != 0 || len(h.Problems) != len(r.p.health(false).Problems) {
		r.t.Errorf("blocked are %v, want %v; problems %v", got, want, h.Problems)
	}
	if h := r.p.health(false); h.Blocked != nil {
		r.t.Errorf("each second's health lists %v", h.Blocked)
	}
}

// blockedFor checks a receipt's end.
func (r *rig) blockedFor(rec *events.Receipt, d time.Duration) {
	r.t.Helper()
	if rec.Error != "" || len(rec.Refused) != 0 || rec.BlockedUntil == nil {
		r.t.Errorf("%+v, want it blocked", rec)
		return
	}
	if left := time.Until(time.UnixMilli(*rec.BlockedUntil)); left > d || left < d-5*time.Second {
		r.t.Errorf("blocked for %s, want %s", left, d)
	}
}

// entriesOf counts what the table has of a source.
func (r *rig) entriesOf(source string) (n int) {
	r.t.Helper()
	c, err := conntrack.Dial(r.fw.NS)
	if err != nil {
		r.t.Fatal(err)
	}
	defer c.Close()
	m := conntrack.Match{Prefixes: []netip.Prefix{netip.MustParsePrefix(source)}, By: events.BySrc}
	res, err := c.Flush(r.t.Context(), m, conntrack.FlushOptions{DryRun: true})
	if err != nil {
		r.t.Fatal(err)
	}
	return int(res.Matched)
}

func (r *rig) talk(port uint16, clients ...string) *traffic.Talkers {
	r.t.Helper()
	talk := traffic.Talk{
		Servers: traffic.Addresses(lab.ServerPrefix4, 1), Port: port,
		Kept: 1, Interval: 10 * time.Millisecond, Timeout: 500 * time.Millisecond,
	}
	for _, c := range clients {
		talk.Clients = append(talk.Clients, netip.MustParseAddr(c))
	}
	talkers, err := traffic.Start(r.t.Context(), r.fw, talk)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(talkers.Close)
	return talkers
}

// TestBlock: a block keeps what its address sends out of the table, and nothing
// else; what is there already stays.
func TestBlock(t *testing.T) {
	r := newRig(t, blocking())
	const bad, good = "198.18.0.66", "198.18.0.67"
	r.flood(udp4(bad+"/32", 0, 5))
	r.until("all flows", func() bool { return r.new == 5 })
	if dry := r.block(events.Command{ID: "dry", Addresses: []string{bad}, DryRun: true}); dry.Matched != 5 || dry.BlockedUntil != nil || dry.Error != "" {
		t.Errorf("dry run: %+v", dry)
	}
	r.wantBlocked()
	rec := r.block(events.Command{ID: "one", Addresses: []string{bad, "2001:db8:18:6::/64"}, Reason: "a test", BlockS: 300})
	r.blockedFor(rec, 5*time.Minute)
	if rec.Deleted != 0 || rec.Verb != events.VerbBlock || rec.Reason != "a test" {
		t.Errorf("receipt: %+v", rec)
	}
	r.wantBlocked(bad, "2001:db8:18:6::/64")
	r.flood(udp4(bad+"/32", 100, 5))
	r.flood(udp4(good+"/32", 0, 5))
	r.until("the other's flows", func() bool { return r.new == 10 })
	if n := r.entriesOf(bad + "/32"); n != 5 {
		t.Errorf("%d entries, want the 5 from before the block", n)
	}
	if got := r.metric("ctfleet_blocked_prefixes_total"); got != 2 {
		t.Errorf("%g blocks are counted", got)
	}
	// The same command again does nothing; another one prolongs.
	if rec := r.block(events.Command{ID: "one", Addresses: []string{bad}}); len(rec.Refused) != 1 || rec.Refused[0].Reason != guard.Replayed || rec.BlockedUntil != nil {
		t.Errorf("a second time: %+v", rec)
	}
	r.blockedFor(r.block(events.Command{ID: "longer", Addresses: []string{bad}, BlockS: 3600}), time.Hour)
	r.blockedFor(r.block(events.Command{ID: "shorter", Addresses: []string{bad}, BlockS: 60}), time.Hour)

	// To end it is to end that entry and no other.
	r.blockedFor(r.block(events.Command{ID: "around", Addresses: []string{"198.18.0.64/28"}}), time.Minute)
	if rec := r.unblock(events.Command{ID: "dry", Addresses: []string{bad}, DryRun: true}); rec.Unblocked != 1 || rec.Error != "" {
		t.Errorf("dry run of an unblock: %+v", rec)
	}
	rec = r.unblock(events.Command{ID: "end", Addresses: []string{bad}})
	if r.blockedFor(rec, time.Minute); rec.Unblocked != 1 {
		t.Errorf("unblock within a wider one: %+v", rec)
	}
	rec = r.unblock(events.Command{ID: "end all", Addresses: []string{"198.18.0.64/28", bad}})
	if rec.Unblocked != 1 || rec.BlockedUntil != nil || rec.Error != "" {
		t.Errorf("unblock: %+v", rec)
	}
	r.wantBlocked("2001:db8:18:6::/64")
	if rec := r.unblock(events.Command{ID: "none", Addresses: []string{bad}}); rec.Unblocked != 0 || rec.Error != "" || len(rec.Refused) != 0 {
		t.Errorf("nothing to end is success: %+v", rec)
	}
	r.flood(udp4(bad+"/32", 200, 5))
	r.until("its flows again", func() bool { return r.new == 15 })

	r.audited(map[string]int{events.VerbBlock: 6, events.VerbUnblock: 4})
}

// metric is the value of a counter without labels of its own.
func (r *rig) metric(name string) float64 {
	r.t.Helper()
	families, err := r.p.deps.Registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	r.t.Fatalf("there is no metric %s", name)
	return 0
}

// audited waits until so many receipts of each verb are in the audit.
func (r *rig) audited(want map[string]int) {
	r.t.Helper()
	var got map[string]int
	deadline := time.Now().Add(10 * time.Second)
	for {
		got = map[string]int{}
		state, err := r.conn.State(r.t.Context(), bus.StreamAudit)
		if err != nil {
			r.t.Fatal(err)
		}
		if state.Messages > 0 {
			err = r.conn.Read(r.t.Context(), bus.StreamAudit, bus.FollowFrom{All: true}, func(m bus.Msg) {
				got[events.SubjectTail(m.Subject, events.SubjectAudit)[1]]++
			})
			if err != nil {
				r.t.Fatal(err)
			}
		}
		if fmt.Sprint(got) == fmt.Sprint(want) {
			return
		}
		if time.Now().After(deadline) {
			r.t.Errorf("in the audit are %v, want %v", got, want)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestBlockAndFlush ends TCP conversations for good that a flush alone does not
// even disturb, where the kernel takes up connections half way.
func TestBlockAndFlush(t *testing.T) {
	r := newRig(t, blocking())
	if err := r.fw.SetSysctl("net.netfilter.nf_conntrack_tcp_loose", "1"); err != nil {
		t.Fatal(err)
	}
	const bad = "198.18.0.66"
	others, offending := r.talk(7, "198.18.0.1", "198.18.0.67"), r.talk(8, bad)
	if rec := r.flush(events.Command{ID: "alone", Addresses: []string{bad}, By: events.ByEither}); rec.Deleted != 2 || rec.Error != "" {
		t.Errorf("a flush alone: %+v", rec)
	}
	before := offending.Stats().Echoed
	r.until("the conversations to go on", func() bool { return offending.Stats().Echoed > before+20 })
	if got, back := offending.Stats().Broken, r.residual("alone"); got != 0 || back != 2 {
		t.Fatalf("a flush alone: %d conversations broken, %d entries came back", got, back)
	}
	dry := r.block(events.Command{ID: "dry", Addresses: []string{bad}, Flush: true, DryRun: true})
	if dry.Matched != 2 || dry.Deleted != 0 || dry.BlockedUntil != nil {
		t.Errorf("dry run: %+v", dry)
	}
	rec := r.block(events.Command{ID: "both", Addresses: []string{bad}, Flush: true})
	stopped := offending.Stats().Echoed
	if r.blockedFor(rec, time.Minute); rec.Matched != 2 || rec.Deleted != 2 {
		t.Errorf("block and flush: %+v", rec)
	}
	undisturbed := others.Stats().Echoed
	r.until("the offender's to break", func() bool { return offending.Stats().Broken >= 4 })
	r.until("others to go on", func() bool { return others.Stats().Echoed > undisturbed+80 })
	if got := offending.Stats().Echoed; got > stopped+2 {
		t.Errorf("%d echoes after the block", got-stopped)
	}
	if got := others.Stats().Broken; got != 0 {
		t.Errorf("%d conversations of others broken", got)
	}
	if n := r.residual("both"); n != 0 {
		t.Errorf("%d entries of either side came back", n)
	}
}

// residual waits for what came back after a command.
func (r *rig) residual(id string) (n uint64) {
	r.t.Helper()
	r.until("the residual of "+id, func() (known bool) {
		filter := bus.FollowFrom{All: true, Filter: events.AuditSubject("fw-a", events.VerbResidual)}
		err := r.conn.Read(r.t.Context(), bus.StreamAudit, filter, func(m bus.Msg) {
			var rec events.Receipt
			if err := events.Unmarshal(m.Data, &rec); err == nil && rec.ID == id && rec.Residual != nil {
				known, n = true, *rec.Residual
			}
		})
		if err != nil {
			r.t.Fatal(err)
		}
		return known
	})
	return n
}

// tables lists the names of the firewall's nftables tables.
func (r *rig) tables() (names []string) {
	r.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(r.fw.NS.FD()))
	if err != nil {
		r.t.Fatal(err)
	}
	tables, err := c.ListTables()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, t := range tables {
		names = append(names, t.Name)
	}
	return names
}

// TestBlocksOutliveTheProducer: they go on without it, and it finds them again; with
// --clear-blocks they end with it.
func TestBlocksOutliveTheProducer(t *testing.T) {
	r := newRig(t, blocking())
	const bad = "198.18.0.66"
	r.blockedFor(r.block(events.Command{ID: "a", Addresses: []string{bad}}), time.Minute)
	r.stop()
	r.flood(udp4(bad+"/32", 0, 5))
	if n := r.entriesOf(bad + "/32"); n != 0 {
		t.Errorf("%d entries while no producer runs", n)
	}
	opt := blocking()
	opt.ClearBlocks = true
	r.start(opt)
	r.wantBlocked(bad)
	r.blockedFor(r.block(events.Command{ID: "a", Addresses: []string{"198.18.0.67"}}), time.Minute) // an id of the run before is none of this
	r.wantBlocked(bad, "198.18.0.67")
	r.stop()
	if tables := r.tables(); slices.Contains(tables, block.Table) {
		t.Errorf("after --clear-blocks there are tables %v", tables)
	}
	r.flood(udp4(bad+"/32", 0, 5))
	if n := r.entriesOf(bad + "/32"); n != 5 {
		t.Errorf("%d entries after its end, want 5", n)
	}
}

// TestBlockSets: the operator's sets are used; wrong ones are said at the start, and
// of a command that fits them in part nothing is done.
func TestBlockSets(t *testing.T) {
	r := newRig(t, Options{})
	r.stop()
	opt := blocking()
	opt.BlockSet = []string{"inet/filter/blocked4"}
	opt.Name, opt.Realm, opt.Linger, opt.RingBytes, opt.BufferBytes = "fw-a", "default", time.Millisecond, 1<<20, 1<<20
	_, err := New(opt, Dependencies{Namespace: r.fw.NS, Log: slog.New(slog.DiscardHandler)})
	if err == nil || !strings.Contains(err.Error(), "there is no such set") || !strings.Contains(err.Error(), "nft 'add") {
		t.Errorf("a set that is missing: %v", err)
	}
	c, err := nftables.New(nftables.WithNetNSFd(r.fw.NS.FD()))
	if err != nil {
		t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "filter"})
	if err := c.AddSet(&nftables.Set{Table: table, Name: "blocked4", KeyType: nftables.TypeIPAddr, HasTimeout: true, Interval: true}, nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	r.start(opt)
	r.blockedFor(r.block(events.Command{ID: "a", Addresses: []string{"198.18.5.64/28"}}), time.Minute)
	r.blockedFor(r.block(events.Command{ID: "b", Addresses: []string{"198.18.6.6"}}), time.Minute)
	r.wantBlocked("198.18.5.64/28", "198.18.6.6")
	// There is no set for IPv6, so nothing of the command is done: neither the new
	// address, nor the wider block around one and within another that are there.
	rec := r.block(events.Command{ID: "c", Addresses: []string{"198.18.7.7", "198.18.5.66", "198.18.6.0/24", "2001:db8:18::1"}, BlockS: 600})
	if !strings.Contains(rec.Error, "no set of type ipv6_addr") || rec.BlockedUntil != nil {
		t.Errorf("%+v", rec)
	}
	for _, b := range r.p.status().Blocked {
		if b.LeftS > 60 {
			t.Errorf("%s has %g s left", b.Prefix, b.LeftS)
		}
	}
	r.wantBlocked("198.18.5.64/28", "198.18.6.6")
	if tables := r.tables(); slices.Contains(tables, block.Table) {
		t.Errorf("it made a table of its own: %v", tables)
	}
}

func TestBlocked(t *testing.T) {
	var list []block.Entry
	for i := range events.MaxBlocked + 10 {
		a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
		list = append(list, block.Entry{Prefix: netip.PrefixFrom(a, 32), Left: time.Duration(i+1) * time.Second})
	}
	list[3].Left = block.Forever
	out, more := blocked(list)
	if len(out) != events.MaxBlocked || more != 10 || out[0] != (events.Blocked{Prefix: "198.18.0.3", LeftS: -1}) || out[1] != (events.Blocked{Prefix: "198.18.0.11", LeftS: 12}) {
		t.Errorf("%d, %d more, begin with %+v", len(out), more, out[:2])
	}
	if _, err := events.Marshal(&events.Health{Firewall: "fw-a", Realm: "default", Blocked: out, BlockedMore: more}); err != nil {
		t.Error(err)
	}
}

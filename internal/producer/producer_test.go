//go:build linux

package producer

import (
	"cmp"
	"context"
	"log/slog"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// rig is one virtual firewall with its producer, and what arrives of it.
type rig struct {
	*tally
	fw   *lab.Firewall
	stop func()
}

func newRig(t *testing.T, opt Options) *rig {
	t.Helper()
	l := labtest.New(t, lab.Spec{Firewalls: []lab.FirewallSpec{{Name: "fw-a", IPv6: true, Sysctls: map[string]string{"net.netfilter.nf_conntrack_events": "1"}}}})
	r := &rig{tally: newTally(t), fw: l.Firewall("fw-a")}
	r.start(opt)
	return r
}

// start runs a producer and follows what it publishes.
func (r *rig) start(opt Options) {
	r.t.Helper()
	opt.Name, opt.Realm = "fw-a", events.RealmDefault
	if opt.Trust == "" {
		opt.Trust = "none"
	}
	if opt.Linger == 0 {
		opt.Linger = 5 * time.Millisecond
	}
	if opt.RingBytes == 0 {
		opt.RingBytes = 16 << 20
	}
	if opt.BufferBytes == 0 {
		opt.BufferBytes = 16 << 20
	}
	var err error
	r.p, err = New(opt, Dependencies{
		Bus: bus.Config{Flags: bus.Flags{NATSURL: r.server.URL()}}, Namespace: r.fw.NS,
		Log: slog.New(slog.NewTextHandler(testLog{r.t}, nil)), Registry: prometheus.NewRegistry(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.p.Run(ctx); err != nil {
			r.t.Errorf("producer: %v", err)
		}
	})
	for _, stream := range []string{bus.StreamEvents, bus.StreamSnapshots} {
		wg.Go(func() {
			if err := r.conn.Follow(ctx, stream, bus.FollowFrom{All: true}, r.take); err != nil {
				r.t.Errorf("follow %s: %v", stream, err)
			}
		})
	}
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	r.t.Cleanup(r.stop)
	// And the allowlist: what changes something is refused before it was read.
	r.until("the first snapshot", func() bool { return r.complete[2] && r.p.Ready() == nil && r.p.allow.Current() == nil })
}

func (r *rig) flood(f traffic.Flood) {
	r.t.Helper()
	rep, err := f.Run(r.t.Context(), r.fw)
	if err != nil {
		r.t.Fatal(err)
	}
	if rep.Sent != f.Count {
		r.t.Fatalf("sent %d of %d packets", rep.Sent, f.Count)
	}
}

func udp4(source string, first, count int) traffic.Flood {
	return traffic.Flood{Protocol: 17, Sources: netip.MustParsePrefix(source), Destinations: lab.ServerPrefix4, Port: 53, First: first, Count: count}
}

func (r *rig) flush(c events.Command) *events.Receipt {
	r.t.Helper()
	if c.By == "" {
		c.By = events.BySrc
	}
	return r.command(events.VerbFlush, c)
}

// command sends a command, an operator's unless it says otherwise.
func (r *rig) command(verb string, c events.Command) *events.Receipt {
	r.t.Helper()
	h := r.p.health(false)
	c.Verb, c.Firewall, c.Boot = verb, cmp.Or(c.Firewall, "fw-a"), cmp.Or(c.Boot, h.Boot)
	c.Actor, c.Issued = cmp.Or(c.Actor, events.ActorOperator), cmp.Or(c.Issued, time.Now().UnixMilli())
	if c.Expires == 0 {
		c.Expires = h.Sent + int64(10*time.Second)
	}
	var rec events.Receipt
	if err := r.conn.Request(r.t.Context(), events.CommandSubject("fw-a", verb), &c, &rec); err != nil {
		r.t.Fatal(err)
	}
	return &rec
}

func TestEveryFlowArrivesOnce(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true})
	const n = 5000
	r.flood(udp4("198.18.0.1/32", 0, n/2))
	r.flood(traffic.Flood{Protocol: 6, Sources: netip.MustParsePrefix("2001:db8:18::1/128"), Destinations: lab.ServerPrefix6, DestinationCount: 100, Port: 443, Count: n / 2})
	r.until("all flows", func() bool { return r.new == n })
	rec := r.flush(events.Command{ID: "one", Addresses: []string{"198.18.0.1", "2001:db8:18::1"}})
	if rec.Matched != n || rec.Deleted != n || len(rec.Refused) != 0 || rec.Error != "" {
		t.Errorf("receipt: %+v", rec)
	}
	r.until("the end of all flows", func() bool { return r.gone == n })
	if r.lost != 0 {
		t.Errorf("lost %d events", r.lost)
	}
}

// TestSnapshotUnderChurn resyncs while flows come and go: each epoch's sum must
// be what the table holds.
func TestSnapshotUnderChurn(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true})
	const n = 20_000
	r.flood(udp4("198.18.1.0/24", 0, n))
	r.until("the base", func() bool { return r.new == n })
	var wg sync.WaitGroup
	wg.Go(func() {
		f := udp4("198.18.2.0/24", 0, n)
		f.Rate = 10_000
		r.flood(f)
	})
	wg.Go(func() {
		for i := range 8 {
			r.flush(events.Command{ID: "churn" + string(rune('a'+i)), Addresses: []string{netip.AddrFrom4([4]byte{198, 18, 1, byte(i)}).String()}})
		}
	})
	r.p.requestResync("test")
	r.until("a second epoch", func() bool { return r.complete[3] })
	r.p.requestResync("test")
	r.until("a third epoch", func() bool { return r.complete[4] })
	wg.Wait()
	held, err := r.fw.Entries()
	if err != nil {
		t.Fatal(err)
	}
	r.until("the sums to settle", func() bool { return r.new == 2*n && r.active[4] == held })
}

// TestOutage stops the server under steady traffic: every event arrives after
// it is back, or is reported lost.
func TestOutage(t *testing.T) {
	for _, tc := range []struct {
		name string
		ring int
		lose bool
	}{{"all in the ring", 16 << 20, false}, {"more than the ring holds", 1 << 20, true}} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, Options{RingBytes: tc.ring})
			const n = 100_000
			var wg sync.WaitGroup
			wg.Go(func() {
				f := udp4("198.18.0.0/24", 0, n)
				f.Rate = 40_000
				r.flood(f)
			})
			time.Sleep(300 * time.Millisecond)
			r.restart(2500 * time.Millisecond)
			wg.Wait()
			r.until("every event, or its loss", func() bool { return uint64(r.new)+r.p.account.Lost() == n })
			if lost := r.p.account.Lost(); (lost > 0) != tc.lose {
				t.Errorf("lost %d events", lost)
			}
		})
	}
}

// restart stops the server for a while and starts it again on the same port and
// store.
func (r *rig) restart(pause time.Duration) {
	r.t.Helper()
	r.server.Stop()
	time.Sleep(pause)
	if err := r.server.Start(); err != nil {
		r.t.Fatal(err)
	}
}

// TestFlushLosesNoEvent deletes far more entries than the socket's buffer
// holds.
func TestFlushLosesNoEvent(t *testing.T) {
	const buffer = 1 << 20 // 1,638 events
	r := newRig(t, Options{AllowFlush: true, BufferBytes: buffer})
	const n = 30_000
	f := udp4("198.18.0.1/32", 0, n)
	f.Rate = 10_000
	r.flood(f)
	r.until("all flows", func() bool { return r.new == n })
	rec := r.flush(events.Command{ID: "big", Addresses: []string{"198.18.0.1"}})
	if rec.Deleted != n {
		t.Errorf("receipt: %+v", rec)
	}
	r.until("the end of all flows", func() bool { return r.gone == n })
	if lost := r.p.account.Lost(); lost != 0 {
		t.Errorf("lost %d events", lost)
	}
	t.Logf("deleted %d entries in %.0f ms through a buffer of %d bytes", rec.Deleted, rec.DurationMS, buffer)
}

func TestFlushIsGuarded(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true, Protect: []netip.Prefix{netip.MustParsePrefix("198.18.3.0/30")}})
	r.flood(udp4("198.18.3.0/24", 0, 256))
	r.until("all flows", func() bool { return r.new == 256 })
	refused := func(reason string, c events.Command) {
		t.Helper()
		if rec := r.flush(c); rec.Deleted != 0 || len(rec.Refused) != 1 || rec.Refused[0].Reason != reason || rec.Error == "" {
			t.Errorf("want %s, got %+v", reason, rec)
		}
	}
	own := r.fw.Addrs[0].String()
	refused("prefix-too-wide", events.Command{ID: "1", Addresses: []string{"0.0.0.0/0"}})
	refused("prefix-too-wide", events.Command{ID: "2", Addresses: []string{"::/0"}})
	refused("protected", events.Command{ID: "3", Addresses: []string{own}})
	refused("protected", events.Command{ID: "4", Addresses: []string{"::ffff:" + own}})
	refused("protected", events.Command{ID: "5", Addresses: []string{"127.0.0.1"}})
	refused("protected", events.Command{ID: "6", Addresses: []string{"198.18.3.1"}})
	refused("expired", events.Command{ID: "7", Addresses: []string{"198.18.3.9"}, Expires: 1})
	refused("too-far-ahead", events.Command{ID: "7", Addresses: []string{"198.18.3.9"}, Expires: conntrack.Monotonic() + int64(time.Hour)})
	refused("wrong-time", events.Command{ID: "7", Addresses: []string{"198.18.3.9"}, Issued: time.Now().Add(-time.Hour).UnixMilli()})
	refused("wrong-firewall", events.Command{ID: "7", Addresses: []string{"198.18.3.9"}, Firewall: "fw-b"})
	refused("wrong-boot", events.Command{ID: "7", Addresses: []string{"198.18.3.9"}, Boot: strings.Repeat("ab", 16)})
	refused("wrong-realm", events.Command{ID: "7", Addresses: []string{"198.18.3.9"}, Realm: "elsewhere"})

	dry := r.flush(events.Command{ID: "8", Addresses: []string{"198.18.3.0/24"}, DryRun: true})
	if dry.Matched != 256 || dry.Deleted != 0 {
		t.Errorf("dry run: %+v", dry)
	}
	// The protected ones survive within the prefix.
	rec := r.flush(events.Command{ID: "9", Addresses: []string{"198.18.3.0/24"}})
	if rec.Matched != 256 || rec.Deleted != 252 || len(rec.Refused) != 1 || rec.Refused[0] != (events.Refusal{Reason: "protected", Count: 4}) {
		t.Errorf("prefix around protected addresses: %+v", rec)
	}
	refused("replayed", events.Command{ID: "9", Addresses: []string{"198.18.3.0/24"}})
	none := r.flush(events.Command{ID: "10", Addresses: []string{"198.18.9.9"}})
	if none.Matched != 0 || none.Error != "" || len(none.Refused) != 0 {
		t.Errorf("nothing to delete is success: %+v", none)
	}
}

func TestMonitorDeletesNothing(t *testing.T) {
	r := newRig(t, Options{})
	r.flood(udp4("198.18.0.1/32", 0, 10))
	r.until("all flows", func() bool { return r.new == 10 })
	if rec := r.flush(events.Command{ID: "x", Addresses: []string{"198.18.0.1"}}); rec.Deleted != 0 || len(rec.Refused) != 1 || rec.Refused[0].Reason != "not-enabled" {
		t.Errorf("without --allow-flush: %+v", rec)
	}
	if n, err := r.fw.Entries(); err != nil || n != 10 {
		t.Errorf("%d entries are left of 10 (%v)", n, err)
	}
}

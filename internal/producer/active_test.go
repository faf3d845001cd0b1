//go:build linux

package producer

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/ti-mo/conntrack"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/traffic"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestExpiredEntriesAreNotActive: entries that have expired stay in the
// kernel's count until its garbage collector comes, half a minute late, but a
// snapshot leaves them out and their late DESTROY takes nothing away.
func TestExpiredEntriesAreNotActive(t *testing.T) {
	r := newRig(t, Options{})
	if err := r.fw.SetSysctl("net.netfilter.nf_conntrack_udp_timeout", "1"); err != nil {
		t.Fatal(err)
	}
	const n = 2000
	r.flood(udp4("198.18.0.1/32", 0, n))
	r.until("all flows", func() bool { return r.new == n })
	// These live on: TCP has a timeout of its own.
	r.flood(traffic.Flood{Protocol: 6, Sources: netip.MustParsePrefix("198.18.0.2/32"), Destinations: lab.ServerPrefix4, Port: 443, Count: 100})
	time.Sleep(1500 * time.Millisecond)
	count, err := r.fw.Entries()
	if err != nil {
		t.Fatal(err)
	}
	r.p.requestResync("test")
	r.until("the next epoch to hold what has not expired", func() bool { return r.complete[3] && r.active[3] == 100 })
	t.Logf("the kernel counted %d entries when %d had not expired", count, 100)
	r.until("no flow to be counted twice", func() bool { return r.new == n+100 })
}

// TestFlushStaysInItsRealm: the same address in another conntrack zone is
// another one's.
func TestFlushStaysInItsRealm(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true})
	err := r.fw.NS.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		for _, zone := range []uint16{0, 7} {
			f := conntrack.NewFlow(17, conntrack.StatusConfirmed, netip.MustParseAddr("198.18.0.5"), netip.MustParseAddr("203.0.113.5"), 1000, 53, 300, 0)
			f.Zone = zone
			if err := c.Create(f); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	flush := func(id, realm string, deleted uint64, refused string) {
		t.Helper()
		rec := r.flush(events.Command{ID: id, Realm: realm, Addresses: []string{"198.18.0.5"}})
		if rec.Deleted != deleted || rec.Matched != deleted || (refused == "") != (len(rec.Refused) == 0) || refused != "" && rec.Refused[0].Reason != refused {
			t.Errorf("realm %q: %+v", realm, rec)
		}
	}
	flush("other", "branch", 0, "wrong-realm")
	flush("own", events.RealmDefault, 1, "")
	flush("own again", "", 0, "")
	flush("zone 8", events.ZoneRealm(events.RealmDefault, 8), 0, "")
	flush("zone 7", events.ZoneRealm(events.RealmDefault, 7), 1, "")
}

// TestInsertedByAnotherProgram: an entry that a program makes (conntrackd on a
// fail-over) is there, but it is no new connection.
func TestInsertedByAnotherProgram(t *testing.T) {
	r := newRig(t, Options{})
	err := r.fw.NS.Do(func() error {
		c, err := conntrack.Dial(nil)
		if err != nil {
			return err
		}
		defer c.Close()
		f := conntrack.NewFlow(17, conntrack.StatusConfirmed, netip.MustParseAddr("198.18.0.5"), netip.MustParseAddr("203.0.113.5"), 1000, 53, 300, 0)
		return c.Create(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	r.flood(udp4("198.18.0.1/32", 0, 10))
	r.until("both kinds", func() bool { return r.new == 10 && r.active[2] == 11 })
}

// TestEveryAttemptIsInTheAudit: a refusal and a dry run under a command's id do
// not keep its receipt out of the stream.
func TestEveryAttemptIsInTheAudit(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true})
	r.flood(udp4("198.18.0.1/32", 0, 10))
	r.until("all flows", func() bool { return r.new == 10 })
	r.flush(events.Command{ID: "same", Addresses: []string{"198.18.0.1"}, Expires: 1})
	r.flush(events.Command{ID: "same", Addresses: []string{"198.18.0.1"}, DryRun: true})
	r.flush(events.Command{ID: "same", Addresses: []string{"198.18.0.1"}})
	r.stop() // a clean stop records what is left
	var seen []string
	err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{Filter: events.AuditSubject("fw-a", events.VerbFlush), All: true}, func(m bus.Msg) {
		var rec events.Receipt
		if err := events.Unmarshal(m.Data, &rec); err != nil {
			t.Error(err)
		}
		seen = append(seen, fmt.Sprint(rec.DryRun, len(rec.Refused), rec.Deleted))
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"false 1 0", "true 0 0", "false 0 10"}; !slices.Equal(seen, want) {
		t.Errorf("the audit holds %q, want %q", seen, want)
	}
}

// TestStopDuringAFlush: what a flush deleted before the producer was stopped is
// in the audit.
func TestStopDuringAFlush(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true, BufferBytes: 1 << 20}) // deletes are paced by the buffer
	const n = 40_000
	f := udp4("198.18.0.1/32", 0, n)
	f.Rate = 20_000
	r.flood(f)
	r.until("all flows", func() bool { return r.new == n })
	h := r.p.health(false)
	c := &events.Command{
		ID: "under-way", Verb: events.VerbFlush, Firewall: "fw-a", Boot: h.Boot, Actor: events.ActorOperator, Expires: h.Sent + int64(10*time.Second), Issued: time.Now().UnixMilli(),
		Addresses: []string{"198.18.0.1"}, By: events.BySrc,
	}
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		var rec events.Receipt // the answer may come or not
		_ = r.conn.Request(context.Background(), events.CommandSubject("fw-a", events.VerbFlush), c, &rec)
	}()
	r.until("the flush to be under way", func() bool { return r.gone > 0 })
	r.stop()
	<-answered
	var receipts []events.Receipt
	err := r.conn.Read(t.Context(), bus.StreamAudit, bus.FollowFrom{Filter: events.AuditSubject("fw-a", events.VerbFlush), All: true}, func(m bus.Msg) {
		var rec events.Receipt
		if err := events.Unmarshal(m.Data, &rec); err != nil {
			t.Error(err)
		}
		receipts = append(receipts, rec)
	})
	if err != nil || len(receipts) != 1 || receipts[0].Deleted == 0 {
		t.Fatalf("the audit holds %+v, %v", receipts, err)
	}
	rec := receipts[0]
	if left := rec.TableAfter; rec.Deleted+left < n || rec.Deleted < n && rec.Error != errStopping.Error() {
		t.Errorf("receipt: %+v", rec)
	}
	t.Logf("%d of %d entries were deleted: %q", rec.Deleted, n, rec.Error)
}

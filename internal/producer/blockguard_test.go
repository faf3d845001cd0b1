//go:build linux

package producer

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/block"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/conntrack"
	"github.com/ctfleet/ctfleet/internal/guard"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestBlockIsGuarded: who is spared is not blocked, and a prefix around him neither.
func TestBlockIsGuarded(t *testing.T) {
	opt := blocking()
	opt.Protect, opt.SSHPort = []netip.Prefix{netip.MustParsePrefix("198.18.3.0/30")}, []uint16{22}
	r := newRig(t, opt)
	r.session("198.18.0.9", 22)
	n := 0
	refused := func(reason string, c events.Command) {
		t.Helper()
		n++
		c.ID = fmt.Sprint(n)
		rec := r.block(c)
		if len(rec.Refused) != 1 || rec.Refused[0] != (events.Refusal{Reason: reason}) || rec.Error == "" || rec.BlockedUntil != nil {
			t.Errorf("%v: %+v, want %s", c.Addresses, rec, reason)
		}
	}
	own := r.fw.Addrs[0]
	around, err := own.Prefix(24)
	if err != nil {
		t.Fatal(err)
	}
	refused(guard.Protected, events.Command{Addresses: []string{own.String()}})
	refused(guard.Protected, events.Command{Addresses: []string{around.String()}})
	refused(guard.Protected, events.Command{Addresses: []string{"198.18.3.1"}})
	refused(guard.Protected, events.Command{Addresses: []string{"198.18.5.1", "198.18.3.0/24"}}) // all or none
	refused(guard.Protected, events.Command{Addresses: []string{"198.18.0.9"}})                  // an SSH session
	refused(guard.Protected, events.Command{Addresses: []string{"198.18.0.8/29"}, Flush: true})
	refused(guard.Protected, events.Command{Addresses: []string{"fe80::/64"}})
	refused(guard.TooWide, events.Command{Addresses: []string{"0.0.0.0/0"}})
	refused(guard.InZone, events.Command{Addresses: []string{"198.18.5.1"}, Realm: "default_z7"})
	refused(guard.WrongRealm, events.Command{Addresses: []string{"198.18.5.1"}, Realm: "elsewhere"})
	refused(guard.Expired, events.Command{Addresses: []string{"198.18.5.1"}, Expires: 1})
	entry := events.AllowEntry{Prefix: "198.18.6.6", Comment: "backup", Time: time.Now().UnixMilli()}
	if err := r.conn.Put(t.Context(), nil, bus.BucketAllowlist, events.AllowKey("", netip.MustParsePrefix("198.18.6.6/32")), &entry); err != nil {
		t.Fatal(err)
	}
	r.until("the entry", func() bool { l, err := r.p.allow.List("default"); return err == nil && l.Len() == 1 })
	refused(guard.Allowlisted, events.Command{Addresses: []string{"198.18.6.6"}})
	refused(guard.Allowlisted, events.Command{Addresses: []string{"198.18.6.0/24"}})
	r.wantBlocked()
	if tables := r.tables(); slices.Contains(tables, block.Table) {
		t.Errorf("there are tables %v", tables)
	}
}

// TestBlockIsOff: without --allow-block nothing is blocked, and with a trust file
// only what is signed.
func TestBlockIsOff(t *testing.T) {
	r := newRig(t, Options{AllowFlush: true})
	for verb, c := range map[string]events.Command{
		events.VerbBlock:   {ID: "b", Addresses: []string{"198.18.0.1"}, BlockS: 60},
		events.VerbUnblock: {ID: "u", Addresses: []string{"198.18.0.1"}},
	} {
		if rec := r.command(verb, c); len(rec.Refused) != 1 || rec.Refused[0].Reason != guard.NotEnabled || !strings.Contains(rec.Error, "--allow-block") {
			t.Errorf("%s: %+v", verb, rec)
		}
	}
	if rec := r.block(events.Command{ID: "dry", Addresses: []string{"198.18.0.1"}, DryRun: true}); rec.Error != "" {
		t.Errorf("a dry run: %+v", rec)
	}
	r.wantBlocked()
	if r.p.blocks != nil || r.p.health(false).AllowBlock {
		t.Error("it is ready to block")
	}
	r.stop()

	trust := filepath.Join(t.TempDir(), "trust.yaml")
	write(t, trust, "keys: []\n")
	r.start(Options{AllowBlock: true, Trust: trust})
	for verb, c := range map[string]events.Command{
		events.VerbBlock:   {ID: "b", Addresses: []string{"198.18.0.1"}, BlockS: 60},
		events.VerbUnblock: {ID: "u", Addresses: []string{"198.18.0.1"}},
	} {
		if rec := r.command(verb, c); len(rec.Refused) != 1 || rec.Refused[0].Reason != guard.Unsigned {
			t.Errorf("unsigned %s: %+v", verb, rec)
		}
	}
	if !r.p.health(false).AllowBlock {
		t.Error("its health does not say that it may block")
	}
	r.wantBlocked()
}

// TestBlockNeedsItsClaim: an alert blocks only who holds answered flows here. Who is
// forged must not be cut off, whatever the command says of itself.
func TestBlockNeedsItsClaim(t *testing.T) {
	opt := blocking()
	opt.MinLocal = 50
	r := newRig(t, opt)
	const few, forged, answered, server = "198.18.0.1", "198.18.0.2", "198.18.0.3", "203.0.113.0"
	f := udp4(few+"/32", 0, 49)
	f.Answer = true
	r.flood(f)
	r.flood(udp4(forged+"/32", 0, 60))
	f = udp4(answered+"/32", 0, 60)
	f.Answer, f.DestinationCount = true, 1
	r.flood(f)
	r.until("all flows", func() bool { return r.new == 49+60+60 })
	n := 0
	alert := func(address string, change func(*events.Command)) *events.Receipt {
		t.Helper()
		n++
		c := events.Command{ID: fmt.Sprint(n), Actor: events.ActorResponder, Alert: "a", Addresses: []string{address}}
		if change != nil {
			change(&c)
		}
		return r.block(c)
	}
	for _, x := range []struct {
		what, address string
		change        func(*events.Command)
		refused       events.Refusal
	}{
		{"too few", few, nil, events.Refusal{Reason: conntrack.RefusedFew, Count: 49}},
		{"a forged source", forged, nil, events.Refusal{Reason: conntrack.RefusedUnanswered, Count: 60}},
		{"the same, and flush", forged, func(c *events.Command) { c.Flush = true }, events.Refusal{Reason: conntrack.RefusedUnanswered, Count: 60}},
		{"the same, by destination", forged, func(c *events.Command) { c.By = events.ByDst }, events.Refusal{Reason: conntrack.RefusedUnanswered, Count: 60}},
		{"the same, of an operator who passes it on", forged, func(c *events.Command) { c.Actor = events.ActorOperator }, events.Refusal{Reason: conntrack.RefusedUnanswered, Count: 60}},
		{"a dry run", forged, func(c *events.Command) { c.DryRun = true }, events.Refusal{Reason: conntrack.RefusedUnanswered, Count: 60}},
		{"a server with many answered flows", server, func(c *events.Command) { c.By = events.ByEither }, events.Refusal{Reason: conntrack.RefusedFew}},
		{"nobody", "198.18.0.99", nil, events.Refusal{Reason: conntrack.RefusedFew}},
	} {
		rec := alert(x.address, x.change)
		if len(rec.Refused) != 1 || rec.Refused[0] != x.refused || rec.BlockedUntil != nil || rec.Deleted != 0 || (rec.Error != "") != (x.refused.Count == 0) {
			t.Errorf("%s: %+v, want %v", x.what, rec, x.refused)
		}
	}
	r.wantBlocked()
	rec := alert(answered, nil)
	if r.blockedFor(rec, time.Minute); rec.Matched != 60 || rec.Deleted != 0 {
		t.Errorf("a real one: %+v", rec)
	}
	rec = alert(answered, func(c *events.Command) { c.Flush, c.Most = true, 20 })
	if rec.BlockedUntil == nil || rec.Deleted != 20 || len(rec.Refused) != 1 || rec.Refused[0] != (events.Refusal{Reason: conntrack.RefusedBudget, Count: 40}) {
		t.Errorf("a real one, and flush some: %+v", rec)
	}
	r.wantBlocked(answered)
	// An operator has looked.
	r.blockedFor(r.block(events.Command{ID: "op", Addresses: []string{forged}}), time.Minute)
}

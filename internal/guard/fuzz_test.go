package guard

import (
	"net/netip"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// FuzzCheck sends any command to a guard and holds what is allowed against the
// rules, written out once more.
func FuzzCheck(f *testing.F) {
	const both, flushes, blocks = 3, 1, 2 // what is enabled
	f.Add(events.VerbFlush, "198.18.0.1", "", "id", "fw-a", "0011", "", now+second, now, byte(both), false)
	f.Add(events.VerbFlush, "192.0.2.1", "::ffff:192.0.2.1", "id", "fw-a", "0011", "lab", now+second, now, byte(flushes), false)
	f.Add(events.VerbFlush, "192.0.2.0/24", "::ffff:203.0.113.4", "id", "fw-a", "0011", "lab_z7", now+second, now, byte(both), false)
	f.Add(events.VerbFlush, "0.0.0.0/0", "::/0", "id", "fw-a", "0011", "", now+second, now, byte(blocks), true)
	f.Add(events.VerbFlush, "198.18.3.2/31", "198.18.0.0/23", "", "fw-b", "", "", now, now, byte(0), true)
	f.Add(events.VerbBlock, "198.18.0.1", "2001:db8:9::/64", "id", "fw-a", "0011", "", now+second, now, byte(both), false)
	f.Add(events.VerbBlock, "2001:db8:3:4::/64", "2001:db8:3::/48", "id", "fw-a", "0011", "", now+second, now, byte(both), false)
	f.Add(events.VerbBlock, "192.0.2.0/24", "198.18.3.0/28", "id", "fw-a", "0011", "lab", now+second, now, byte(blocks), false)
	f.Add(events.VerbBlock, "fe80::/64", "224.0.0.5", "id", "fw-a", "0011", "lab_z7", now+second, now, byte(blocks), true)
	f.Add(events.VerbUnblock, "192.0.2.1", "127.0.0.0/24", "id", "fw-a", "0011", "", now+second, now, byte(blocks), false)
	f.Add(events.VerbUnblock, "127.0.0.0/8", "::1", "id", "fw-a", "0011", "", int64(-1<<63), int64(1<<62), byte(both), true)
	f.Fuzz(func(t *testing.T, verb, one, two, id, firewall, boot, realm string, expires, at int64, allow byte, dry bool) {
		if at < 0 || at > 1<<62 {
			return // a monotonic clock since boot is neither
		}
		if verb != events.VerbBlock && verb != events.VerbUnblock {
			verb = events.VerbFlush // the others come to no guard
		}
		cfg := config()
		cfg.AllowFlush, cfg.AllowBlock = allow&flushes != 0, allow&blocks != 0
		g := newGuard(cfg)
		c := &events.Command{
			ID: id, Verb: verb, Firewall: firewall, Boot: boot, Realm: realm, Expires: expires, DryRun: dry,
			Actor: events.ActorOperator, By: events.BySrc, Addresses: []string{one}, BlockS: 60, Flush: allow&4 != 0,
		}
		if two != "" {
			c.Addresses = append(c.Addresses, two)
		}
		v, prefixes := check(g, c, Sealed{}, at)
		if !v.Allowed() {
			if v.Text == "" || prefixes != nil {
				t.Fatalf("%+v is refused with %+v and prefixes %v", c, v, prefixes)
			}
			return
		}
		deletes := verb == events.VerbFlush || verb == events.VerbBlock && c.Flush
		switch {
		case firewall != "fw-a" || boot != "0011" || id == "":
			t.Fatalf("%+v is for another, or has no id", c)
		case expires <= at || uint64(expires-at) > uint64(30*time.Second):
			t.Fatalf("%+v is not fresh at %d", c, at)
		case deletes && !cfg.AllowFlush && !dry:
			t.Fatalf("%+v deletes, which is not enabled", c)
		case verb != events.VerbFlush && !cfg.AllowBlock && !dry:
			t.Fatalf("%+v blocks or unblocks, which is not enabled", c)
		case verb != events.VerbFlush && v.Zone != 0:
			t.Fatalf("%+v is for zone %d", c, v.Zone)
		case len(prefixes) != len(c.Addresses):
			t.Fatalf("%+v: prefixes %v", c, prefixes)
		}
		for _, p := range prefixes {
			spared(t, c, p)
		}
		if again, _ := check(g, c, Sealed{}, at); again.Allowed() != dry {
			t.Fatalf("%+v a second time: %+v", c, again)
		}
	})
}

// spared fails where an allowed command names what it must not.
func spared(t *testing.T, c *events.Command, p netip.Prefix) {
	t.Helper()
	least := 24
	if p.Addr().Is6() {
		least = 64
	}
	if p.Bits() < least || p.Addr().Is4In6() || p != p.Masked() {
		t.Fatalf("%+v: prefix %s", c, p)
	}
	if c.Verb == events.VerbUnblock {
		return
	}
	protected := append(addrs("192.0.2.1", "2001:db8::1", "203.0.113.4", "127.0.0.1", "127.255.255.255", "::1"),
		addrs("198.18.3.0", "198.18.3.1", "198.18.3.2", "198.18.3.3", "2001:db8:3::", "2001:db8:3:ffff:ffff:ffff:ffff:ffff")...)
	if c.Verb == events.VerbBlock {
		protected = append(protected, addrs("0.0.0.0", "255.255.255.255", "169.254.169.254", "224.0.0.18", "::", "fe80::1", "ff02::1")...)
	}
	for _, a := range protected {
		if (p.IsSingleIP() || c.Verb == events.VerbBlock) && p.Contains(a) {
			t.Fatalf("%+v names %s", c, a)
		}
	}
	for _, whole := range []string{"127.0.0.0/8", "198.18.3.0/30", "2001:db8:3::/48"} {
		if w := netip.MustParsePrefix(whole); w.Contains(p.Addr()) && p.Bits() >= w.Bits() {
			t.Fatalf("%+v: %s lies within %s", c, p, w)
		}
	}
}

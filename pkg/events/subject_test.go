package events_test

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestCheckName(t *testing.T) {
	for _, ok := range []string{"a", "0", "fw-a", "fw_a-9", strings.Repeat("x", 63)} {
		if err := events.CheckName(ok); err != nil {
			t.Errorf("%q: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "-a", "_a", "A", "a.b", "a b", "a*", "a>", "ä", "a\n", strings.Repeat("x", 64)} {
		if events.CheckName(bad) == nil {
			t.Errorf("%q is allowed", bad)
		}
	}
	for _, bad := range []string{"fleet", "responder", "operator", "aggregator", "realm_a", ""} {
		if events.CheckFirewall(bad) == nil {
			t.Errorf("firewall %q is allowed", bad)
		}
	}
	for _, ok := range []string{"default", "a_z", "a_zone", "a_z1b", "z1"} {
		if err := events.CheckRealm(ok); err != nil {
			t.Errorf("realm %q: %v", ok, err)
		}
	}
	for _, bad := range []string{"a_z1", "a_z65535", "", "a.b", strings.Repeat("x", 51)} {
		if events.CheckRealm(bad) == nil {
			t.Errorf("realm %q is allowed", bad)
		}
	}
	// The longest realm with the highest zone still fits where it becomes one token.
	if err := events.CheckName(events.RealmScope(events.ZoneRealm(strings.Repeat("x", 50), 65535))); err != nil {
		t.Error(err)
	}
}

func TestSubjects(t *testing.T) {
	for got, want := range map[string]string{
		events.EventsSubject("fw-a"):                                                    "ct.v1.events.fw-a",
		events.SnapshotsSubject("fw-a"):                                                 "ct.v1.snapshots.fw-a",
		events.HealthSubject("fw-a"):                                                    "ct.v1.health.fw-a",
		events.CommandSubject("fw-a", events.VerbFlush):                                 "ct.v1.cmd.fw-a.flush",
		events.AuditSubject(events.ActorResponder, "decision"):                          "ct.v1.audit.responder.decision",
		events.QuerySubject(events.QueryTop):                                            "ct.v1.query.top",
		events.AlertSubject(events.Firing, "r", events.RealmScope("default"), "table"):  "ct.v1.alerts.firing.r.fleet.table",
		events.AlertSubject(events.Resolved, "r", events.RealmScope("lab"), "10-0-0-1"): "ct.v1.alerts.resolved.r.realm_lab.10-0-0-1",
		events.ZoneRealm("lab", 0):                                                      "lab",
		events.ZoneRealm("lab", 7):                                                      "lab_z7",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if got := events.SubjectTail("ct.v1.cmd.fw-a.flush", events.SubjectCommand); !slices.Equal(got, []string{"fw-a", "flush"}) {
		t.Errorf("tail is %q", got)
	}
	if got := events.SubjectTail("ct.v1.command.x", events.SubjectCommand); got != nil {
		t.Errorf("tail of another root is %q", got)
	}
	if fw, err := events.SubjectFirewall("ct.v1.events.fw-a", events.SubjectEvents); fw != "fw-a" || err != nil {
		t.Errorf("firewall is %q, %v", fw, err)
	}
	for _, bad := range []string{"ct.v1.events", "ct.v1.events.", "ct.v1.events.FW", "ct.v1.health.fw-a", "ct.v1.events.fleet"} {
		if fw, err := events.SubjectFirewall(bad, events.SubjectEvents); err == nil {
			t.Errorf("%s: firewall %q, no error", bad, fw)
		}
	}
}

func TestSubjectKey(t *testing.T) {
	for text, want := range map[string]string{
		"203.0.113.7":          "203-0-113-7",
		"203.0.113.0/24":       "203-0-113-0_24",
		"0.0.0.0/0":            "0-0-0-0_0",
		"2001:db8::7":          "2001-0db8-0000-0000-0000-0000-0000-0007",
		"2001:db8::/64":        "2001-0db8-0000-0000-0000-0000-0000-0000_64",
		"::ffff:203.0.113.7":   "203-0-113-7",
		"::":                   "0000-0000-0000-0000-0000-0000-0000-0000",
		"198.18.0.0/15":        "198-18-0-0_15",
		"2001:db8:1:2:3:4:5:6": "2001-0db8-0001-0002-0003-0004-0005-0006",
	} {
		p, err := events.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		key := events.SubjectKey(p)
		if key != want {
			t.Errorf("%s: key is %s, want %s", text, key, want)
		}
		back, err := events.ParseSubjectKey(key)
		if err != nil || back != p {
			t.Errorf("%s: back it is %v, %v, want %v", key, back, err, p)
		}
	}
	mapped := netip.PrefixFrom(netip.MustParseAddr("::ffff:203.0.113.7"), 128)
	if got := events.SubjectKey(mapped); got != "203-0-113-7" {
		t.Errorf("a mapped prefix is %s", got)
	}
	for _, bad := range []string{
		"", "table", "1-2-3", "1-2-3-256", "01-2-3-4", "1-2-3-4_", "1-2-3-4_32", "1-2-3-4_33", "1-2-3-4_+8", "1-2-3-4_8", "1-0-0-0_08",
		"2001-db8-0-0-0-0-0-7", "0000-0000-0000-0000-0000-ffff-cb00-7107", "1-2-3-4_-1", "2001-0DB8-0000-0000-0000-0000-0000-0007",
	} {
		if p, err := events.ParseSubjectKey(bad); err == nil {
			t.Errorf("%q is taken as %v", bad, p)
		}
	}
}

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"203.0.113.7":        "203.0.113.7",
		"203.0.113.7/32":     "203.0.113.7",
		"203.0.113.0/24":     "203.0.113.0/24",
		"::ffff:203.0.113.7": "203.0.113.7",
		"2001:db8::7":        "2001:db8::7",
		"2001:0DB8::/32":     "2001:db8::/32",
	} {
		p, err := events.ParsePrefix(text)
		if err != nil || events.FormatPrefix(p) != want {
			t.Errorf("%s: %v, %v, want %s", text, p, err, want)
		}
	}
	for text, want := range map[string]string{
		"":                      "neither an address nor a prefix",
		"host":                  "neither an address nor a prefix",
		"10.0.0.1/8":            "10.0.0.0/8 is meant?",
		"fe80::1%eth0":          "zone",
		"::ffff:10.0.0.0/104":   "write the IPv4 prefix",
		"10.0.0.0/33":           "neither",
		"10.0.0.1\n":            "neither",
		strings.Repeat("1", 99): "neither",
	} {
		if p, err := events.ParsePrefix(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, %v, want an error with %q", text, p, err, want)
		}
	}
}

func TestMirror(t *testing.T) {
	ask := tuple("192.0.2.1", "198.51.100.1", 40000, 443)
	if got := ask.Mirror(6, false); got != tuple("198.51.100.1", "192.0.2.1", 443, 40000) {
		t.Errorf("TCP: %+v", got)
	}
	for _, c := range []struct {
		proto     uint8
		ipv6      bool
		ask, want uint16 // type and code
	}{
		{1, false, 8 << 8, 0},
		{1, false, 0, 8 << 8},
		{1, false, 13 << 8, 14 << 8},
		{1, false, 17<<8 | 3, 18<<8 | 3},
		{58, true, 128 << 8, 129 << 8},
		{58, true, 139 << 8, 140 << 8},
		{58, true, 135 << 8, 135 << 8},
		{1, false, 3 << 8, 3 << 8},
	} {
		m := events.Tuple{SrcPort: 77, DstPort: c.ask}.Mirror(c.proto, c.ipv6)
		if m.SrcPort != 77 || m.DstPort != c.want {
			t.Errorf("protocol %d, type %d: id %d, type %d code %d", c.proto, c.ask>>8, m.SrcPort, m.DstPort>>8, m.DstPort&0xff)
		}
	}
}

func TestAddr(t *testing.T) {
	for _, s := range []string{"0.0.0.0", "203.0.113.7", "255.255.255.255", "::", "2001:db8::7", "ffff::1"} {
		want := netip.MustParseAddr(s)
		a, ipv6 := events.FromNetip(want)
		if got := a.Netip(ipv6); got != want || ipv6 == want.Is4() {
			t.Errorf("%s becomes %s, IPv6 %v", want, got, ipv6)
		}
	}
	if a, ipv6 := events.FromNetip(netip.MustParseAddr("::ffff:203.0.113.7")); ipv6 || a.Netip(false).String() != "203.0.113.7" {
		t.Errorf("a mapped address becomes %v, IPv6 %v", a, ipv6)
	}
}

func TestZoneOf(t *testing.T) {
	f := func(realm string, zone uint16, ok bool) {
		t.Helper()
		if z, o := events.ZoneOf(realm, "lab"); z != zone || o != ok {
			t.Errorf("%s: zone %d, %v", realm, z, o)
		}
	}
	f("lab", 0, true)
	f(events.ZoneRealm("lab", 7), 7, true)
	f(events.ZoneRealm("lab", 65535), 65535, true)
	f("lab_z0", 0, false)
	f("lab_z07", 0, false)
	f("lab_z65536", 0, false)
	f("lab_z", 0, false)
	f("lab_zone", 0, false)
	f("labs", 0, false)
	f("", 0, false)
}

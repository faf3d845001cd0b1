package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

const second = int64(time.Second)

// now is some time of the firewall's monotonic clock.
const now = 1000 * second

func addrs(list ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range list {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func config() Config {
	return Config{Trust: trust(seal.TrustNone), Firewall: "fw-a", Realm: "lab", Boot: "0011", AllowFlush: true, Limits: Limits{Protect: []netip.Prefix{netip.MustParsePrefix("198.18.3.0/30"), netip.MustParsePrefix("2001:db8:3::/48")}}}
}

func trust(path string) *seal.Trust {
	t, err := seal.OpenTrust(path)
	if err != nil {
		panic(err)
	}
	return t
}

func newGuard(c Config) *Guard {
	g := New(c)
	g.Protect(append(allowlist.Addresses("own address", addrs("192.0.2.1", "2001:db8::1")...), allowlist.Addresses("NATS server", addrs("203.0.113.4")...)...))
	return g
}

// command is one that is allowed; change alters it.
func command(change func(*events.Command)) *events.Command {
	c := &events.Command{ID: "id", Verb: events.VerbFlush, Firewall: "fw-a", Boot: "0011", Expires: now + 10*second, By: events.BySrc, Addresses: []string{"198.18.0.1"}}
	if change != nil {
		change(c)
	}
	return c
}

// check does what a producer does.
func check(g *Guard, c *events.Command, s Sealed, now int64) (Verdict, []netip.Prefix) {
	return g.Check(g.Identify(c, s), c, now)
}

func TestCheck(t *testing.T) {
	f := func(reason, text string, change func(*events.Command)) {
		t.Helper()
		c := command(change)
		v, prefixes := check(newGuard(config()), c, Sealed{}, now)
		if v.Reason != reason || v.Allowed() != (reason == "") || !strings.Contains(v.Text, text) {
			t.Errorf("%+v: %q (%s), want %q (%s)", c, v.Reason, v.Text, reason, text)
		}
		if v.Allowed() == (len(prefixes) == 0) || !v.Allowed() && v.Text == "" {
			t.Errorf("%+v: verdict %+v with prefixes %v", c, v, prefixes)
		}
	}
	address := func(list ...string) func(*events.Command) {
		return func(c *events.Command) {
			if c.Addresses = list; len(list) > 1 {
				c.Actor = events.ActorOperator
			}
		}
	}
	expires := func(at int64) func(*events.Command) { return func(c *events.Command) { c.Expires = at } }

	f("", "", nil)
	f(WrongFirewall, "for fw-b, this is fw-a", func(c *events.Command) { c.Firewall = "fw-b" })
	realm := func(r string) func(*events.Command) { return func(c *events.Command) { c.Realm = r } }
	f("", "", realm("lab"))
	f("", "", realm("lab_z7"))
	f(WrongRealm, "for realm branch, this firewall is of lab", realm("branch"))
	f(WrongRealm, "", realm("lab_z0"))
	f(WrongRealm, "", realm("lab_z65536"))
	f(WrongRealm, "", realm("lab_z07"))
	f(WrongBoot, "another run", func(c *events.Command) { c.Boot = "2233" })
	f(WrongBoot, "another run", func(c *events.Command) { c.Boot = "" })

	f(Expired, "expired 0s ago", expires(now))
	f(Expired, "expired 1s ago", expires(now-second))
	f(Expired, "", expires(0))
	f(Expired, "expired 16m40s ago", expires(-1<<63)) // no overflow
	f("", "", expires(now+1))
	f("", "", expires(now+int64(MaxLife)))
	f(TooFarAhead, "at most 30s", expires(now+int64(MaxLife)+1))
	f(TooFarAhead, "", expires(1<<63-1))

	f(Malformed, "is empty", address())
	f("", "", address("198.18.0.1", "198.18.0.2"))
	f(Malformed, "names one", func(c *events.Command) {
		c.Actor, c.Addresses = events.ActorResponder, []string{"198.18.0.1", "198.18.0.2"}
	})
	f(Malformed, "neither an address nor a prefix", address("somewhere"))
	f(Malformed, "zone", address("fe80::1%eth0"))
	f(Malformed, "bits beyond", address("198.18.0.1/24"))
	f(Malformed, "IPv4 prefix", address("::ffff:198.18.0.0/112"))
	towards := func(prefix string) func(*events.Command) {
		return func(c *events.Command) { c.Towards, c.Most = prefix, 100 }
	}
	f("", "", towards("203.0.113.4")) // protected, and not what is matched
	f("", "", towards("0.0.0.0/0"))   // a condition may be as wide as it likes
	f(Malformed, "towards", towards("somewhere"))
	f(Malformed, "bits beyond", towards("203.0.113.4/24"))
	f(Malformed, "towards 2001:db8::1: none of the addresses is of its family", towards("2001:db8::1"))
	f(Malformed, "is none of", func(c *events.Command) { c.By = "both" })

	f("", "", address("198.18.0.0/24"))
	f(TooWide, "198.18.0.0/23 is wider than /24", address("198.18.0.0/23"))
	f(TooWide, "", address("0.0.0.0/0"))
	f("", "", address("2001:db8:18::/64"))
	f(TooWide, "2001:db8:18::/63 is wider than /64", address("2001:db8:18::/63"))
	f(TooWide, "", address("::/0"))
	f(TooWide, "", address("198.18.0.1", "198.18.9.0/24", "198.0.0.0/8"))

	f(Protected, "own address", address("192.0.2.1"))
	f(Protected, "own address", address("::ffff:192.0.2.1"))
	f(Protected, "own address", address("2001:db8::1"))
	f(Protected, "NATS server", address("198.18.0.1", "203.0.113.4"))
	f(Protected, "loopback", address("127.0.0.1"))
	f(Protected, "loopback", address("127.9.9.0/24"))
	f(Protected, "loopback", address("::1"))
	f(Protected, "--protect", address("198.18.3.3"))
	f(Protected, "--protect", address("198.18.3.0/31"))
	f(Protected, "--protect", address("2001:db8:3:4::/64"))
	// What only contains a protected address is carried out around it.
	f("", "", address("198.18.3.0/24"))
	f("", "", address("192.0.2.0/24"))
}

func TestDisabled(t *testing.T) {
	c := config()
	c.AllowFlush = false
	g := newGuard(c)
	if v, _ := check(g, command(nil), Sealed{}, now); v.Reason != NotEnabled || !strings.Contains(v.Text, "--allow-flush") {
		t.Errorf("without --allow-flush: %+v", v)
	}
	dry := func(c *events.Command) { c.DryRun = true }
	if v, _ := check(g, command(dry), Sealed{}, now); !v.Allowed() {
		t.Errorf("a dry run deletes nothing: %+v", v)
	}
	if v, _ := check(g, command(func(c *events.Command) { dry(c); c.Addresses = []string{"192.0.2.1"} }), Sealed{}, now); v.Reason != Protected {
		t.Errorf("a dry run shows what would be refused: %+v", v)
	}
}

func TestWidths(t *testing.T) {
	c := config()
	c.MinBits4, c.MinBits6 = 30, 126
	g := newGuard(c)
	for address, want := range map[string]string{"198.18.0.0/30": "", "198.18.0.0/29": TooWide, "2001:db8:9::/126": "", "2001:db8:9::/125": TooWide} {
		v, _ := check(g, command(func(c *events.Command) { c.ID, c.Addresses = address, []string{address} }), Sealed{}, now)
		if v.Reason != want {
			t.Errorf("%s: %+v, want %q", address, v, want)
		}
	}
}

func TestReplay(t *testing.T) {
	g := newGuard(config())
	check := func(want, id string, at, expires int64, dry bool) {
		t.Helper()
		v, _ := check(g, command(func(c *events.Command) { c.ID, c.Expires, c.DryRun = id, expires, dry }), Sealed{}, at)
		if v.Reason != want {
			t.Errorf("%s at %d: %q, want %q", id, at, v.Reason, want)
		}
	}
	check("", "dry", now, now+second, true)
	check("", "dry", now, now+second, true) // nothing was done, nothing is remembered
	check("", "one", now, now+10*second, false)
	check(Replayed, "one", now+1, now+10*second, false)
	check(Replayed, "one", now+1, now+20*second, false) // whatever it says of its time
	check("", "two", now+1, now+10*second, false)
	// A refused command is not remembered: its id may be right the next time.
	check(Expired, "three", now+2, now+1, false)
	check("", "three", now+2, now+10*second, false)
	// It is remembered for as long as the very same command would be fresh.
	check(Replayed, "one", now+10*second-1, now+10*second, false)
	check(Expired, "one", now+10*second, now+10*second, false)
	// And for as long as any might be, with whatever expiry.
	check(Replayed, "one", now+20*second, now+30*second, false)
	check("", "one", now+30*second, now+31*second, false)
	if check("", "four", now+70*second, now+71*second, false); len(g.seen) != 1 {
		t.Errorf("%d ids are remembered, all but one have expired", len(g.seen))
	}
}

// TestWrongTime: who makes a signer believe in a later clock of the firewall gets a
// command that is no good later either.
func TestWrongTime(t *testing.T) {
	c := config()
	present := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	c.Now = func() time.Time { return present }
	g := newGuard(c)
	for issued, reason := range map[time.Duration]string{0: "", -MaxSkew: "", MaxSkew: "", -MaxSkew - time.Millisecond: WrongTime, MaxSkew + time.Millisecond: WrongTime, -72 * time.Hour: WrongTime} {
		v, _ := check(g, command(func(c *events.Command) { c.ID, c.Issued = issued.String(), present.Add(issued).UnixMilli() }), Sealed{}, now)
		if v.Reason != reason {
			t.Errorf("issued %s from now: %+v, want %q", issued, v, reason)
		}
	}
	if v, _ := check(g, command(nil), Sealed{}, now); v.Reason != WrongTime {
		t.Errorf("without a time: %+v", v)
	}
	present = time.Time{}
	if v, _ := check(g, command(nil), Sealed{}, now); v.Reason != NotReady {
		t.Errorf("before the server's clock is known: %+v", v)
	}
}

func TestProtectReplaces(t *testing.T) {
	g := newGuard(config())
	refused := func(address string, want bool) {
		t.Helper()
		v, _ := check(g, command(func(c *events.Command) { c.Addresses, c.DryRun = []string{address}, true }), Sealed{}, now)
		if v.Allowed() == want {
			t.Errorf("%s: %+v, want refused %t", address, v, want)
		}
	}
	refused("192.0.2.1", true)
	g.Protect(allowlist.Addresses("own address", addrs("192.0.2.9")...)) // the address changed
	refused("192.0.2.1", false)
	refused("192.0.2.9", true)
	refused("127.0.0.1", true)
	refused("198.18.3.1", true)
}

// flow is an entry between two addresses.
func flow(src, dst string) *events.Event {
	e := &events.Event{}
	e.Orig.Src, e.IPv6 = events.FromNetip(netip.MustParseAddr(src))
	e.Orig.Dst, e.IPv6 = events.FromNetip(netip.MustParseAddr(dst))
	return e
}

func TestKeep(t *testing.T) {
	g := newGuard(config())
	f := func(by, src, dst, want string) {
		t.Helper()
		if got := g.Keep(Verdict{}, by)(flow(src, dst)); got != want {
			t.Errorf("by %s, %s to %s: %q, want %q", by, src, dst, got, want)
		}
	}
	f(events.BySrc, "198.18.3.1", "203.0.113.9", Protected)
	f(events.BySrc, "198.18.3.9", "203.0.113.4", "") // the side that was not matched
	f(events.ByDst, "198.18.3.9", "203.0.113.4", Protected)
	f(events.ByDst, "198.18.3.1", "203.0.113.9", Protected) // a protected client's, though its victim was matched
	f(events.ByDst, "198.18.3.9", "203.0.113.9", "")
	f(events.ByEither, "198.18.3.9", "203.0.113.4", Protected)
	f(events.ByEither, "198.18.3.1", "203.0.113.9", Protected)
	f(events.ByEither, "198.18.3.9", "203.0.113.9", "")
	f("", "198.18.3.1", "203.0.113.9", Protected) // of an unknown side, both are kept
	f("", "198.18.3.9", "203.0.113.4", Protected)
	f(events.BySrc, "2001:db8:3::7", "2001:db8::9", Protected)
	f(events.BySrc, "2001:db8:4::7", "2001:db8::9", "")
}

// TestConcurrentUse: of equal commands that come at once, one is allowed, while
// the host's addresses change.
func TestConcurrentUse(t *testing.T) {
	g := newGuard(config())
	const workers, ids = 8, 50
	allowed := make([][ids]bool, workers)
	var wg sync.WaitGroup
	for w := range workers {
		wg.Go(func() {
			for i := range ids {
				v, _ := check(g, command(func(c *events.Command) { c.ID = fmt.Sprint(i) }), Sealed{}, now)
				allowed[w][i] = v.Allowed()
				g.Protect(allowlist.Addresses("own address", addrs("192.0.2.1")...))
				g.Keep(Verdict{}, events.BySrc)(&events.Event{})
			}
		})
	}
	wg.Wait()
	for i := range ids {
		n := 0
		for w := range workers {
			if allowed[w][i] {
				n++
			}
		}
		if n != 1 {
			t.Errorf("command %d was allowed %d times", i, n)
		}
	}
}

func TestNothingIsDeletedBeforeTheHostIsKnown(t *testing.T) {
	g := New(config())
	if v, _ := check(g, command(nil), Sealed{}, now); v.Reason != NotReady {
		t.Errorf("before the host was listed: %+v", v)
	}
	g.Protect(nil)
	if v, _ := check(g, command(nil), Sealed{}, now); !v.Allowed() {
		t.Errorf("after: %+v", v)
	}
}

// TestClaimIsAskedForWhereNobodyLooked: an operator's own command needs none.
func TestClaimIsAskedForWhereNobodyLooked(t *testing.T) {
	c := config()
	c.MinLocal = 50
	g := newGuard(c)
	f := func(what string, least uint64, answered bool, change func(*events.Command)) {
		t.Helper()
		c := command(change)
		if l, a := g.Claim(Verdict{Actor: c.Actor}, c); l != least || a != answered {
			t.Errorf("%s: at least %d, answered %t, want %d, %t", what, l, a, least, answered)
		}
	}
	f("nobody's", 50, true, nil)
	f("an operator's", 0, false, func(c *events.Command) { c.Actor = events.ActorOperator })
	f("an operator's, for an alert", 50, true, func(c *events.Command) { c.Actor, c.Alert = events.ActorOperator, "a" })
	f("the responder's", 50, true, func(c *events.Command) { c.Actor, c.Alert = events.ActorResponder, "a" })
	f("the responder's, without an alert", 50, true, func(c *events.Command) { c.Actor = events.ActorResponder })
	f("flows without an answer", 50, false, func(c *events.Command) { c.Actor, c.Unanswered = events.ActorResponder, true })
	f("by destination", 50, false, func(c *events.Command) { c.Actor, c.By = events.ActorResponder, events.ByDst })
	f("by either", 50, true, func(c *events.Command) { c.Actor, c.By = events.ActorResponder, events.ByEither })
}

// TestRate: no more flushes than allowed within any minute, and what is refused, or
// deletes nothing, uses none of them up.
func TestRate(t *testing.T) {
	c := config()
	c.PerMinute = 3
	g := newGuard(c)
	n := 0
	f := func(at int64, reason string, change func(*events.Command)) {
		t.Helper()
		n++
		cmd := command(change)
		cmd.ID, cmd.Expires = fmt.Sprint("id-", n), at+10*second
		if v, _ := check(g, cmd, Sealed{}, at); v.Reason != reason {
			t.Errorf("at %d s: %+v, want %q", (at-now)/second, v, reason)
		}
	}
	f(now, "", nil)
	f(now, "", func(c *events.Command) { c.DryRun = true })
	f(now, Protected, func(c *events.Command) { c.Addresses = []string{"127.0.0.1"} })
	f(now+20*second, "", nil)
	f(now+40*second, "", nil)
	f(now+59*second, RateLimited, nil)
	f(now+59*second, "", func(c *events.Command) { c.DryRun = true })
	f(now+60*second, "", nil)
	f(now+60*second, RateLimited, nil)
	f(now+80*second, "", nil)
	f(now+1800*second, RateLimited, func(c *events.Command) { // more at once than any minute has room for
		c.Actor, c.Addresses = events.ActorOperator, []string{"198.18.0.1", "198.18.0.2", "198.18.0.3", "198.18.0.4"}
	})
	f(now+3600*second, "", nil)
	// What was refused for this reason is no repetition later.
	f(now+3610*second, "", nil)
	f(now+3620*second, "", nil)
	held := command(nil)
	held.ID = "held"
	held.Expires = now + 3670*second
	if v, _ := check(g, held, Sealed{}, now+3659*second); v.Reason != RateLimited {
		t.Errorf("within a minute: %+v", v)
	}
	if v, _ := check(g, held, Sealed{}, now+3660*second); !v.Allowed() {
		t.Errorf("a minute after the first: %+v", v)
	}
}

// TestGiveBack: a command whose claim does not hold takes nothing of the rate.
func TestGiveBack(t *testing.T) {
	c := config()
	c.PerMinute = 1
	g := newGuard(c)
	next := func(at int64) Verdict {
		v, _ := check(g, command(func(c *events.Command) { c.ID, c.Expires = fmt.Sprint(at), at+second }), Sealed{}, at)
		return v
	}
	for i := range int64(5) {
		v := next(now + i)
		if !v.Allowed() {
			t.Fatalf("command %d: %+v", i, v)
		}
		g.GiveBack(v)
	}
	if v := next(now + 5); !v.Allowed() {
		t.Errorf("the one that holds: %+v", v)
	}
	if v := next(now + 6); v.Reason != RateLimited {
		t.Errorf("the one after it: %+v", v)
	}
}

// TestAllowlist: what the live allowlist covers is refused, what lies within a
// prefix stays, and where the list is not known nothing is deleted at all.
func TestAllowlist(t *testing.T) {
	c := config()
	var asked string
	list, unknown := allowlist.New(allowlist.Prefixes("backup", netip.MustParsePrefix("198.18.0.0/30"))...), error(nil)
	c.Allowlist = func(realm string) (*allowlist.List, error) { asked = realm; return list, unknown }
	g := newGuard(c)
	n := 0
	f := func(address, reason string, change func(*events.Command)) Verdict {
		t.Helper()
		n++
		v, _ := check(g, command(func(c *events.Command) {
			if c.ID, c.Addresses = fmt.Sprint(n), []string{address}; change != nil {
				change(c)
			}
		}), Sealed{}, now)
		if v.Reason != reason {
			t.Errorf("%s: %+v, want %q", address, v, reason)
		}
		return v
	}
	f("198.18.0.1", Allowlisted, nil)
	f("::ffff:198.18.0.1", Allowlisted, nil)
	if asked != "lab" {
		t.Errorf("it asked for the list of realm %q", asked)
	}
	f("198.18.0.1", Allowlisted, func(c *events.Command) { c.Realm = "lab_z7" })
	if asked != "lab_z7" {
		t.Errorf("it asked for the list of realm %q", asked)
	}
	f("198.18.0.9", "", nil)
	keep := g.Keep(f("198.18.0.0/24", "", nil), events.ByEither)
	for what, want := range map[string]string{"198.18.0.1 203.0.113.9": Allowlisted, "198.18.0.9 198.18.0.2": Allowlisted, "198.18.0.9 203.0.113.9": "", "198.18.3.1 198.18.0.1": Protected} {
		src, dst, _ := strings.Cut(what, " ")
		if got := keep(flow(src, dst)); got != want {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	list, unknown = nil, errors.New("not read yet")
	if v := f("198.18.0.9", Unread, nil); !strings.Contains(v.Text, "not read yet") {
		t.Errorf("it does not say why: %+v", v)
	}
}

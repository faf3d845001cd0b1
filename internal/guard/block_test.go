package guard

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/allowlist"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// blockConfig allows flushes and blocks, and has a live allowlist.
func blockConfig() Config {
	c := config()
	c.AllowBlock = true
	c.Allowlist = func(string) (*allowlist.List, error) {
		return allowlist.New(
			allowlist.Entry{Prefix: netip.MustParsePrefix("198.18.7.0/28"), Why: "backup"},
			allowlist.Entry{Prefix: netip.MustParsePrefix("198.18.7.8/29"), Why: "not these", Except: true},
		), nil
	}
	return c
}

// blockCommand is a block that is allowed; change alters it.
func blockCommand(change func(*events.Command)) *events.Command {
	return command(func(c *events.Command) {
		c.Verb, c.By, c.BlockS, c.Actor = events.VerbBlock, "", 600, events.ActorOperator
		if change != nil {
			change(c)
		}
	})
}

func unblock(c *events.Command) { c.Verb, c.BlockS = events.VerbUnblock, 0 }

// TestCheckBlock: a block must not hit anybody who is spared, since it cannot go
// round what lies within its prefix.
func TestCheckBlock(t *testing.T) {
	f := func(reason, text string, change func(*events.Command)) {
		t.Helper()
		c := blockCommand(change)
		v, prefixes := check(newGuard(blockConfig()), c, Sealed{}, now)
		if v.Reason != reason || !strings.Contains(v.Text, text) || v.Allowed() == (len(prefixes) == 0) {
			t.Errorf("%+v: %q (%s) with prefixes %v, want %q (%s)", c, v.Reason, v.Text, prefixes, reason, text)
		}
	}
	address := func(list ...string) func(*events.Command) {
		return func(c *events.Command) { c.Addresses = list }
	}
	f("", "", nil)
	f("", "", func(c *events.Command) { c.Flush = true })
	f("", "", func(c *events.Command) { c.Realm = "lab" })
	f(InZone, "before their zone is known", func(c *events.Command) { c.Realm = "lab_z7" })
	f(WrongRealm, "", func(c *events.Command) { c.Realm = "branch" })
	f(WrongFirewall, "", func(c *events.Command) { c.Firewall = "fw-b" })
	f(WrongBoot, "", func(c *events.Command) { c.Boot = "2233" })
	f(Expired, "", func(c *events.Command) { c.Expires = now })
	f(TooFarAhead, "", func(c *events.Command) { c.Expires = now + 31*second })
	f(Malformed, "is empty", address())
	f(Malformed, "block_s: 0", func(c *events.Command) { c.BlockS = 0 })
	f(Malformed, "block_s: 86401", func(c *events.Command) { c.BlockS = events.MaxBlockS + 1 })
	f(Malformed, "neither unanswered nor towards", func(c *events.Command) { c.Unanswered = true })
	f(Malformed, "neither unanswered nor towards", func(c *events.Command) { c.Towards = "203.0.113.9" })
	f(Malformed, "names one", func(c *events.Command) {
		c.Actor, c.Addresses = events.ActorResponder, []string{"198.18.0.1", "198.18.0.2"}
	})

	f("", "", address("198.18.0.0/24", "2001:db8:18::/64"))
	f(TooWide, "198.18.0.0/23 is wider than /24", address("198.18.0.0/23"))
	f(TooWide, "", address("2001:db8:18::/63"))
	f(TooWide, "", address("::/0"))

	f(Protected, "own address", address("192.0.2.1"))
	f(Protected, "own address", address("::ffff:192.0.2.1"))
	f(Protected, "NATS server", address("198.18.0.1", "203.0.113.4"))
	f(Protected, "loopback", address("127.0.0.1"))
	f(Protected, "--protect", address("198.18.3.0/31"))
	// A flush is carried out around these.
	f(Protected, "192.0.2.1/32 within 192.0.2.0/24 is protected, and a block cannot go round it: own address", address("192.0.2.0/24"))
	f(Protected, "2001:db8::1/128 within 2001:db8::/64", address("2001:db8::/64"))
	f(Protected, "--protect", address("198.18.3.0/24"))
	f("", "", address("198.18.3.4/30"))

	f(Allowlisted, "backup", address("198.18.7.1"))
	f(Allowlisted, "198.18.7.0/28 within 198.18.7.0/27 is on the allowlist, and a block cannot go round it: backup", address("198.18.7.0/27"))
	f("", "", address("198.18.7.9"))    // an exception
	f("", "", address("198.18.7.8/30")) // and part of it
	f("", "", address("198.18.7.16/28"))

	// What a host's neighbours and routers need.
	for _, a := range []string{"0.0.0.0", "169.254.0.0/24", "224.0.0.18", "239.1.2.0/24", "255.255.255.0/24", "255.255.255.255", "::", "::/64", "fe80::/64", "fe80::1", "ff02::1"} {
		f(Protected, "", address(a))
		flush := command(func(c *events.Command) { c.Addresses = []string{a} })
		if v, _ := check(newGuard(config()), flush, Sealed{}, now); !v.Allowed() {
			t.Errorf("a flush of %s: %+v", a, v)
		}
	}
}

// TestCheckUnblock: to end a block needs what shows that it is meant for here and
// now, and is not held up by what protects from harm.
func TestCheckUnblock(t *testing.T) {
	cfg := blockConfig()
	cfg.PerMinute = 1
	cfg.Allowlist = func(string) (*allowlist.List, error) { return nil, errors.New("not read") }
	fresh := New(cfg) // it does not know its own addresses yet
	n := 0
	f := func(g *Guard, reason string, change func(*events.Command)) {
		t.Helper()
		n++
		c := blockCommand(func(c *events.Command) {
			if unblock(c); change != nil {
				change(c)
			}
			if c.ID == "id" {
				c.ID = fmt.Sprint(n)
			}
		})
		v, prefixes := check(g, c, Sealed{}, now)
		if v.Reason != reason || v.Allowed() == (len(prefixes) == 0) || !v.Allowed() && v.Text == "" {
			t.Errorf("%+v: %+v with prefixes %v, want %q", c, v, prefixes, reason)
		}
	}
	f(fresh, "", nil)
	f(fresh, "", nil) // and no rate
	f(fresh, "", func(c *events.Command) { c.Actor = events.ActorResponder })
	for _, a := range []string{"127.0.0.1", "198.18.3.1", "198.18.7.1", "198.18.3.0/24", "fe80::1"} {
		f(fresh, "", func(c *events.Command) { c.Addresses = []string{a} })
	}
	f(fresh, TooWide, func(c *events.Command) { c.Addresses = []string{"198.18.0.0/15"} })
	f(fresh, Malformed, func(c *events.Command) { c.Addresses = nil })
	f(fresh, WrongFirewall, func(c *events.Command) { c.Firewall = "fw-b" })
	f(fresh, WrongRealm, func(c *events.Command) { c.Realm = "branch" })
	f(fresh, InZone, func(c *events.Command) { c.Realm = "lab_z7" })
	f(fresh, WrongBoot, func(c *events.Command) { c.Boot = "2233" })
	f(fresh, Expired, func(c *events.Command) { c.Expires = now })
	f(fresh, TooFarAhead, func(c *events.Command) { c.Expires = now + 31*second })
	f(fresh, "", func(c *events.Command) { c.ID = "one" })
	f(fresh, Replayed, func(c *events.Command) { c.ID = "one" })
	f(newGuard(config()), NotEnabled, nil)
	f(newGuard(config()), NotEnabled, func(c *events.Command) { c.DryRun = true }) // what is blocked is not known
}

// TestBlockIsEnabled: blocks need --allow-block, and those that flush
// --allow-flush as well.
func TestBlockIsEnabled(t *testing.T) {
	for _, x := range []struct {
		flush, block bool // what is enabled
		change       func(*events.Command)
		missing      string
	}{
		{true, false, nil, "--allow-block"},
		{true, false, func(c *events.Command) { c.Flush = true }, "--allow-block"},
		{false, true, nil, ""},
		{false, true, func(c *events.Command) { c.Flush = true }, "--allow-flush"},
		{false, true, unblock, ""},
		{false, true, func(c *events.Command) { unblock(c); c.Flush = true }, ""},
		{false, true, func(c *events.Command) { c.Verb, c.By = events.VerbFlush, events.BySrc }, "--allow-flush"},
		{true, true, func(c *events.Command) { c.Flush = true }, ""},
		{false, false, func(c *events.Command) { c.Flush, c.DryRun = true, true }, ""},
	} {
		cfg := config()
		cfg.AllowFlush, cfg.AllowBlock = x.flush, x.block
		v, _ := check(newGuard(cfg), blockCommand(x.change), Sealed{}, now)
		if x.missing == "" && !v.Allowed() || x.missing != "" && (v.Reason != NotEnabled || !strings.HasSuffix(v.Text, "without "+x.missing)) {
			t.Errorf("flush %t, block %t: %+v, want %q to be missing", x.flush, x.block, v, x.missing)
		}
	}
}

// TestBlockIsReplayedAndRated: a block is remembered and counted with the flushes.
func TestBlockIsReplayedAndRated(t *testing.T) {
	cfg := blockConfig()
	cfg.PerMinute = 3
	g := newGuard(cfg)
	f := func(reason, id string, c *events.Command) {
		t.Helper()
		c.ID = id
		if v, _ := check(g, c, Sealed{}, now); v.Reason != reason {
			t.Errorf("%s: %+v, want %q", id, v, reason)
		}
	}
	f("", "a", blockCommand(func(c *events.Command) { c.DryRun = true }))
	f("", "a", blockCommand(nil))
	f(Replayed, "a", blockCommand(nil))
	f(Replayed, "a", command(nil))
	f("", "b", command(nil))
	f("", "c", blockCommand(unblock))
	f("", "d", blockCommand(nil))
	f(RateLimited, "e", blockCommand(nil))
	f(RateLimited, "f", command(nil))
}

// TestBlockIsSigned: by a key that is trusted for all that the command does.
func TestBlockIsSigned(t *testing.T) {
	keys, file := map[string]*seal.Signer{}, "keys:\n"
	for name, verbs := range map[string]string{"all": "flush, block, unblock", "blocks": "block", "flushes": "flush", "ends": "unblock"} {
		keys[name] = newKey(t, &file, name, "operator", verbs)
	}
	cfg := blockConfig()
	cfg.Trust = trustFile(t, file)
	g := newGuard(cfg)
	n := 0
	is := func(key, reason string, change func(*events.Command)) {
		t.Helper()
		n++
		c := blockCommand(func(c *events.Command) {
			if c.ID = fmt.Sprint(n); change != nil {
				change(c)
			}
		})
		c, s := signed(t, keys[key], c, nil)
		if v, _ := check(g, c, s, now); v.Reason != reason || reason == "" && v.Who != key || reason != "" && v.Text == "" {
			t.Errorf("%s of %q: %+v, want %q", c.Verb, key, v, reason)
		}
	}
	flushing := func(c *events.Command) { c.Flush = true }
	is("all", "", nil)
	is("all", "", flushing)
	is("all", "", unblock)
	is("blocks", "", nil)
	is("blocks", NotForVerb, flushing)
	is("blocks", NotForVerb, unblock)
	is("flushes", NotForVerb, nil)
	is("flushes", NotForVerb, flushing)
	is("ends", "", unblock)
	is("ends", NotForVerb, nil)
	is("", Unsigned, nil)
	is("", Unsigned, unblock)
}

// TestClaimOfABlock: whatever it says of itself, answered flows must be here.
func TestClaimOfABlock(t *testing.T) {
	c := blockConfig()
	c.MinLocal = 50
	g := newGuard(c)
	for what, x := range map[string]struct {
		least  uint64
		change func(*events.Command)
	}{
		"an operator's":               {0, nil},
		"the responder's":             {50, func(c *events.Command) { c.Actor = events.ActorResponder }},
		"an operator's, for an alert": {50, func(c *events.Command) { c.Alert = "a" }},
		"by destination":              {50, func(c *events.Command) { c.Actor, c.By = events.ActorResponder, events.ByDst }},
		"unanswered":                  {50, func(c *events.Command) { c.Actor, c.Unanswered = events.ActorResponder, true }},
	} {
		c := blockCommand(x.change)
		if least, answered := g.Claim(Verdict{Actor: c.Actor}, c); least != x.least || answered != (x.least > 0) {
			t.Errorf("%s: at least %d, answered %t, want %d", what, least, answered, x.least)
		}
	}
}

package allowlist

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

var start = time.UnixMilli(1_700_000_000_000)

// desk is a live list and the keys of alice, who may change it, of bob, who may
// not, and of a stranger.
type desk struct {
	*testing.T
	live *Live
	keys map[string]*seal.Signer
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{T: t, keys: map[string]*seal.Signer{}}
	file := "keys:\n"
	for name, verb := range map[string]string{"alice": "allowlist", "bob": "flush", "stranger": ""} {
		s, _, err := seal.NewSigner()
		if err != nil {
			t.Fatal(err)
		}
		if d.keys[name] = s; verb != "" {
			file += fmt.Sprintf("  - {name: %s, role: operator, key: %s, verbs: [%s]}\n", name, s.Public(), verb)
		}
	}
	path := filepath.Join(t.TempDir(), "trust.yaml")
	if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
		t.Fatal(err)
	}
	trust, err := seal.OpenTrust(path)
	if err != nil {
		t.Fatal(err)
	}
	d.live = NewLive(trust)
	return d
}

func (d *desk) put(who string, at time.Time, change func(*events.AllowEntry)) error {
	d.Helper()
	e := &events.AllowEntry{Prefix: "10.0.0.0/8", Time: at.UnixMilli()}
	if change != nil {
		change(e)
	}
	p, err := events.ParsePrefix(e.Prefix)
	if err != nil {
		d.Fatal(err)
	}
	key := events.AllowKey(e.Realm, p)
	subject := "$KV.CT_ALLOWLIST." + key
	data, err := events.Marshal(e)
	if err != nil {
		d.Fatal(err)
	}
	s, err := d.keys[who].Sign(subject, data)
	if err != nil {
		d.Fatal(err)
	}
	return d.live.Put(key, subject, data, s)
}

func (d *desk) add(who, prefix string, change func(*events.AllowEntry)) {
	d.Helper()
	err := d.put(who, start, func(e *events.AllowEntry) {
		if e.Prefix = prefix; change != nil {
			change(e)
		}
	})
	if err != nil {
		d.Error(err)
	}
}

func (d *desk) lists(realm, address string, after time.Duration, want bool) {
	d.Helper()
	e, got := d.live.List(realm, start.Add(after)).Contains(netip.MustParseAddr(address))
	if got != want {
		d.Errorf("%s in realm %s after %s: %t (%+v), want %t", address, realm, after, got, e, want)
	}
}

func TestLive(t *testing.T) {
	d := newDesk(t)
	d.add("alice", "10.0.0.0/8", nil)
	d.add("alice", "10.1.2.3", func(e *events.AllowEntry) { e.Except = true })
	d.add("alice", "10.9.0.0/16", func(e *events.AllowEntry) { e.Realm, e.Except = "lis1", true })
	d.add("alice", "192.0.2.0/24", func(e *events.AllowEntry) { e.Realm = "lis1" })
	d.add("alice", "198.51.100.7", func(e *events.AllowEntry) { e.Until = start.Add(time.Hour).UnixMilli() })
	d.lists("default", "10.1.2.4", 0, true)
	d.lists("default", "10.1.2.3", 0, false) // a single address within a listed range
	d.lists("lis1", "10.9.9.9", 0, false)    // of this realm only
	d.lists("default", "10.9.9.9", 0, true)
	d.lists("lis1", "192.0.2.1", 0, true)
	d.lists("lis1_z7", "192.0.2.1", 0, false)
	d.lists("default", "192.0.2.1", 0, false)
	d.lists("default", "198.51.100.7", 0, true)
	d.lists("default", "198.51.100.7", time.Hour-time.Millisecond, true)
	d.lists("default", "198.51.100.7", time.Hour, false)
	if n := len(d.live.Entries(start)); n != 5 {
		t.Errorf("%d entries", n)
	}
	if n := len(d.live.Entries(start.Add(time.Hour))); n != 4 {
		t.Errorf("%d entries after an hour", n)
	}
	if err := d.put("alice", start.Add(time.Second), func(e *events.AllowEntry) { e.Removed = true }); err != nil {
		t.Error(err)
	}
	d.lists("default", "10.1.2.4", time.Minute, false)
	// Told anew, what was in force stays so until all has been told.
	d.live.Begin()
	d.add("alice", "203.0.113.1", nil)
	d.lists("lis1", "192.0.2.1", 0, true)
	d.lists("lis1", "203.0.113.1", 0, false)
	d.live.Done()
	d.lists("lis1", "203.0.113.1", 0, true)
	d.lists("lis1", "192.0.2.1", 0, true) // a bus that tells nothing of it takes nothing away
}

// TestLiveBelievesNobodyElse: what is not signed by one who may change the list can
// only add to it.
func TestLiveBelievesNobodyElse(t *testing.T) {
	for _, who := range []string{"bob", "stranger", ""} {
		d := newDesk(t)
		d.add("alice", "10.0.0.0/8", nil)
		d.add("alice", "10.1.2.3", func(e *events.AllowEntry) { e.Except = true })
		for what, change := range map[string]func(*events.AllowEntry){
			"take an entry out": func(e *events.AllowEntry) { e.Removed = true },
			"end it":            func(e *events.AllowEntry) { e.Until = 1 },
			"make an exception": func(e *events.AllowEntry) { e.Except = true },
		} {
			if err := d.put(who, start.Add(time.Hour), change); err == nil {
				t.Errorf("%q may %s", who, what)
			}
			d.lists("default", "10.7.7.7", 2*time.Hour, true)
		}
		es := d.live.Entries(start.Add(2 * time.Hour))
		if i := slices.IndexFunc(es, func(e LiveEntry) bool { return e.Unverified != nil }); i < 0 || es[i].Prefix != "10.0.0.0/8" {
			t.Errorf("it does not show: %+v", es)
		}
		// Who may mends it.
		if err := d.put("alice", start.Add(3*time.Hour), func(e *events.AllowEntry) { e.Removed = true }); err != nil {
			t.Error(err)
		}
		d.lists("default", "10.7.7.7", 4*time.Hour, false)
	}
}

// TestLiveKnowsTheLast: an older entry that is sent again changes nothing.
func TestLiveKnowsTheLast(t *testing.T) {
	d := newDesk(t)
	if err := d.put("alice", start.Add(time.Second), nil); err != nil {
		t.Fatal(err)
	}
	if err := d.put("alice", start, func(e *events.AllowEntry) { e.Removed = true }); err == nil || !strings.Contains(err.Error(), "older") {
		t.Errorf("an older one: %v", err)
	}
	d.lists("default", "10.1.1.1", 0, true)
	older := func(what string) {
		t.Helper()
		if err := d.put("alice", start, func(e *events.AllowEntry) { e.Removed = true }); err == nil {
			t.Errorf("an older one after %s is believed", what)
		}
		d.lists("default", "10.1.1.1", 0, true)
	}
	if err := d.put("stranger", start.Add(time.Hour), nil); err == nil {
		t.Error("a stranger is believed")
	}
	older("one that cannot be verified")
	d.live.Begin()
	older("a reconnect")
	d.live.Done()
	d.lists("default", "10.1.1.1", 0, true)
	d.live.Begin()
	d.live.Done()
	d.lists("default", "10.1.1.1", 0, true)
	older("a bus that told nothing")
	// A later one is believed all the same.
	if err := d.put("alice", start.Add(time.Minute), func(e *events.AllowEntry) { e.Removed = true }); err != nil {
		t.Error(err)
	}
	d.lists("default", "10.1.1.1", 0, false)
}

// TestLiveKeys: a body under another key is not believed, and a key that names
// nothing is refused.
func TestLiveKeys(t *testing.T) {
	d := newDesk(t)
	e := &events.AllowEntry{Prefix: "10.0.0.0/8", Time: 1, Removed: true}
	data, err := events.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	for key, names := range map[string]bool{"_all.192-0-2-0_24": true, "lis1.10-0-0-0_8": true, "nothing": false, "x.y": false, "": false} {
		subject := "$KV.CT_ALLOWLIST." + key
		s, err := d.keys["alice"].Sign(subject, data)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.live.Put(key, subject, data, s); err == nil {
			t.Errorf("%q is believed", key)
		}
		if n := len(d.live.Entries(start)); (n > 0) != names {
			t.Errorf("%q: %d entries", key, n)
		}
		d.live.Begin()
		d.live.Done()
	}
}

func FuzzLivePut(f *testing.F) {
	e := &events.AllowEntry{Prefix: "10.0.0.0/8", Time: 1, Until: 2}
	data, err := events.Marshal(e)
	if err != nil {
		f.Fatal(err)
	}
	f.Add("_all.10-0-0-0_8", data)
	f.Add("lis1.2001-0db8-0000-0000-0000-0000-0000-0000_32", []byte{})
	f.Fuzz(func(t *testing.T, key string, data []byte) {
		trust, err := seal.OpenTrust(seal.TrustNone)
		if err != nil {
			t.Fatal(err)
		}
		l := NewLive(trust)
		err = l.Put(key, "subject", data, seal.Seal{})
		realm, p, keyErr := events.ParseAllowKey(key)
		if keyErr == nil && events.AllowKey(realm, p) != key {
			t.Errorf("%q is a second spelling of %q", key, events.AllowKey(realm, p))
		}
		for _, e := range l.Entries(start) {
			if keyErr != nil || (e.Unverified == nil) != (err == nil) {
				t.Errorf("%q: %+v, %v, %v", key, e, err, keyErr)
			}
		}
	})
}

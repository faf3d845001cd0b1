package allowlist

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Live is the allowlist that operators change while everything runs: the values of
// a bucket, each signed by whom a trust file names. It is safe for concurrent use.
//
// Nothing on the bus can take a prefix out of it without a signature: a value that
// cannot be verified lists the prefix that its key names, until it is replaced by
// one that can. An entry that was verified once stays until a later one of the same
// place takes its place: neither an older one that is sent again, nor a bus that
// tells nothing of it any more, takes it away.
type Live struct {
	trust *seal.Trust

	mu      sync.Mutex
	entries map[place]LiveEntry
	next    map[place]LiveEntry // while they are told anew: what was in force stays so until all are
	known   map[place]told      // the latest that was verified
	lists   map[string]current  // by realm, made when they are asked for
}

// place is what an entry is about.
type place struct {
	realm  string
	prefix netip.Prefix
}

// told is a value as it came, so that it can be verified again.
type told struct {
	entry   LiveEntry
	subject string
	data    []byte
	seal    seal.Seal
}

// current is a list and until when it holds; the zero time: until a change.
type current struct {
	list  *List
	until time.Time
}

// LiveEntry is one entry as an operator sees it.
type LiveEntry struct {
	events.AllowEntry
	Who        string // the name that the trust file gives to its signer; "" where everybody is trusted
	Unverified error  // why it is not what its author says; then it lists its prefix
}

// NewLive returns an empty list that believes whom trust names for
// [seal.VerbAllowlist].
func NewLive(trust *seal.Trust) *Live {
	return &Live{trust: trust, entries: map[place]LiveEntry{}, known: map[place]told{}}
}

// Begin says that all values are about to be told anew. What is known is verified
// again: who is trusted may have changed.
func (l *Live) Begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = map[place]LiveEntry{}
	for at, t := range l.known {
		if _, err := l.read(at, t.subject, t.data, t.seal); err != nil {
			delete(l.known, at)
		}
	}
}

// Done says that all have been told: they take the place of those before, and what
// is known of the rest holds. An entry that is deleted is told, too.
func (l *Live) Done() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.next == nil {
		return
	}
	for at, t := range l.known {
		if _, ok := l.next[at]; !ok {
			l.next[at] = t.entry
		}
	}
	l.entries, l.next, l.lists = l.next, nil, nil
}

// Put takes the value of a key, as it came on subject. An error says why it is not
// believed.
func (l *Live) Put(key, subject string, data []byte, s seal.Seal) error {
	realm, prefix, err := events.ParseAllowKey(key)
	if err != nil {
		return err // it names nothing
	}
	at := place{realm, prefix}
	e, err := l.read(at, subject, data, s)
	l.mu.Lock()
	defer l.mu.Unlock()
	entries := l.entries
	if l.next != nil {
		entries = l.next
	}
	known, had := l.known[at]
	switch {
	case err != nil:
		e = LiveEntry{AllowEntry: events.AllowEntry{Prefix: events.FormatPrefix(prefix), Realm: realm}, Unverified: err}
	case had && e.Time < known.entry.Time:
		// What is in the bucket now is not what was asked for last.
		e, err = known.entry, fmt.Errorf("allowlist entry %s is older than the one that is known", key)
	default:
		l.known[at] = told{e, subject, bytes.Clone(data), s}
	}
	entries[at], l.lists = e, nil
	return err
}

func (l *Live) read(at place, subject string, data []byte, s seal.Seal) (e LiveEntry, err error) {
	if err := events.Unmarshal(data, &e.AllowEntry); err != nil {
		return e, err
	}
	p, err := events.ParsePrefix(e.Prefix)
	if err != nil {
		return e, err
	}
	if e.Realm != at.realm || p != at.prefix {
		return e, fmt.Errorf("allowlist entry: its body belongs on %s", events.AllowKey(e.Realm, p))
	}
	party, err := l.trust.Verify(s, seal.VerbAllowlist, subject, data)
	e.Who = party.Name
	if err != nil {
		return e, fmt.Errorf("allowlist entry %s: %w", e.Prefix, err)
	}
	return e, nil
}

// List returns what is in force in a realm at now, by the server's clock.
func (l *Live) List(realm string, now time.Time) *List {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c, ok := l.lists[realm]; ok && (c.until.IsZero() || now.Before(c.until)) {
		return c.list
	}
	var c current
	var own, all []Entry
	for at, e := range l.entries {
		if at.realm != "" && at.realm != realm || !e.inForce(now) {
			continue
		}
		if end := time.UnixMilli(e.Until); e.Until > 0 && (c.until.IsZero() || end.Before(c.until)) {
			c.until = end
		}
		if at.realm == "" {
			all = append(all, e.entry(at.prefix))
		} else {
			own = append(own, e.entry(at.prefix))
		}
	}
	c.list = New(append(own, all...)...) // of equal prefixes the realm's own counts
	if l.lists == nil || len(l.lists) > maxLists {
		l.lists = map[string]current{}
	}
	l.lists[realm] = c
	return c.list
}

// maxLists is how many realms' lists are kept: a firewall has one and its zones.
const maxLists = 1024

func (e *LiveEntry) inForce(now time.Time) bool {
	return e.Unverified != nil || !e.Removed && (e.Until == 0 || now.Before(time.UnixMilli(e.Until)))
}

func (e *LiveEntry) entry(p netip.Prefix) Entry {
	why := "live allowlist"
	switch {
	case e.Unverified != nil:
		why = "live allowlist, an entry that cannot be verified"
	case e.Comment != "":
		why += ": " + e.Comment
	}
	return Entry{Prefix: p, Why: why, Except: e.Except && e.Unverified == nil}
}

// Entries returns what is in force at now, in order of realm and prefix.
func (l *Live) Entries(now time.Time) []LiveEntry {
	l.mu.Lock()
	defer l.mu.Unlock()
	var places []place
	for at, e := range l.entries {
		if e.inForce(now) {
			places = append(places, at)
		}
	}
	slices.SortFunc(places, func(a, b place) int {
		return cmp.Or(cmp.Compare(a.realm, b.realm), a.prefix.Addr().Compare(b.prefix.Addr()), cmp.Compare(a.prefix.Bits(), b.prefix.Bits()))
	})
	out := make([]LiveEntry, len(places))
	for i, at := range places {
		out[i] = l.entries[at]
	}
	return out
}

// Package audit reads what was decided and done: the entries of the stream CT_AUDIT,
// as the operator's tool, the API and the history show them.
package audit

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// Entry is one line of the audit: exactly one of Receipt, Decision and Act.
type Entry struct {
	Time     time.Time        `json:"time"` // the stream's
	Actor    string           `json:"actor"`
	Verb     string           `json:"verb"`
	Receipt  *events.Receipt  `json:"receipt,omitempty"`
	Decision *events.Decision `json:"decision,omitempty"`
	Act      *events.Act      `json:"act,omitempty"`
	Unsigned string           `json:"unsigned,omitempty"` // why an operator's act may be somebody else's
}

// List are entries, oldest first, as JSON shows them.
type List struct {
	Entries []Entry `json:"entries"`
	More    bool    `json:"more,omitempty"` // older ones were left out
}

// verbs are what an operator's key must be trusted for, by the verb of an act.
var verbs = map[string]string{
	events.VerbAllowlist: seal.VerbAllowlist, events.VerbApproval: seal.VerbApprove, events.VerbCircuit: seal.VerbGuard, events.VerbMode: seal.VerbGuard,
	events.VerbMute: seal.VerbGuard, events.VerbForget: seal.VerbGuard, events.VerbReload: seal.VerbGuard,
}

// Read decodes an entry. The subject says who wrote it: a receipt that claims to come
// from another firewall is none. Who did what an operator's act says is known where
// trust names the key that sealed it, and else not at all; of other entries trust
// may be nil.
func Read(m *bus.Msg, trust *seal.Trust) (Entry, error) {
	tail := events.SubjectTail(m.Subject, events.SubjectAudit)
	if len(tail) != 2 {
		return Entry{}, errors.New("its subject names no author and no verb")
	}
	e := Entry{Time: m.Time, Actor: tail[0], Verb: tail[1]}
	if verb, ok := verbs[e.Verb]; ok {
		e.Act = &events.Act{}
		if err := events.Unmarshal(m.Data, e.Act); err != nil {
			return e, err
		}
		if e.Actor == events.ActorOperator {
			party, err := trust.Verify(m.Seal, verb, m.Subject, m.Data)
			if e.Act.Who = party.Name; err != nil {
				e.Unsigned = err.Error()
			}
		}
		return e, nil
	}
	if e.Verb == events.VerbDecision {
		e.Decision = &events.Decision{}
		return e, events.Unmarshal(m.Data, e.Decision)
	}
	e.Receipt = &events.Receipt{}
	if err := events.Unmarshal(m.Data, e.Receipt); err != nil {
		return e, err
	}
	if e.Receipt.Firewall != e.Actor {
		return e, fmt.Errorf("%s wrote a receipt in the name of %s", e.Actor, e.Receipt.Firewall)
	}
	return e, nil
}

// Concerns reports whether an entry is about a key (an address or a prefix, as
// messages spell it) and about a firewall; empty: any.
func (e *Entry) Concerns(key, firewall string) bool {
	return (key == "" || slices.Contains(e.keys(), key)) && (firewall == "" || slices.Contains(e.firewalls(), firewall))
}

// Covers reports whether an entry is about an address, or about a prefix that it
// lies in.
func (e *Entry) Covers(a netip.Addr) bool {
	return slices.ContainsFunc(e.keys(), func(key string) bool {
		p, err := events.ParsePrefix(key)
		return err == nil && p.Contains(a)
	})
}

func (e *Entry) keys() []string {
	switch {
	case e.Receipt != nil:
		return e.Receipt.Addresses
	case e.Decision != nil:
		return []string{e.Decision.Key, e.Decision.Address}
	case e.Act != nil:
		return []string{e.Act.Key}
	}
	return nil
}

func (e *Entry) firewalls() []string {
	switch {
	case e.Receipt != nil:
		return []string{e.Actor}
	case e.Decision != nil:
		return e.Decision.Firewalls
	}
	return nil
}

package events

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// AddressQuery asks for all that is known of one address in one realm; empty: the
// default one.
type AddressQuery struct {
	Head    `msgpack:",inline"`
	Address string `msgpack:"address" json:"address"`
	Realm   string `msgpack:"realm,omitempty" json:"realm,omitempty"`
}

func (q *AddressQuery) Validate() error {
	a, err := netip.ParseAddr(q.Address)
	if err != nil || a.Zone() != "" {
		return fmt.Errorf("address: %.60q is no IP address", q.Address)
	}
	if err := checkRealmOrNone(q.Realm); err != nil {
		return err
	}
	return nil
}

// AddressReply is what is known of an address.
type AddressReply struct {
	Head    `msgpack:",inline"`
	Address string `msgpack:"address" json:"address"`
	Realm   string `msgpack:"realm" json:"realm"`
	// Src is of the flows that the address opened, Dst of those that were opened to
	// it.
	Src AddressSide `msgpack:"src" json:"src"`
	Dst AddressSide `msgpack:"dst" json:"dst"`

	// Allowlisted is the entry that covers it; nil: none does.
	Allowlisted *AddressEntry `msgpack:"allowlisted" json:"allowlisted"`
	// Alerts are those that fire about it, or about a prefix that it lies in, newest
	// first; Past those that were resolved within the last hour.
	Alerts []Alert `msgpack:"alerts" json:"alerts"`
	Past   []Alert `msgpack:"past" json:"past"`
	// What was decided and done about it within the last hour, the latest last.
	Decisions []Decision `msgpack:"decisions" json:"decisions"`
	Receipts  []Receipt  `msgpack:"receipts" json:"receipts"`
	Acts      []Act      `msgpack:"acts" json:"acts"`
	// More: there are older ones of these.
	More bool `msgpack:"more,omitempty" json:"more,omitempty"`

	// As in [TopReply].
	Unknown []string `msgpack:"unknown,omitempty" json:"unknown,omitempty"`
	Stale   []string `msgpack:"stale,omitempty" json:"stale,omitempty"`
	Lossy   bool     `msgpack:"lossy,omitempty" json:"lossy,omitempty"` // events were lost within the longest window
}

// AddressSide is an address as source, or as destination.
type AddressSide struct {
	Counts []AddressCount `msgpack:"counts" json:"counts"`
	// Peers and Ports are the most frequent ones among a sample of recent events of
	// this address, not a full count. SampleSize is how many events of it were
	// sampled.
	Peers      []Share `msgpack:"peers_sample" json:"peers_sample"`
	Ports      []Share `msgpack:"ports_sample" json:"ports_sample"`
	SampleSize uint64  `msgpack:"sample_size" json:"sample_size"`
}

// AddressCount is one count of an address.
type AddressCount struct {
	Metric  string `msgpack:"metric" json:"metric"`     // new, active or unreplied
	WindowS int    `msgpack:"window_s" json:"window_s"` // 0 for active, which has none
	// Value is the sum of the realm; nil: not known. It is not for active while no
	// firewall has a complete snapshot, nor for unreplied until a flow has ended.
	Value *uint64 `msgpack:"value" json:"value"`
	// Share is the part of the flows that ended, 0 to 1, that had no answer; of
	// unreplied alone.
	Share     *float64       `msgpack:"share,omitempty" json:"share,omitempty"`
	Firewalls ByName[uint64] `msgpack:"firewalls" json:"firewalls"`                 // each one's part of Value; who has none is left out
	Partial   bool           `msgpack:"partial,omitempty" json:"partial,omitempty"` // the window has not filled yet
}

// AddressEntry is an entry of the allowlist.
type AddressEntry struct {
	Prefix string `msgpack:"prefix" json:"prefix"`
	Why    string `msgpack:"why" json:"why"`
}

func (r *AddressReply) Validate() error {
	if err := (&AddressQuery{Address: r.Address, Realm: r.Realm}).Validate(); err != nil {
		return err
	}
	var texts [][2]string
	for _, side := range []*AddressSide{&r.Src, &r.Dst} {
		for _, c := range side.Counts {
			if err := oneOf("metric", c.Metric, MetricNew, MetricActive, MetricUnreplied); err != nil {
				return err
			}
			if c.Share != nil && !(*c.Share >= 0 && *c.Share <= 1) {
				return fmt.Errorf("share: %v is not within 0 to 1", *c.Share)
			}
			for fw := range c.Firewalls {
				texts = append(texts, [2]string{"firewalls", fw})
			}
		}
		for _, s := range slices.Concat(side.Peers, side.Ports) {
			texts = append(texts, [2]string{"sample", s.Value})
		}
	}
	if e := r.Allowlisted; e != nil {
		texts = append(texts, [2]string{"allowlisted", e.Prefix}, [2]string{"allowlisted", e.Why})
	}
	for _, fw := range slices.Concat(r.Unknown, r.Stale) {
		texts = append(texts, [2]string{"firewalls", fw})
	}
	return errors.Join(checkText(texts...), validateAll(r.Alerts), validateAll(r.Past),
		validateAll(r.Decisions), validateAll(r.Receipts), validateAll(r.Acts))
}

// validateAll returns what is wrong with the first bad message of a list.
func validateAll[T any, P interface {
	*T
	Message
}](list []T) error {
	for i := range list {
		if err := P(&list[i]).Validate(); err != nil {
			return err
		}
	}
	return nil
}

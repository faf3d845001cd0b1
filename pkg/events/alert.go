package events

import (
	"errors"
	"fmt"
	"slices"
)

// States of an alert.
const (
	Firing   = "firing"
	Resolved = "resolved"
)

// Alert says that an address, a prefix or a table is over a threshold, or no
// longer is. A firing alert is published again, under the same ID, when its
// value has grown much.
type Alert struct {
	Head     `msgpack:",inline"`
	ID       string `msgpack:"id" json:"id"` // the same on every aggregator that counts the same stream
	Rule     string `msgpack:"rule" json:"rule"`
	State    string `msgpack:"state" json:"state"` // firing or resolved
	Severity string `msgpack:"severity" json:"severity"`
	Scope    string `msgpack:"scope" json:"scope"` // a firewall, "fleet" or "realm_<name>"
	Realm    string `msgpack:"realm" json:"realm"`
	Key      string `msgpack:"key" json:"key"`     // an address, a prefix, "table", or a firewall's alarm
	Track    string `msgpack:"track" json:"track"` // by_src, by_dst or table
	Metric   string `msgpack:"metric" json:"metric"`

	Value   float64 `msgpack:"value" json:"value"`     // what was counted
	Count   float64 `msgpack:"count" json:"count"`     // the threshold
	Seconds int     `msgpack:"seconds" json:"seconds"` // the window; 0 where the metric has none
	Peak    float64 `msgpack:"peak" json:"peak"`       // the highest value since it started

	// Times in Unix milliseconds of the fleet's clock (the stream's).
	Started int64 `msgpack:"started" json:"started"`
	Updated int64 `msgpack:"updated" json:"updated"`

	// Slots are when it was counted: the window's slots of SlotMS each, oldest first, the
	// newest of which ends at SlotsEnd (Unix ms of the same clock). Their sum is what the
	// window held when the alert was written, which may have gone on from Value. Of a
	// metric with a window, while it fires.
	Slots    []uint64 `msgpack:"slots,omitempty" json:"slots,omitempty"`
	SlotMS   int64    `msgpack:"slot_ms,omitempty" json:"slot_ms,omitempty"`
	SlotsEnd int64    `msgpack:"slots_end,omitempty" json:"slots_end,omitempty"`

	Firewalls ByName[float64] `msgpack:"firewalls,omitempty" json:"firewalls,omitempty"` // each one's share of Value
	// Peers and Ports are the most frequent ones among a sample of recent
	// events of this key, not a full count.
	Peers []Share `msgpack:"peers_sample,omitempty" json:"peers_sample,omitempty"`
	Ports []Share `msgpack:"ports_sample,omitempty" json:"ports_sample,omitempty"`
	// SampleSize is how many of the sampled events are of this key.
	SampleSize uint64 `msgpack:"sample_size,omitempty" json:"sample_size,omitempty"`
	// Unreplied is the share, 0 to 1, of this key's flows that ended without
	// an answer within the window; nil until one has ended.
	Unreplied *float64 `msgpack:"unreplied" json:"unreplied"`

	Allowlisted bool `msgpack:"allowlisted,omitempty" json:"allowlisted,omitempty"`
	Lossy       bool `msgpack:"lossy,omitempty" json:"lossy,omitempty"` // events were lost within the window: the truth may be higher
	Stale       bool `msgpack:"stale,omitempty" json:"stale,omitempty"` // a firewall in scope is silent
	// Approximate: of a firewall that has a share of the value, active is not exact.
	Approximate bool `msgpack:"approximate,omitempty" json:"approximate,omitempty"`
	// Partial: what the rule counts has been counted for less than its window. The
	// truth may be higher.
	Partial   bool   `msgpack:"partial,omitempty" json:"partial,omitempty"`
	Muted     bool   `msgpack:"muted,omitempty" json:"muted,omitempty"` // nobody was told: its firewall was muted when this was written
	Simulated bool   `msgpack:"simulated,omitempty" json:"simulated,omitempty"`
	Text      string `msgpack:"text" json:"text"` // cause, value, threshold and window in one line
}

// MaxSlots is the most that an alert may have, and maxSlotMS, an hour, how long each
// may be.
const (
	MaxSlots  = 100
	maxSlotMS = 3_600_000
)

// Flags names what is true of the alert beside its state, in the order of the
// alphabet: allowlisted, approximate, lossy, muted, partial,
// simulated, stale.
func (a *Alert) Flags() (names []string) {
	for _, f := range []struct {
		name string
		on   bool
	}{{"allowlisted", a.Allowlisted}, {"approximate", a.Approximate}, {"lossy", a.Lossy}, {"muted", a.Muted}, {"partial", a.Partial}, {"simulated", a.Simulated}, {"stale", a.Stale}} {
		if f.on {
			names = append(names, f.name)
		}
	}
	return names
}

// Share is one value and how often it was seen.
type Share struct {
	Value string `msgpack:"value" json:"value"`
	Count uint64 `msgpack:"count" json:"count"`
}

func (a *Alert) Validate() error {
	if err := oneOf("state", a.State, Firing, Resolved); err != nil {
		return err
	}
	if err := CheckName(a.Rule); err != nil {
		return fmt.Errorf("rule: %w", err)
	}
	if err := CheckName(a.Realm); err != nil {
		return fmt.Errorf("realm: %w", err)
	}
	if err := CheckName(a.Scope); err != nil {
		return fmt.Errorf("scope: %w", err)
	}
	texts := [][2]string{{"id", a.ID}, {"severity", a.Severity}, {"key", a.Key}, {"track", a.Track}, {"metric", a.Metric}, {"text", a.Text}}
	for name, share := range a.Firewalls {
		if err := errors.Join(CheckFirewall(name), checkFinite("firewalls", share)); err != nil {
			return err
		}
	}
	if err := checkFinite("value", a.Value, a.Count, a.Peak); err != nil {
		return err
	}
	if len(a.Slots) > MaxSlots {
		return fmt.Errorf("slots: %d, at most %d are allowed", len(a.Slots), MaxSlots)
	}
	if len(a.Slots) > 0 && (a.SlotMS < 1 || a.SlotMS > maxSlotMS || a.SlotsEnd < 1 || a.SlotsEnd > maxAt) {
		return fmt.Errorf("slots: of %d ms, until %d: there is no such time", a.SlotMS, a.SlotsEnd)
	}
	if a.Unreplied != nil && !(*a.Unreplied >= 0 && *a.Unreplied <= 1) {
		return fmt.Errorf("unreplied: %v is not within 0 to 1", *a.Unreplied)
	}
	for _, s := range slices.Concat(a.Peers, a.Ports) {
		texts = append(texts, [2]string{"sample", s.Value})
	}
	return checkText(texts...)
}

package events

import (
	"fmt"
	"slices"
)

// Kinds of questions to the centre, each on ct.v1.query.<kind>.
const (
	QueryTop       = "top"
	QueryFirewalls = "firewalls"
	QueryAlerts    = "alerts"
	QueryAddress   = "address"
)

// Metrics.
const (
	MetricNew          = "new"
	MetricActive       = "active"
	MetricUnreplied    = "unreplied"
	MetricTablePercent = "table_percent"
)

// TopQuery asks for the largest keys. Zero values mean: by src, metric new,
// window 10 s, the fleet of the default realm, 20 rows, now.
type TopQuery struct {
	Head     `msgpack:",inline"`
	By       string `msgpack:"by" json:"by"`
	Metric   string `msgpack:"metric" json:"metric"`
	WindowS  int    `msgpack:"window_s" json:"window_s"`
	Firewall string `msgpack:"firewall,omitempty" json:"firewall,omitempty"`
	Realm    string `msgpack:"realm,omitempty" json:"realm,omitempty"`
	Limit    int    `msgpack:"limit,omitempty" json:"limit,omitempty"`
	// At asks for the past, in Unix ms: the minute it lies in, of which the
	// aggregator's history keeps new and active. 0 is now.
	At int64 `msgpack:"at,omitempty" json:"at,omitempty"`
	// Prefix wants only the keys within it. Allowlisted says what becomes of those
	// that the live allowlist covers: shown if empty, else [AllowlistedHide].
	Prefix      string `msgpack:"prefix,omitempty" json:"prefix,omitempty"`
	Allowlisted string `msgpack:"allowlisted,omitempty" json:"allowlisted,omitempty"`
}

// AllowlistedHide leaves out what is allowlisted.
const AllowlistedHide = "hide"

// maxAt is the end of the year 9999.
const maxAt = 253_402_300_799_999

func (q *TopQuery) Validate() error {
	if err := oneOf("by", q.By, "", BySrc, ByDst); err != nil {
		return err
	}
	if err := oneOf("metric", q.Metric, "", MetricNew, MetricActive, MetricUnreplied); err != nil {
		return err
	}
	if q.Firewall != "" {
		if err := CheckFirewall(q.Firewall); err != nil {
			return err
		}
	}
	if err := checkRealmOrNone(q.Realm); err != nil {
		return err
	}
	if q.WindowS < 0 {
		return fmt.Errorf("window_s: must not be negative, is %d", q.WindowS)
	}
	if q.Limit < 0 || q.Limit > 10_000 {
		return fmt.Errorf("limit: %d is not within 0 to 10000", q.Limit)
	}
	if q.At < 0 || q.At > maxAt {
		return fmt.Errorf("at: %d is no time in Unix ms", q.At)
	}
	if q.Prefix != "" {
		if _, err := ParsePrefix(q.Prefix); err != nil {
			return fmt.Errorf("prefix: %w", err)
		}
	}
	return oneOf("allowlisted", q.Allowlisted, "", AllowlistedHide)
}

// TopReply are the rows, largest first.
type TopReply struct {
	Head    `msgpack:",inline"`
	By      string   `msgpack:"by" json:"by"`
	Metric  string   `msgpack:"metric" json:"metric"`
	WindowS int      `msgpack:"window_s" json:"window_s"`
	Scope   string   `msgpack:"scope" json:"scope"`
	Rows    []TopRow `msgpack:"rows" json:"rows"`
	// Unknown names the firewalls whose active count is not known yet; Stale
	// those that are silent. Their flows are not in the rows: a silent
	// firewall must not read as zero.
	Unknown []string `msgpack:"unknown,omitempty" json:"unknown,omitempty"`
	Stale   []string `msgpack:"stale,omitempty" json:"stale,omitempty"`
	Partial bool     `msgpack:"partial,omitempty" json:"partial,omitempty"` // the window has not filled yet
	// Windows are those that are kept, in seconds, shortest first: what else may be
	// asked for. None in an answer about the past.
	Windows []int `msgpack:"windows,omitempty" json:"windows,omitempty"`
	// At is when the minute began that the rows are of, Unix ms; 0: they are of now.
	// Rows of the past name the shares of firewalls as far as they were kept.
	At int64 `msgpack:"at,omitempty" json:"at,omitempty"`
}

// TopRow is one address and its share on each firewall.
type TopRow struct {
	Key       string         `msgpack:"key" json:"key"`
	Value     uint64         `msgpack:"value" json:"value"`
	Firewalls ByName[uint64] `msgpack:"firewalls" json:"firewalls"`
}

func (r *TopReply) Validate() error {
	texts := [][2]string{{"by", r.By}, {"metric", r.Metric}, {"scope", r.Scope}}
	for _, row := range r.Rows {
		texts = append(texts, [2]string{"key", row.Key})
		for fw := range row.Firewalls {
			texts = append(texts, [2]string{"firewalls", fw})
		}
	}
	for _, fw := range slices.Concat(r.Unknown, r.Stale) {
		texts = append(texts, [2]string{"firewalls", fw})
	}
	return checkText(texts...)
}

// FirewallsQuery asks for the inventory.
type FirewallsQuery struct {
	Head `msgpack:",inline"`
}

func (*FirewallsQuery) Validate() error { return nil }

// FirewallsReply is the inventory by name.
type FirewallsReply struct {
	Head      `msgpack:",inline"`
	Firewalls []FirewallStatus `msgpack:"firewalls" json:"firewalls"`
	// Version and Rules are of the aggregator that answers: its own version, and the
	// digest of its rules file; Newest is the newest version of all that it knows, and
	// Config the digest of most firewalls' configuration.
	Version string `msgpack:"version,omitempty" json:"version,omitempty"`
	Rules   string `msgpack:"rules,omitempty" json:"rules,omitempty"`
	Newest  string `msgpack:"newest,omitempty" json:"newest,omitempty"`
	Config  string `msgpack:"config,omitempty" json:"config,omitempty"`
}

// States of a firewall as the centre sees it.
const (
	StateFresh   = "fresh"
	StateStale   = "stale"   // silent for 3 s
	StateSilent  = "silent"  // silent for 60 s: alarmed
	StateStopped = "stopped" // announced a clean stop
)

// FirewallStatus is what the centre knows of one firewall.
type FirewallStatus struct {
	Health      `msgpack:",inline"`
	State       string  `msgpack:"state" json:"state"`
	AgeMS       int64   `msgpack:"age_ms" json:"age_ms"` // since its last message
	Events      uint64  `msgpack:"events" json:"events"` // counted here
	EventsPerS  float64 `msgpack:"events_per_s" json:"events_per_s"`
	NewPerS     float64 `msgpack:"new_per_s" json:"new_per_s"` // of these, new flows
	Lost        uint64  `msgpack:"lost" json:"lost"`           // as its producer knows
	Missing     uint64  `msgpack:"missing" json:"missing"`     // sent, by its own count, but never arrived here
	Duplicates  uint64  `msgpack:"duplicates" json:"duplicates"`
	Refused     uint64  `msgpack:"refused" json:"refused"` // messages that could not be read
	ActiveKnown bool    `msgpack:"active_known" json:"active_known"`
	Active      uint64  `msgpack:"active" json:"active"`
	Approximate bool    `msgpack:"approximate,omitempty" json:"approximate,omitempty"`
	Boots       uint64  `msgpack:"boots" json:"boots"`                       // runs of its producer seen here
	Rivals      bool    `msgpack:"rivals,omitempty" json:"rivals,omitempty"` // two producers use this name at once
	// MutedUntil, Unix ms by the server's clock: nobody is told of its alerts until then,
	// as the bucket CT_GUARD says; who decides by it verifies that.
	MutedUntil int64 `msgpack:"muted_until,omitempty" json:"muted_until,omitempty"`
	// Behind: its version is not the newest one. Differs: most firewalls have another
	// configuration.
	Behind  bool `msgpack:"behind,omitempty" json:"behind,omitempty"`
	Differs bool `msgpack:"differs,omitempty" json:"differs,omitempty"`
}

func (r *FirewallsReply) Validate() error {
	if err := checkText([2]string{"version", r.Version}, [2]string{"rules", r.Rules}, [2]string{"newest", r.Newest}, [2]string{"config", r.Config}); err != nil {
		return err
	}
	for i := range r.Firewalls {
		if err := r.Firewalls[i].Health.Validate(); err != nil {
			return err
		}
		if err := checkFinite("events_per_s", r.Firewalls[i].EventsPerS, r.Firewalls[i].NewPerS); err != nil {
			return err
		}
		if err := oneOf("state", r.Firewalls[i].State, StateFresh, StateStale, StateSilent, StateStopped); err != nil {
			return err
		}
	}
	return nil
}

// AlertsPast are the alerts that have been resolved.
const AlertsPast = "past"

// AlertsQuery asks for alerts.
type AlertsQuery struct {
	Head  `msgpack:",inline"`
	State string `msgpack:"state,omitempty" json:"state,omitempty"` // firing, also if empty, or past
	// Since, in Unix ms: those that fire and started since, or those that were
	// resolved since. 0: all that fire, or the last hour.
	Since int64 `msgpack:"since,omitempty" json:"since,omitempty"`
}

func (q *AlertsQuery) Validate() error {
	if q.Since < 0 || q.Since > maxAt {
		return fmt.Errorf("since: %d is no time in Unix ms", q.Since)
	}
	return oneOf("state", q.State, "", Firing, AlertsPast)
}

// AlertsReply are alerts, newest first: by when they started, or were resolved.
type AlertsReply struct {
	Head   `msgpack:",inline"`
	Alerts []Alert `msgpack:"alerts" json:"alerts"`
	More   bool    `msgpack:"more,omitempty" json:"more,omitempty"` // older ones were left out
}

func (r *AlertsReply) Validate() error {
	return validateAll(r.Alerts)
}

// ResyncReply answers a resync command.
type ResyncReply struct {
	Head     `msgpack:",inline"`
	Firewall string `msgpack:"firewall" json:"firewall"`
	Accepted bool   `msgpack:"accepted" json:"accepted"`
	Reason   string `msgpack:"reason,omitempty" json:"reason,omitempty"`
	Epoch    uint32 `msgpack:"epoch" json:"epoch"` // the one in force when it was asked
}

func (r *ResyncReply) Validate() error {
	if err := CheckFirewall(r.Firewall); err != nil {
		return err
	}
	return checkText([2]string{"reason", r.Reason})
}

package events

import "fmt"

// Verbs of the audit stream that are no commands.
const (
	VerbDecision = "decision" // the responder decided about an alert
	VerbResidual = "residual" // what came back within 2 s of a flush
)

// Receipt is a firewall's answer to a command, returned at once and recorded
// on ct.v1.audit.<firewall>.<verb>. Zero deleted is success.
type Receipt struct {
	Head      `msgpack:",inline"`
	ID        string   `msgpack:"id" json:"id"` // the command's
	Firewall  string   `msgpack:"firewall" json:"firewall"`
	Verb      string   `msgpack:"verb" json:"verb"`
	Actor     string   `msgpack:"actor" json:"actor"`
	Who       string   `msgpack:"who,omitempty" json:"who,omitempty"` // whose key signed it, by the firewall's trust file
	Reason    string   `msgpack:"reason,omitempty" json:"reason,omitempty"`
	Alert     string   `msgpack:"alert,omitempty" json:"alert,omitempty"`
	Rule      string   `msgpack:"rule,omitempty" json:"rule,omitempty"`
	Addresses []string `msgpack:"addresses,omitempty" json:"addresses,omitempty"`
	By        string   `msgpack:"by,omitempty" json:"by,omitempty"`
	Time      int64    `msgpack:"time" json:"time"` // Unix ms, firewall's wall clock
	DryRun    bool     `msgpack:"dry_run,omitempty" json:"dry_run,omitempty"`
	// Unanswered: only entries that have had no answer were meant.
	Unanswered bool   `msgpack:"unanswered,omitempty" json:"unanswered,omitempty"`
	Towards    string `msgpack:"towards,omitempty" json:"towards,omitempty"` // only entries towards it were meant
	Most       uint64 `msgpack:"most,omitempty" json:"most,omitempty"`       // how many might be deleted

	// BlockedUntil is when the block ends (of several addresses, the first of theirs
	// to end), Unix ms of the firewall's wall clock, 0 where it has no end; nil where
	// nothing was blocked. Of an unblock, it is until when all of them stay blocked
	// by a wider prefix.
	BlockedUntil *int64 `msgpack:"blocked_until,omitempty" json:"blocked_until,omitempty"`
	// Unblocked is of how many addresses a block was ended.
	Unblocked uint64 `msgpack:"unblocked,omitempty" json:"unblocked,omitempty"`

	Matched  uint64    `msgpack:"matched" json:"matched"` // entries that fit the match
	Deleted  uint64    `msgpack:"deleted" json:"deleted"`
	Gone     uint64    `msgpack:"gone" json:"gone"`           // had ended by themselves before the delete
	Refused  []Refusal `msgpack:"refused" json:"refused"`     // never nil in JSON: [] when nothing was
	Residual *uint64   `msgpack:"residual" json:"residual"`   // entries that matched again after 2 s; nil when not yet known
	TCPLoose bool      `msgpack:"tcp_loose" json:"tcp_loose"` // mid-stream TCP makes new entries: a flush alone does not stop it

	TableBefore uint64  `msgpack:"table_before" json:"table_before"`
	TableAfter  uint64  `msgpack:"table_after" json:"table_after"`
	DurationMS  float64 `msgpack:"duration_ms" json:"duration_ms"`         // the firewall's own scan and delete
	Error       string  `msgpack:"error,omitempty" json:"error,omitempty"` // what failed, when something did
}

// Refusal is a reason and how many entries, or the whole command (Count 0),
// it stopped.
type Refusal struct {
	Reason string `msgpack:"reason" json:"reason"`
	Count  uint64 `msgpack:"count" json:"count"`
}

func (r *Receipt) Validate() error {
	if err := CheckFirewall(r.Firewall); err != nil {
		return err
	}
	if err := checkFinite("duration_ms", r.DurationMS); err != nil {
		return err
	}
	texts := [][2]string{{"id", r.ID}, {"verb", r.Verb}, {"actor", r.Actor}, {"who", r.Who}, {"reason", r.Reason}, {"alert", r.Alert},
		{"rule", r.Rule}, {"by", r.By}, {"towards", r.Towards}, {"error", r.Error}}
	for _, s := range r.Addresses {
		texts = append(texts, [2]string{"addresses", s})
	}
	for _, s := range r.Refused {
		texts = append(texts, [2]string{"refused", s.Reason})
	}
	return checkText(texts...)
}

// Outcomes of a decision.
const (
	OutcomeCommanded = "commanded" // commands were sent
	OutcomeSimulated = "simulated" // the mode is observe: this is what would have been sent
	OutcomeDeclined  = "declined"  // policy said no: allowlist, cool-down, too old
	OutcomeFailed    = "failed"    // commands could not be delivered or carried out
	OutcomeProposed  = "proposed"  // the mode is approve: it waits for a person
	OutcomeDenied    = "denied"    // who said no
	OutcomeExpired   = "expired"   // or nothing, in time
)

// Decision is what the responder made of an alert, recorded on
// ct.v1.audit.responder.decision before any command is sent.
type Decision struct {
	Head      `msgpack:",inline"`
	ID        string   `msgpack:"id" json:"id"`
	Alert     string   `msgpack:"alert" json:"alert"`
	Rule      string   `msgpack:"rule" json:"rule"`
	Scope     string   `msgpack:"scope" json:"scope"`
	Realm     string   `msgpack:"realm" json:"realm"`
	Key       string   `msgpack:"key" json:"key"`
	Mode      string   `msgpack:"mode" json:"mode"`
	Action    string   `msgpack:"action" json:"action"`
	Outcome   string   `msgpack:"outcome" json:"outcome"`
	Reason    string   `msgpack:"reason" json:"reason"`
	Firewalls []string `msgpack:"firewalls,omitempty" json:"firewalls,omitempty"`
	Commands  []string `msgpack:"commands,omitempty" json:"commands,omitempty"` // ids
	Time      int64    `msgpack:"time" json:"time"`                             // Unix ms
	Simulated bool     `msgpack:"simulated,omitempty" json:"simulated,omitempty"`

	// What is asked of the firewalls, see [Command]. Address is whose entries are
	// meant: the alert's key, or a source that contributes to it.
	Address    string `msgpack:"address,omitempty" json:"address,omitempty"`
	By         string `msgpack:"by,omitempty" json:"by,omitempty"`
	Towards    string `msgpack:"towards,omitempty" json:"towards,omitempty"`
	Unanswered bool   `msgpack:"unanswered,omitempty" json:"unanswered,omitempty"`
	BlockS     int64  `msgpack:"block_s,omitempty" json:"block_s,omitempty"`
	Updated    int64  `msgpack:"updated,omitempty" json:"updated,omitempty"` // of the alert
	Who        string `msgpack:"who,omitempty" json:"who,omitempty"`         // who approved or denied it
}

func (d *Decision) Validate() error {
	if err := CheckName(d.Rule); err != nil {
		return fmt.Errorf("rule: %w", err)
	}
	for _, f := range d.Firewalls {
		if err := CheckFirewall(f); err != nil {
			return err
		}
	}
	texts := [][2]string{{"id", d.ID}, {"alert", d.Alert}, {"scope", d.Scope}, {"realm", d.Realm}, {"key", d.Key},
		{"address", d.Address}, {"by", d.By}, {"towards", d.Towards}, {"who", d.Who},
		{"mode", d.Mode}, {"action", d.Action}, {"outcome", d.Outcome}, {"reason", d.Reason}}
	for _, c := range d.Commands {
		texts = append(texts, [2]string{"commands", c})
	}
	return checkText(texts...)
}

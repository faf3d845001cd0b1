package events

// Verbs of acts in the audit stream: what a person did, or what a program did that was
// no command.
const (
	VerbAllowlist = "allowlist" // an entry was added or deleted
	VerbApproval  = "approval"  // a command was approved or denied, or its time was over
	VerbCircuit   = "circuit"   // it was opened or closed
	VerbMode      = "mode"      // a responder began with a mode
	VerbMute      = "mute"      // nobody is told of a firewall's alerts for a while, or is again
	VerbForget    = "forget"    // a firewall is no part of the fleet any more
	VerbReload    = "reload"    // a program read a file again, which had changed
)

// Act is something that was done beside commands, recorded on
// ct.v1.audit.<actor>.<verb>, and signed where its author has a key.
type Act struct {
	Head   `msgpack:",inline"`
	Verb   string `msgpack:"verb" json:"verb"`
	What   string `msgpack:"what" json:"what"`                         // in words, for a person
	Who    string `msgpack:"who,omitempty" json:"who,omitempty"`       // whose key, where the author of the record has verified it
	Key    string `msgpack:"key,omitempty" json:"key,omitempty"`       // the address or prefix that it is about
	Realm  string `msgpack:"realm,omitempty" json:"realm,omitempty"`   // whose
	ID     string `msgpack:"id,omitempty" json:"id,omitempty"`         // of the approval or the decision
	Reason string `msgpack:"reason,omitempty" json:"reason,omitempty"` // why
	Before string `msgpack:"before,omitempty" json:"before,omitempty"` // of a reload: digests of what was in force, and is now
	After  string `msgpack:"after,omitempty" json:"after,omitempty"`
	Time   int64  `msgpack:"time" json:"time"` // Unix ms
}

func (a *Act) Validate() error {
	if err := oneOf("verb", a.Verb, VerbAllowlist, VerbApproval, VerbCircuit, VerbMode, VerbMute, VerbForget, VerbReload); err != nil {
		return err
	}
	return checkText([2]string{"what", a.What}, [2]string{"who", a.Who}, [2]string{"key", a.Key}, [2]string{"realm", a.Realm},
		[2]string{"id", a.ID}, [2]string{"reason", a.Reason}, [2]string{"before", a.Before}, [2]string{"after", a.After})
}

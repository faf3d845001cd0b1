package events

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Proposal is a decision that waits for a person: the value of the key
// <id>.request in the bucket CT_APPROVALS, signed by the responder.
type Proposal struct {
	Head     `msgpack:",inline"`
	Decision Decision `msgpack:"decision" json:"decision"`
	Text     string   `msgpack:"text" json:"text"`       // of the alert
	Expires  int64    `msgpack:"expires" json:"expires"` // Unix ms by the server's clock: from then on it is not done any more
}

func (p *Proposal) Validate() error {
	if p.Decision.ID == "" || len(p.Decision.ID) > 64 {
		return fmt.Errorf("id: %d characters, 1 to 64 are allowed", len(p.Decision.ID))
	}
	if err := p.Decision.Validate(); err != nil {
		return err
	}
	return checkText([2]string{"text", p.Text})
}

// ProposalDigest is what an Answer says of the proposal that it is about: the
// SHA-256, in hexadecimal, of the value as it stands in the bucket.
func ProposalDigest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// Answer is what a person says to a proposal: the value of the key <id>.answer,
// signed by whom the responder trusts for it.
type Answer struct {
	Head    `msgpack:",inline"`
	ID      string `msgpack:"id" json:"id"`
	Approve bool   `msgpack:"approve" json:"approve"`
	// Digest is the proposal's ProposalDigest: what was read is what is approved.
	Digest string `msgpack:"digest" json:"digest"`
	Reason string `msgpack:"reason,omitempty" json:"reason,omitempty"`
	Time   int64  `msgpack:"time" json:"time"` // Unix ms
}

func (a *Answer) Validate() error {
	return checkText([2]string{"id", a.ID}, [2]string{"digest", a.Digest}, [2]string{"reason", a.Reason})
}

// Outcome is what became of a proposal: the value of the key <id>.outcome, made
// once, by the responder that dealt with it.
type Outcome struct {
	Head    `msgpack:",inline"`
	ID      string `msgpack:"id" json:"id"`
	Outcome string `msgpack:"outcome" json:"outcome"` // commanded, declined, denied or expired
	Who     string `msgpack:"who,omitempty" json:"who,omitempty"`
	Time    int64  `msgpack:"time" json:"time"` // Unix ms
}

func (o *Outcome) Validate() error {
	if err := oneOf("outcome", o.Outcome, OutcomeCommanded, OutcomeDeclined, OutcomeDenied, OutcomeExpired); err != nil {
		return err
	}
	return checkText([2]string{"id", o.ID}, [2]string{"who", o.Who})
}

// What the bucket CT_APPROVALS holds of each proposal.
const (
	KeyRequest = "request"
	KeyAnswer  = "answer"
	KeyOutcome = "outcome"
)

// ProposalKey is the key of one of them.
func ProposalKey(id, kind string) string { return id + "." + kind }

// Package responder turns alerts into guarded commands. It wires the parts: alerts
// come from a durable consumer, so that none is handled by two responders and none
// is forgotten by a restart; package policy decides; the deed is charged to a ledger
// that all responders share (ledger.go); the decision is recorded (decide.go); then
// the firewalls are commanded (carry.go, relieve.go), or a person is asked
// (approve.go). The firewalls decide again.
//
// Before its first alert a responder reads the firewalls' last health. How old
// things are is measured by the server's clock, which stamps them.
//
// Policy and trust file can be read again meanwhile (reload.go).
//
// An alert that goes on is published again and again: it is acted upon again
// after its cool-down, or at its next update when nothing came of the last try.
package responder

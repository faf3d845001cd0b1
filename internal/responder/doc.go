// Package responder turns alerts into guarded commands. It wires the parts:
// alerts come from a durable consumer, so that none is handled by two
// responders and none is forgotten by a restart; package policy decides; the
// decision is recorded before anything is sent; the firewalls decide again.
//
// Before its first alert a responder reads how things stand: the firewalls'
// last health, and the decisions of the last cool-down. From then on it hears
// what the other responders decide, so that they share the cool-downs. How old
// things are is measured by the server's clock, which stamps them.
//
// An alert that goes on is published again and again: it is acted upon again
// after its cool-down, or at its next update when nothing came of the last try.
package responder

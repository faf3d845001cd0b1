// Package responder turns alerts into guarded commands. It wires the parts:
// alerts come from a durable consumer, so that none is handled twice by two
// responders and none is forgotten by a restart; package policy decides; the
// decision is recorded before anything is sent; the firewalls decide again.
package responder

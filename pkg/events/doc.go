// Package events is what travels on the bus, one file per message, for anyone
// who subscribes: a dashboard, a script, another firewall vendor's agent.
//
//	batch.go     columns of NEW, DESTROY and EXISTING events   ct.v1.events.>, ct.v1.snapshots.>
//	health.go    one firewall's table, loss and lag            ct.v1.health.>
//	alert.go     an address over a threshold                   ct.v1.alerts.>
//	command.go   what a firewall is asked to do                ct.v1.cmd.>
//	receipt.go   what a firewall did, and what was decided     ct.v1.audit.>
//	pace.go      how long producers should linger              ct.v1.pace
//	query.go     questions to the centre                       ct.v1.query.>
//	subject.go   the names of all of them
//
// Everything is msgpack. All messages but the batch are maps with readable
// string keys, written and read by [Marshal] and [Unmarshal]. The batch is
// columnar, because at a hundred thousand events a second the difference
// between 25 bytes and 250 decides whether the bus or the counting is the
// limit: [BatchWriter] encodes into a buffer that the caller reuses, [Batch]
// decodes without copying a column or allocating per event.
//
// Bytes from the bus are foreign bytes. Every decoder here refuses what it does
// not understand with one error that names the field, never panics, and lets no
// control character through to a terminal, a log or a page.
//
// docs/reference/wire.md specifies each byte; testdata/decode_batch.py proves that the
// specification is enough to read a batch in another language.
package events

// Package history keeps what the fleet's counts were, in one file of SQLite:
// who was on top in each minute, how full each table was, which alerts fired,
// what was done about them.
//
//	schema.go   tables, indexes and views; versions and how one becomes the next
//	address.go  addresses as integers that sort as addresses do, and back in SQL
//	store.go    the file: opened, checked, measured, closed
//	queue.go    minutes on their way to the disk, bounded
//	writer.go   the one goroutine that writes
//	record.go   alerts and audit, as the streams have them, each once
//	retain.go   what is old or too much goes, in small steps
//	read.go     who was on top then?
//
// # What it promises
//
// Counting never waits for it. [Store.Put] takes a minute or drops it, and what
// was dropped is counted. Alerts and audit are not dropped: they stay in their
// streams until they are here ([Store.Record]).
//
// A minute is there as a whole or not at all, and so is a record with the
// position behind it. A process that is killed loses what waited and nothing that
// was committed; a machine that loses its power may also lose the last commits
// (synchronous is NORMAL), and the file stays good.
//
// # What it does not
//
// It keeps the largest of each place, not every address: 0 for an address means
// that it was not among them. It verifies no signature: that is what `ctfleet
// audit list --trust` does. Its file must lie on a local disk, since SQLite's
// write-ahead log is shared through memory.
package history

// Package window counts events per key in sliding windows, in total and per member.
// It knows numbers and keys, nothing else.
//
// # What a count means
//
// A window W is cut in 20 slots of W/20. The count of a key at a time now is the
// number of its events in the slot that holds now and the 19 before it. It is
// therefore never more than the number of events in (now-W, now], and misses at
// most those of one slot, at the old end. The value depends on the times of the
// events alone: not on the order in which they came, and not on what else the table
// holds.
//
// Time is nanoseconds on a clock of the caller's choice. The package never reads a
// clock: [Table.Advance] says what time it is.
//
// Beside the counts in windows (there are [NumSeries] series of them) a key has a
// gauge: what it holds now.
//
// # One history for all windows
//
// A series of a key has one history, however many windows are registered. It is a
// list of cells, each a point in time and a count. A cell starts as the time
// between two neighbouring slot edges, of whatever window; it may be merged with
// its neighbour once no window that still reaches back to them has an edge in
// between. So a history holds about 20 cells for each window at most, most often
// far fewer, the windows need not divide one another, and an event costs the same
// with one window as with thirty.
//
// A key is one cache line: its identity, the newest cell of the first series, and
// 24 bytes of older cells, packed (see history.go). Only busy keys have more, in a
// chunk of the arena, and that is touched once in some twenty cells. Beside the
// line stand 16 bytes for the gauge and, where the other series are used, a second
// line for them (see store.go). Lines lie densely in blocks, found through a
// sharded open hash index. Nothing holds a pointer per key, so the garbage
// collector has nothing to follow, and each part grows and shrinks in small steps,
// so that no event pays for a large copy.
//
// # Members
//
// Every event comes from a member, a firewall say. Nearly every key is ever seen by
// one member alone, and then its total and its member's count are the same numbers:
// there is one line, with an owner. Only when a second member comes is the key
// split (see member.go): its line goes on as the total, and each member gets a line
// of its own.
//
// # Judging costs nothing for quiet keys
//
// The caller registers a [Level] for each threshold. A history carries how many
// further events cannot bring it to any level (its slack), so an event usually
// subtracts and compares. Only when the slack is used up are the counts computed.
//
// # Bounds
//
// A table holds at most MaxKeys keys, and as many lines of members. When it is full
// each member is left its equal share: a new key takes the place of one that
// belongs to a member with that or more, or to several, and of these one of the
// smallest: one whose count is within the lightest eighth. A key that was evicted
// and comes again starts from nothing, so its count is less than the truth for a
// while, never more. Expired keys are reclaimed by Advance, a few at each call, and
// memory is given back.
//
// A Table belongs to one goroutine.
package window

// Package window counts events per key in sliding windows. It knows numbers and keys, nothing else.
//
// # What a count means
//
// A window W is cut in 20 slots of W/20. The count of a key at a time now is the number of its events in the slot that
// holds now and the 19 before it. It is therefore never more than the number of events in (now-W, now], and misses at most
// those of one slot, at the old end. The value depends on the times of the events alone: not on the order in which they came, and
// not on what else the table holds.
//
// Time is nanoseconds on a clock of the caller's choice. The package never reads a clock: [Table.Advance] says what time it is.
//
// # One history for all windows
//
// A key has one history, however many windows are registered. It is a list of cells, each a point in time and a count. A cell
// starts as the time between two neighbouring slot edges, of whatever window; it may be merged with its neighbour once no
// window that still reaches back to them has an edge in between. So a history holds about 20 cells for each window at most, most often
// far fewer, the windows need not divide one another, and an event costs the same with one window as with thirty.
//
// A key is one cache line: its identity, the newest cell, and 24 bytes of older cells, packed (see history.go). Only busy keys
// have more, in a chunk of the arena, and that is touched once in some twenty cells. Lines lie densely in blocks, found through a sharded open
// hash index. Nothing holds a pointer per key, so the garbage collector has nothing to follow, and each
// part grows and shrinks in small steps, so that no Add pays for a large copy.
//
// # Judging costs nothing for quiet keys
//
// The caller registers a [Level] for each threshold. A line carries how many further events cannot bring the key to any level
// (its slack), so Add usually subtracts and compares. Only when the slack is used up are the counts computed.
//
// # Bounds
//
// A table holds at most MaxKeys keys. A new key then takes the place of one of the smallest: one whose count in the longest window is
// within the lightest eighth of the table, oldest first. Keys above that are never evicted. A key that was evicted and comes
// again starts from nothing, so its count is less than the truth for a while, never more. Expired keys are reclaimed
// by Advance, a few at each call, and memory is given back.
//
// A Table belongs to one goroutine.
package window

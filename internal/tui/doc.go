// Package tui is the fleet on a terminal: what `ctfleet top` shows when somebody sits
// in front of it. It asks the centre again and again, draws the last answer, and
// never waits: an answer that is late shows as its age, one that does not come is
// given up, and the picture stays.
//
//	tui.go      what it needs, and its run
//	ask.go      the questions, and what an answer changes
//	model.go    what happens, one message after the other
//	keys.go     what each key does; the page of help says it from the same table
//	top.go      the page of the rows
//	address.go  the page of one address
//	head.go     what stands on top of both: the fleet in a line, tables, warnings
//	line.go     texts with ink: the only place where escape sequences are made
//
// Whatever came from the bus reaches the terminal through line.go, which lets no
// control character through.
package tui

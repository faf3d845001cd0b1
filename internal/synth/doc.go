// Package synth makes the batches that firewalls would send, without a kernel:
// in the real wire format, with flows that begin and end, from as many addresses
// as asked for. Benchmarks of the counting and simulated fleets use it.
//
//	draw.go    which address is next: evenly, or a few of them mostly
//	load.go    flows that begin and end, as batches
//	loop.go    batches made in advance, to be sent again as if they were new
//	fleet.go   many firewalls on a real bus
package synth

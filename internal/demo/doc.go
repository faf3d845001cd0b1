// Package demo is the show: a virtual fleet of three firewalls with real
// kernel connection tables, real NATS, ordinary traffic, an attack through two
// of them, the fleet's alert and the flush. It wires the same roles that run
// in production; nothing in it is simulated but the wires.
//
// It is also a test: it fails unless the alert fired, the flush deleted, no
// ordinary conversation broke and no event was lost.
//
// Where no such fleet can be built, the same roles are shown a recording of it,
// which is said in each line: what they count and alert of is in the recording, and
// the flush is only simulated.
package demo

package spool

import "sync/atomic"

// Account counts events on their way from the kernel to the bus. All counters
// are cumulative and safe for concurrent use.
type Account struct {
	Read        atomic.Uint64 // read from the kernel
	Published   atomic.Uint64 // acknowledged by the bus
	LostSocket  atomic.Uint64 // dropped by the kernel, the socket's buffer was full
	LostRing    atomic.Uint64 // dropped here, the ring was full
	LostBus     atomic.Uint64 // refused by the bus for good
	Undecodable atomic.Uint64 // kernel messages that could not be read
}

// Lost is the number of events that will never arrive.
func (a *Account) Lost() uint64 {
	return a.LostSocket.Load() + a.LostRing.Load() + a.LostBus.Load() + a.Undecodable.Load()
}

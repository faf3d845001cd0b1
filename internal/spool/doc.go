// Package spool is the bounded ring between the kernel and the bus, and its
// loss account.
//
// The capture side puts encoded batches in and never waits. The pump sends them
// in order, keeps each until the bus has acknowledged it, and sends it again
// under the same sequence number when the bus came back without. While the bus
// is away the ring fills; when it is full the oldest batch that was never sent
// is dropped and its events are counted as lost. A batch gets its sequence
// number when it is first sent, so what the ring dropped makes no gap: a gap
// always means that the bus lost something.
package spool

//go:build linux

// Package traffic generates traffic through the virtual firewalls of package lab.
//
// [Flood] makes new flows as fast as the kernel takes them, or at a rate: raw
// packets whose i-th has always the same addresses and ports, so that N packets are
// exactly N flows, which a test can expect to the last one. [Talkers] are the
// opposite: a few clients that hold real TCP and UDP conversations and notice when
// one breaks.
package traffic

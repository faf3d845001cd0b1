// Package conntrack speaks with the kernel's connection-tracking table over
// netlink: it hears of flows that begin and end, reads the table, deletes from
// it, and asks how full it is.
//
// # Hearing
//
// The kernel multicasts one netlink message per event. A [Reader] joins two
// groups, NEW and DESTROY (an UPDATE says nothing that we count), and [Decode]
// turns each message into an [events.Event]. Three things decide what this
// costs the firewall:
//
//   - Wake-ups. A reader that sleeps in poll is woken by the very core that
//     forwards the packet, once per event. Under load the Reader naps instead,
//     with nobody waiting on the socket, and takes what has gathered in one
//     recvmmsg: 0.6 µs per event instead of 2.4.
//   - The socket's buffer. An event occupies 1280 bytes of it, whatever its
//     size. What does not fit is dropped; the kernel counts it exactly, and
//     [Reader.Drops] reports that count.
//   - Garbage. Nothing on this path allocates.
//
// # Reading
//
// [Conn.Dump] streams the table. The kernel walks its hash buckets while the
// table changes, so a dump is no photograph: a flow that begins meanwhile may
// be in it or not, and an entry may come twice. Expired entries are left out
// and evicted on the way, although they are part of the kernel's count until
// then.
//
// # Deleting
//
// [Conn.Flush] selects entries with a dump, matches every one again in Go, asks
// its caller about each, and deletes by original tuple, zone and id. It never
// sends a DELETE without a tuple, which would flush the whole table, nor one
// with a filter, which would let the kernel decide alone. See delete.go for
// what this kernel gets wrong about filters.
//
// # Without a kernel
//
// [XMLReader] reads what the conntrack tool printed with -o xml, for boxes where
// no daemon may run. docs/adr/0003 holds: the tool is never executed.
package conntrack

// Package block blocks addresses on a firewall, for a while: it keeps them in
// sets of nftables, each with an end after which the kernel forgets it. A block
// thus ends on time when the producer does not live to end it, and goes on when
// the producer is restarted.
//
// # Our own table
//
// Where the operator names no sets, the first [Blocker.Add] makes the table
// inet ctfleet:
//
//	table inet ctfleet {
//	        set ipv4_24 { type ipv4_addr; flags timeout; size 65536; }
//	        chain prerouting {
//	                type filter hook prerouting priority -450; policy accept;
//	                ip saddr & 255.255.255.0 @ipv4_24 counter drop
//	                ip daddr & 255.255.255.0 @ipv4_24 counter drop
//	        }
//	}
//
// There is one hash set for each length of prefix that was ever asked for, and
// rules that look up as many bits. So an address and a prefix around it, or a
// prefix and one inside it, are two entries that know nothing of one another, each
// with an end of its own. In one interval set they could not be: the kernel
// refuses intervals that overlap. The price is two look-ups for each length in
// use, whatever the number of entries, in every packet that arrives.
//
// The chain comes before conntrack (see [Priority]): a blocked packet makes no
// entry and refreshes none. Entries that exist are not touched: block first, then
// flush, by either side. Packets to a blocked address are dropped as well as those from it. They
// would bring back what was flushed: a server sends its last answer again, since
// nobody acknowledges it, and with nf_conntrack_tcp_loose=1 that makes an entry, of
// which the server is the source (in a test, for 10 of 10 TCP conversations).
//
// # The operator's sets
//
// Where the operator has sets that their own rules look at, blocks go there, at
// most one set per address family, and no rule is written. Ours bear the comment
// "ctfleet", and only those are listed, changed and deleted. One that the operator
// has put there for the very same prefix becomes ours when it is to last longer. A
// set without the interval flag takes single addresses. For what happens in one
// with it, see interval.go. The rules should look at source and destination, before
// conntrack, as ours do.
//
// # What a block does not stop
//
// Flows that are offloaded to a flowtable pass before prerouting until they leave
// it. A bridge forwards past this hook. What the firewall itself sends does not come
// through it; only the answers are dropped. Behind masquerading, answers arrive
// addressed to the firewall, so that those under way at the time of a flush pass.
//
// Nor does this package know what must never be blocked. That is for its caller.
//
// # State
//
// Nothing is remembered between calls but an estimate of the number of entries:
// others may flush the ruleset at any time, so every call asks the kernel what is
// there. Between a call's question and its change, another process may change the
// end of the same block, and lose: a namespace is for one Blocker at a time.
package block

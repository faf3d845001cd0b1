// Package lab builds virtual firewalls out of network namespaces, with the kernel's
// real connection tracking in each, for tests, demonstrations and measurements on
// one machine.
//
// Every firewall stands between two namespaces of its own:
//
//	client ───────────── firewall ───────────── server
//	198.18.0.0/15         forwards, tracks,      203.0.113.0/24
//	2001:db8:18::/48      may translate          2001:db8:113::/48
//
// The client side answers for all of 198.18.0.0/15 and the server side for all of
// 203.0.113.0/24 without configuring any of these addresses (the kernel calls it
// AnyIP: a local route for the whole prefix). So every firewall has the same
// clients behind it, and one address can reach the servers through several
// firewalls, as a real attacker does. The links in between use 192.0.2.0/24 and
// 2001:db8:ffff::/48, with permanent neighbour entries, so that no ARP or neighbour
// discovery disturbs what is counted. Nothing is connected to the host: there is no
// route out.
//
// Connection tracking is off in a new namespace until a rule asks for it. The
// firewall's table `inet lab` does, with one rule on ct state in its forward chain.
//
// [Here] makes a firewall of a namespace that there is already, with nobody around it.
//
// Root builds the namespaces from where it is. Anyone else can when the kernel
// permits unprivileged user namespaces: [Enter] re-executes the program as root of
// namespaces of its own, and [Permitted] says what is in the way.
package lab

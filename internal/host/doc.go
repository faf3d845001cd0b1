// Package host is what this host is: the network namespace we look at, its
// addresses, gateways and resolvers and who is connected to it, which a flush
// must never touch, our capabilities, and the preflight that tells an operator
// what is missing. On another system than Linux it is next to nothing: a name and
// resolvers, and [ErrNotLinux] for the rest.
package host

// Package producer is the agent on a firewall. It wires the parts and holds no
// mechanism of its own:
//
//	capture.go   kernel → live set → batch → ring → bus     conntrack, live, spool
//	resync.go    dump → live set → snapshot → bus           conntrack, live, spool
//	service.go   commands, each judged; resync              guard
//	flush.go     flush, and what came back                  guard, conntrack
//	block.go     block, unblock, what is blocked            guard, conntrack, block
//	health.go    the state, every second; drift             conntrack, host
//	reload.go    trust, --protect and limits while it runs
//	check.go     the preflight                              host
//
// Three rules hold in all of them. Capture never waits for anything: neither
// for the bus nor for a dump or a flush. What is lost is counted, shown and
// followed by a resync. And nothing is deleted or blocked but on a command that the
// guard allowed.
package producer

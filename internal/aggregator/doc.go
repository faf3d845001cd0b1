// Package aggregator is the centre: it counts what all producers publish,
// judges the counts by the rules, publishes alerts and answers questions. It
// wires the parts and holds no mechanism of its own:
//
//	core.go         batches → count → rule engine → alerts, without a bus
//	replay.go       the same for a recording
//	aggregator.go   options, life: replay, catch up, live
//	intake.go       batches, snapshots, health → count, fleet
//	judge.go        hot keys and ticks → rule engine → alerts
//	alarms.go       the built-in alarms: table, kernel counters, silence, loss
//	orders.go       what operators said: of the circuit, of firewalls
//	reload.go       other rules while all that goes on
//	fleet.go        the inventory: who is out there, how fresh
//	publish.go      alerts to the bus, in order, adopted after a restart
//	version.go      who runs another version, or with another configuration
//	peers.go        several aggregators: each alert once, one answer
//	view.go         the answers to questions, for the bus and for HTTP
//	address.go      all that is known of one address
//	recent.go       alerts and audit of late, as the streams keep them
//	events.go       events of flows of late, likewise
//	watch.go        alerts and audit as they come
//	past.go         each minute into the history, alerts and audit too; answers from it
//	upkeep.go       resyncs where active is not known
//	pace.go         how long the fleet's producers shall linger
//	metrics.go      totals for Prometheus; addresses belong to the API
//
// One goroutine counts and judges; whoever asks takes the same lock. A breach
// fires when the batch that crosses the threshold is counted, not at a tick:
// ticks only let time pass.
package aggregator

// Package count turns the fleet's batches into counts per address: how many
// flows an address opened within a window (new), how many of those that ended
// were never answered (unreplied), how many it holds now (active).
//
//	batch ─▶ admit.go     Admit, in order:
//	             ├─ account.go   seen before? missing? another producer under this name?
//	             ├─ clock.go     when did it happen, on the clock of the stream?
//	             ├─ epoch.go     which sets of active flows does it change?
//	             └─ sample.go    a ring of recent flows, for "peers and ports"
//	      ─▶ lane.go      Run: one pass for each set of counts, into its window.Table
//	      ◀─ lane.go      Commit: what crossed a level, and by which batch
//	      ◀─ value.go     Value, Top, Shares, Unreplied: what is it now?
//	      ◀─ survey.go    Survey: the largest of all places, in steps
//
// It is pure: it knows no bus, reads no clock, starts no goroutine. The same
// batches with the same stream times give the same
// counts, whenever they are read: that is what a replay relies on. Where the
// order of arrival differs (two subjects, a producer's ring flushed after an
// outage) sums commute, so the counts agree once everything has arrived.
//
// # Lanes
//
// What is counted by source and what is counted by destination have nothing in
// common but the batch. So they are two lanes, which may run at the same time on
// two processors. A lane counts the admitted batches one after the other and notes
// after each what has crossed a level, with its value at that moment: the outcome
// is the same whether batches are counted one by one or many at a time, on one
// processor or two. Everything else belongs to one goroutine.
//
// # What is never done
//
// An event is never moved to "now": what waited in a ring during an outage is
// counted when it happened, or, if that is longer ago than the longest window,
// not at all. A duplicate is never counted twice. A number that is not known is
// never shown as zero: active is unknown until a firewall's first complete
// snapshot, and the fleet's sum names the firewalls that it lacks.
//
// # Realms
//
// A realm is where an address names one host. The realm stands in the batch; a
// flow in a non-zero conntrack zone belongs to the realm "<realm>_z<zone>".
// Keys of two realms never meet.
package count

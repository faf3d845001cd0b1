package rule

// BuiltIn are the names of the alarms that an aggregator judges without a rule: a
// policy may name them, too.
var BuiltIn = []string{
	"table-75", "table-90", "table-95", "kernel-drop", "kernel-early-drop", "kernel-insert-failed", "events-lost", "firewall-silent", "two-producers", "circuit-open",
}

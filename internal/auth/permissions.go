package auth

import (
	"slices"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// A Role is what an identity on the bus is for. It decides what the server lets the
// identity publish and subscribe to: nothing else is permitted.
type Role string

// The roles.
const (
	RoleSystem     Role = "system"     // may have servers read their configuration again
	RoleBootstrap  Role = "bootstrap"  // creates the streams and buckets
	RoleAggregator Role = "aggregator" // reads events, publishes alerts, answers questions
	RoleResponder  Role = "responder"  // reads alerts, commands firewalls
	RoleOperator   Role = "operator"   // a person who commands: all of the tool
	RoleAnalyst    Role = "analyst"    // a person who reads everything: events, peers, history, audit
	RoleViewer     Role = "viewer"     // a person or a screen that sees counts and alerts
	RoleFirewall   Role = "firewall"   // one producer
)

// Permissions are the subjects that the server lets an identity publish to and
// subscribe to, wildcards included.
type Permissions struct {
	Publish   []string
	Subscribe []string
	// Not are those of Publish that are not permitted all the same.
	Not []string
}

// permissionsOf returns what an identity may do. There is no allow_responses anywhere: with it,
// who may ask the aggregator a question could have it publish an answer on any subject, by
// naming that as the reply. Whoever answers may publish in the inboxes of those who ask,
// and takes no request whose reply is not an inbox.
func permissionsOf(id *Identity) Permissions {
	p := Permissions{Subscribe: []string{bus.Inboxes(id.Key)}}
	say := func(subjects ...string) { p.Publish = append(p.Publish, subjects...) }
	hear := func(subjects ...string) { p.Subscribe = append(p.Subscribe, subjects...) }

	switch id.Role {
	case RoleSystem:
		say("$SYS.REQ.SERVER.PING.IDZ", "$SYS.REQ.SERVER.*.RELOAD")
	case RoleBootstrap:
		for _, s := range bus.StreamNames() {
			say("$JS.API.STREAM.INFO."+s, "$JS.API.STREAM.CREATE."+s, "$JS.API.STREAM.UPDATE."+s)
		}
		for _, s := range []string{bus.StreamEvents, bus.StreamSnapshots, bus.StreamLast} {
			say("$JS.API.STREAM.DELETE." + s) // bootstrap --anew
		}
	case RoleFirewall:
		say(events.EventsSubject(id.Name), events.SnapshotsSubject(id.Name), events.HealthSubject(id.Name), events.AuditSubject(id.Name, "*"))
		hear(events.CommandSubject(id.Name, "*"), events.SubjectPace)
		say(reads(bus.BucketStream(bus.BucketAllowlist))...)
		say(answers("responder", "operator", "aggregator")...)
		hear(discovery("ct-producer")...)
	case RoleAggregator:
		say(events.SubjectAlerts+".>", events.SubjectPace, events.CommandSubject("*", events.VerbResync), events.AuditSubject("aggregator", "*"))
		hear(events.HealthSubject("*"), events.QuerySubject("*"), events.SubjectPace)
		for _, s := range bus.StreamNames() { // all: it says what is missing
			say("$JS.API.STREAM.INFO." + s)
		}
		for _, s := range []string{bus.StreamEvents, bus.StreamSnapshots, bus.StreamAlerts, bus.StreamAudit, bus.BucketStream(bus.BucketAllowlist), bus.BucketStream(bus.BucketGuard)} {
			say(reads(s)...)
		}
		say(looksUp(bus.StreamLast)...)
		say(looksUp(bus.StreamAlerts)...)
		say("$JS.API.STREAM.PURGE." + bus.StreamLast) // what is left of a firewall that was dismissed
		say(answers("operator")...)
		hear(discovery("ct-aggregator")...)
	case RoleResponder:
		say(commands()...)
		say(events.AuditSubject(events.ActorResponder, "*"), bus.BucketSubject(bus.BucketApprovals, ">"), bus.BucketSubject(bus.BucketGuard, ">"))
		hear(events.HealthSubject("*"))
		for _, s := range []string{bus.StreamAlerts, bus.StreamAudit} {
			say(reads(s)...)
		}
		say(answers("operator")...) // what version it is
		hear(discovery("ct-responder")...)
		say(acknowledges(bus.StreamAlerts, "responder")...)
		say(looksUp(bus.StreamLast)...)
		say(readsBuckets()...)
	case RoleOperator:
		say(commands()...)
		say(events.CommandSubject("*", events.VerbResync), events.AuditSubject(events.ActorOperator, "*"), events.QuerySubject("*"), "$SRV.>")
		for _, b := range buckets {
			say(bus.BucketSubject(b, ">"))
		}
		say(readsEverything()...)
		say(readsBuckets()...)
		hear(overhears()...)
	case RoleAnalyst:
		say(events.QuerySubject("*"))
		say(readsEverything()...)
		hear(overhears()...)
	case RoleViewer:
		// Not by a consumer: who may read a stream may, by the subject for the reply, have the server
		// publish what is stored there once more, wherever it likes. Of the past it sees what these answers hold: alerts
		// with a sample of peers, and counts where a history is kept.
		say(events.QuerySubject(events.QueryTop), events.QuerySubject(events.QueryFirewalls), events.QuerySubject(events.QueryAlerts))
		hear(events.SubjectAlerts + ".>")
	}
	if id.Role != RoleResponder && slices.Contains(p.Publish, "$JS.API.CONSUMER.MSG.NEXT."+bus.StreamAlerts+".*") {
		// The alerts that wait for responders: whoever took one would keep it from them.
		const own = "." + bus.StreamAlerts + ".responder"
		p.Not = []string{"$JS.API.CONSUMER.CREATE" + own, "$JS.API.CONSUMER.CREATE" + own + ".>", "$JS.API.CONSUMER.MSG.NEXT" + own}
	}
	slices.Sort(p.Publish)
	slices.Sort(p.Subscribe)
	return Permissions{Publish: slices.Compact(p.Publish), Subscribe: slices.Compact(p.Subscribe), Not: p.Not}
}

// commands are those that a key can be trusted for: each is signed, and the firewall decides.
func commands() (subjects []string) {
	for _, verb := range []string{events.VerbFlush, events.VerbBlock, events.VerbUnblock, events.VerbStatus} {
		subjects = append(subjects, events.CommandSubject("*", verb))
	}
	return subjects
}

// overhears is what can be listened to as it is published. Not commands: they
// are for who carries them out.
func overhears() []string {
	return []string{events.EventsSubject("*"), events.SnapshotsSubject("*"), events.HealthSubject("*"), events.SubjectAlerts + ".>", events.SubjectPace, events.SubjectAudit + ".>"}
}

// reads is what reading a stream takes, by a consumer of one's own.
func reads(stream string) []string {
	return []string{
		"$JS.API.STREAM.INFO." + stream,
		"$JS.API.CONSUMER.CREATE." + stream + ".>",
		"$JS.API.CONSUMER.INFO." + stream + ".*",
		"$JS.API.CONSUMER.MSG.NEXT." + stream + ".*",
	}
}

// looksUp is what reading the last message of a subject takes.
func looksUp(stream string) []string {
	return []string{"$JS.API.STREAM.INFO." + stream, "$JS.API.STREAM.MSG.GET." + stream}
}

// buckets are all of them.
var buckets = []string{bus.BucketAllowlist, bus.BucketApprovals, bus.BucketGuard}

func readsBuckets() (subjects []string) {
	for _, b := range buckets {
		s := bus.BucketStream(b)
		subjects = append(subjects, reads(s)...)
		// The latter where it is replicated: what is decided upon must be the last.
		subjects = append(subjects, "$JS.API.DIRECT.GET."+s+".>", "$JS.API.STREAM.MSG.GET."+s)
	}
	return subjects
}

func readsEverything() (subjects []string) {
	for _, s := range []string{bus.StreamEvents, bus.StreamSnapshots, bus.StreamAlerts, bus.StreamAudit, bus.StreamLast} {
		subjects = append(subjects, reads(s)...)
	}
	subjects = append(subjects, looksUp(bus.StreamLast)...)
	return append(subjects, looksUp(bus.StreamAlerts)...)
}

// acknowledges is what finishing a message of a durable consumer takes, as servers
// of today spell it and as those with a domain do.
func acknowledges(stream, durable string) []string {
	return []string{"$JS.ACK." + stream + "." + durable + ".>", "$JS.ACK.*.*." + stream + "." + durable + ".>"}
}

// answers are the inboxes of roles that ask.
func answers(roles ...string) (subjects []string) {
	for _, r := range roles {
		subjects = append(subjects, "_INBOX."+r+".>")
	}
	return subjects
}

// discovery is what `nats micro ls`, `info` and `stats` ask a service.
func discovery(service string) (subjects []string) {
	for _, verb := range []string{"PING", "INFO", "STATS"} {
		subjects = append(subjects, "$SRV."+verb, "$SRV."+verb+"."+service, "$SRV."+verb+"."+service+".*")
	}
	return subjects
}

// signs says for which roles there is a key to sign with, and in whose name.
var signs = map[Role]string{RoleResponder: seal.RoleResponder, RoleOperator: seal.RoleOperator}

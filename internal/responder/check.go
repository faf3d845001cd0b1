package responder

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/daemon"
	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// ErrCheck is returned by Check when something fatal was found.
var ErrCheck = errors.New("something was found that keeps the responder from working")

// Check prints what would be used, and what is missing. rules is the
// aggregator's file, where it is at hand.
func Check(w io.Writer, opt Options, file policy.File, signer *seal.Signer, trust *seal.Trust, rules string, nats bus.Flags) error {
	key := "none: firewalls refuse what it asks for, unless they run with --trust none"
	if signer != nil {
		key = signer.Public()
	}
	fmt.Fprintf(w, "mode %s, %d policies, %d allowlisted prefixes, cool-down %s, signing key %s, trusts %s, NATS %s\n",
		file.Mode, len(file.Policies), len(file.Allowlist), file.CoolDown, key, trust, nats.Servers())
	found := slices.Concat(bus.CheckSecret("--sign-key", opt.SignKey), checkSigner(file, signer, trust), checkRules(file, rules), nats.Check(context.Background(), needs()))
	if !daemon.Report(w, found) {
		return ErrCheck
	}
	return nil
}

// checkSigner asks whether firewalls with this trust file would do what is asked of
// them.
func checkSigner(file policy.File, signer *seal.Signer, trust *seal.Trust) (found []daemon.Finding) {
	acts := actions(file)
	if len(acts) == 0 || trust.Open() {
		return nil
	}
	if signer == nil {
		return []daemon.Finding{daemon.Note("--sign-key FILE: ctfleet auth key makes one.", "The policy acts, but commands are not signed: firewalls refuse them.")}
	}
	if trust.Len() == 0 {
		return []daemon.Finding{daemon.Note("--trust FILE", "Nobody is trusted: approvals and orders about the circuit are ignored.")}
	}
	party, ok := trust.Party(signer.Public())
	if !ok {
		return []daemon.Finding{daemon.Note("ctfleet auth key FILE --trust FILE adds one; firewalls need the same trust file.",
			"The key of --sign-key is not in the file of --trust: firewalls that have the same file refuse what it signs.")}
	}
	if party.Role != seal.RoleResponder {
		found = append(found, daemon.Note("Give it a key of its own, with role: responder.", "The file of --trust says that the key of --sign-key is an %s's: firewalls would not check what this responder claims.", party.Role))
	}
	for _, verb := range acts {
		if !slices.Contains(party.Verbs, verb) {
			found = append(found, daemon.Note("Add it to the verbs of "+party.Name+" there, and on the firewalls.", "The policy has firewalls %s, and the file of --trust does not permit that to %s.", verb, party.Name))
		}
	}
	return found
}

// actions are the verbs of the commands that a policy leads to.
func actions(file policy.File) (verbs []string) {
	add := func(verb string) {
		if !slices.Contains(verbs, verb) {
			verbs = append(verbs, verb)
		}
	}
	for _, p := range file.Policies {
		mode := file.Mode
		if p.Mode != "" {
			mode = p.Mode
		}
		if mode == policy.Observe {
			continue
		}
		if p.Action != policy.ActionBlock {
			add(seal.VerbFlush)
		}
		if p.Action == policy.ActionBlock || p.Action == policy.ActionFlushBlock {
			add(seal.VerbBlock)
		}
	}
	return verbs
}

// checkRules asks whether there are the rules that the policy names, as far as they are
// known: those of the aggregator's file, and the built-in alarms.
func checkRules(file policy.File, path string) (found []daemon.Finding) {
	if path == "" {
		return nil
	}
	rules := rule.NewFile()
	if err := config.ReadFile(path, &rules); err != nil {
		return []daemon.Finding{daemon.Note("ctfleet rules check FILE", "The rules cannot be read: %v.", err)}
	}
	known := slices.Clone(rule.BuiltIn)
	for i := range rules.Rules {
		known = append(known, rules.Rules[i].Name)
	}
	for _, p := range file.Policies {
		if slices.Contains(known, p.Rule) {
			continue
		}
		remedy := "Nothing will ever come of it: there is no such rule in " + path + "."
		if near := config.Nearest(p.Rule, known); near != "" {
			remedy = fmt.Sprintf("Nothing will ever come of it; did you mean %q?", near)
		}
		found = append(found, daemon.Note(remedy, "The policy names rule %s, which does not exist.", p.Rule))
	}
	return found
}

// needs are what a responder does on the bus. Nobody but firewalls shall hear
// commands, so that these are not tried.
func needs() bus.Needs {
	return bus.Needs{
		Role: "responder", Permits: "ctfleet auth init DIR makes a key for it, DIR/responder/nats.nk.",
		Publish:   []string{events.AuditSubject(events.ActorResponder, events.VerbReload)},
		Subscribe: []string{events.SubjectHealth + ".*"},
		Streams:   []string{bus.StreamLast, bus.StreamAlerts, bus.StreamAudit, bus.BucketStream(bus.BucketAllowlist), bus.BucketStream(bus.BucketApprovals), bus.BucketStream(bus.BucketGuard)},
	}
}

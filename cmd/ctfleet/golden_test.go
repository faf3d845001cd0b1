package main

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestHelp holds what every program and command says of itself.
func TestHelp(t *testing.T) {
	t.Parallel()
	for _, line := range []string{
		"producer", "aggregator", "responder", "ctfleet",
		"ctfleet demo", "ctfleet up", "ctfleet top", "ctfleet observe", "ctfleet replay", "ctfleet firewalls", "ctfleet firewalls list", "ctfleet firewalls inspect", "ctfleet firewalls mute", "ctfleet firewalls unmute", "ctfleet firewalls forget",
		"ctfleet alerts", "ctfleet alerts list", "ctfleet alerts watch", "ctfleet alerts inspect", "ctfleet flush", "ctfleet block", "ctfleet block list", "ctfleet block add", "ctfleet block delete", "ctfleet audit", "ctfleet audit list",
		"ctfleet auth", "ctfleet auth key", "ctfleet allowlist", "ctfleet allowlist list", "ctfleet allowlist add", "ctfleet allowlist delete", "ctfleet allowlist check", "ctfleet allowlist import", "ctfleet approvals", "ctfleet approvals list", "ctfleet approvals approve", "ctfleet approvals deny",
		"ctfleet guard", "ctfleet guard status", "ctfleet guard close", "ctfleet guard open", "ctfleet resync", "ctfleet rules", "ctfleet rules check", "ctfleet rules explain", "ctfleet decode", "ctfleet bootstrap", "ctfleet version",
	} {
		t.Run(line, func(t *testing.T) {
			t.Parallel()
			words := strings.Fields(line)
			r := call{}.run(t, words[0], append(words[1:], "--help")...)
			if r.code != 0 || r.stderr != "" {
				t.Errorf("exit code %d, %s", r.code, r.stderr)
			}
			golden(t, "help-"+strings.Join(words, "-")+".txt", r.stdout)
		})
	}
}

// TestRulesCheck holds what a good rules file is read as.
func TestRulesCheck(t *testing.T) {
	t.Parallel()
	for format, name := range map[string]string{"human": "rules-check.txt", "raw": "rules-check.raw", "json": "rules-check.json"} {
		r := call{}.run(t, "ctfleet", "rules", "check", "testdata/rules.yaml", "-o", format)
		if r.code != 0 || r.stderr != "" {
			t.Errorf("%s: exit code %d, %s", format, r.code, r.stderr)
		}
		golden(t, name, r.stdout)
	}
}

// TestReceipts holds how receipts are shown, and what they make of the exit code.
func TestReceipts(t *testing.T) {
	receipts := []events.Receipt{
		{Firewall: "fw-a", Matched: 1001, Deleted: 1000, Gone: 1, TCPLoose: true, TableBefore: 5120, TableAfter: 4119, DurationMS: 12.25},
		{Firewall: "fw-b", Matched: 10, Refused: []events.Refusal{{Reason: "protected", Count: 8}, {Reason: "busy", Count: 2}}, TableBefore: 77, TableAfter: 77, DurationMS: 0.5},
		{Firewall: "fw-c", Refused: []events.Refusal{{Reason: "not-enabled"}}, Error: "this producer runs without --allow-flush"},
		{Firewall: "fw-d", DryRun: true, Matched: 3, TableBefore: 9, TableAfter: 9, DurationMS: 1},
		{Firewall: "fw-e", Refused: []events.Refusal{}, Error: "no answer: its producer is not connected"},
		{Firewall: "fw-f", Matched: 4, Deleted: 1, Refused: []events.Refusal{{Reason: "busy", Count: 1}}, Error: "delete: \x1b[31mno buffer space available"},
	}
	goldenReceipts(t, "receipts", &order{cmd: events.Command{Verb: events.VerbFlush}, nothing: "nothing was deleted"}, receipts)
	for want, some := range map[int][]events.Receipt{
		0: {receipts[0], receipts[3]},
		1: {receipts[1], receipts[4], receipts[2]},
		3: {receipts[0], receipts[2], receipts[1]},
	} {
		code := 0
		if err := outcome(some); err != nil {
			code = err.(*exitError).code //nolint:errorlint // outcome returns nothing else
		}
		if code != want {
			t.Errorf("exit code %d, want %d, for %+v", code, want, some)
		}
	}
	// Refused in part, and then failed: failed.
	if err := outcome(receipts[5:]); err == nil || err.(*exitError).code != 1 { //nolint:errorlint // outcome returns nothing else
		t.Errorf("partly refused, then failed: %v", err)
	}
}

func goldenReceipts(t *testing.T, name string, o *order, receipts []events.Receipt) {
	t.Helper()
	for format, ending := range map[string]string{"human": ".txt", "raw": ".raw", "json": ".json"} {
		var out bytes.Buffer
		if err := printReceipts(&out, format, o, receipts); err != nil {
			t.Fatal(err)
		}
		golden(t, name+ending, out.String())
	}
}

// TestReceiptsOfBlocks holds how the receipts of blocks and their ends are shown,
// and those that tell what came back.
func TestReceiptsOfBlocks(t *testing.T) {
	const at = 1_790_000_000_000
	until, never, back := int64(at+600_000), int64(0), uint64(3)
	goldenReceipts(t, "receipts-block", &order{cmd: events.Command{Verb: events.VerbBlock}, nothing: "nothing was blocked"}, []events.Receipt{
		{Firewall: "fw-a", Time: at, BlockedUntil: &until, Matched: 1001, Deleted: 1000, Gone: 1, TCPLoose: true, TableBefore: 5120, TableAfter: 4119, DurationMS: 12.25},
		{Firewall: "fw-b", Time: at, BlockedUntil: &never, TableBefore: 77, TableAfter: 77},
		{Firewall: "fw-c", Time: at, Matched: 60, Refused: []events.Refusal{{Reason: "never-answered", Count: 60}}, TableBefore: 77, TableAfter: 77, DurationMS: 0.5},
		{Firewall: "fw-d", Refused: []events.Refusal{{Reason: "not-enabled"}}, Error: "this producer runs without --allow-block"},
		{Firewall: "fw-e", DryRun: true, Matched: 3, TableBefore: 9, TableAfter: 9, DurationMS: 1},
		{Firewall: "fw-f", Time: at, BlockedUntil: &until, Matched: 4, Deleted: 1, TableBefore: 9, TableAfter: 8, Error: "delete: no buffer space available"},
	})
	goldenReceipts(t, "receipts-unblock", &order{cmd: events.Command{Verb: events.VerbUnblock}, nothing: "no block was ended"}, []events.Receipt{
		{Firewall: "fw-a", Time: at, Unblocked: 1},
		{Firewall: "fw-b", Time: at},
		{Firewall: "fw-c", Time: at, Unblocked: 1, BlockedUntil: &until},
		{Firewall: "fw-d", DryRun: true, Unblocked: 1},
		{Firewall: "fw-e", Refused: []events.Refusal{{Reason: "unsigned"}}, Error: "it is not signed"},
	})
	waited := []events.Receipt{
		{Firewall: "fw-a", Matched: 10, Deleted: 10, Residual: &back, TCPLoose: true, TableBefore: 50, TableAfter: 40},
		{Firewall: "fw-b", Matched: 10, Deleted: 4, Refused: []events.Refusal{{Reason: "over-budget", Count: 6}}, TableBefore: 50, TableAfter: 46},
	}
	goldenReceipts(t, "receipts-wait", &order{cmd: events.Command{Verb: events.VerbFlush}, wait: true}, waited)
	if err := outcome(waited); err != nil {
		t.Errorf("as many were deleted as --most says: %v", err)
	}
}

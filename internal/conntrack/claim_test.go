//go:build linux

package conntrack

import (
	"maps"
	"net/netip"
	"testing"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestFlushHoldsBackUntilTheClaimHolds: nothing is deleted of an address that holds
// too little, or too little that was answered.
func TestFlushHoldsBackUntilTheClaimHolds(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c := dial(t, fw.NS)
	const silent, real, forged = 60, 3, MaxHeld + 1000
	answered := udp(client4, real)
	answered.First, answered.Answer = silent, true
	fill := func() {
		t.Helper()
		flood(t, fw, udp(client4, silent))
		flood(t, fw, answered)
	}
	fill()
	flood(t, fw, udp(other4, forged))
	unanswered := bySrc(client4)
	unanswered.Unanswered = true
	both := bySrc(client4, other4) // in one scan of the whole table
	for _, step := range []struct {
		what          string
		match         Match
		claim         Claim
		deleted, held uint64
		reason        string
	}{
		{"too few", bySrc(client4), Claim{Least: silent + real + 1}, 0, silent + real, RefusedFew},
		{"too few without an answer", unanswered, Claim{Least: silent + 1}, 0, silent, RefusedFew},
		{"nobody", bySrc(netip.MustParsePrefix("198.18.0.99/32")), Claim{Least: 50, Answered: true}, 0, 0, ""},
		{"never answered", bySrc(other4), Claim{Least: 50, Answered: true}, 0, forged, RefusedUnanswered},
		{"forged flows beside a few real ones", bySrc(client4), Claim{Least: real + 1, Answered: true}, 0, silent + real, RefusedFew},
		{"unanswered ones", unanswered, Claim{Least: silent}, silent, 0, ""},
		{"the answered ones are too few now", bySrc(client4), Claim{Least: real + 1, Answered: true}, 0, real, RefusedFew},
		{"the answered ones", bySrc(client4), Claim{Least: real, Answered: true}, real, 0, ""},
		{"never answered, unasked", both, Claim{Least: MaxHeld}, forged, 0, ""},
	} {
		dry := flush(t, dial(t, fw.NS), step.match, FlushOptions{Claim: step.claim, DryRun: true})
		res := flush(t, dial(t, fw.NS), step.match, FlushOptions{Claim: step.claim})
		if dry.Deleted != 0 || dry.Matched != res.Matched || !maps.Equal(dry.Refused, res.Refused) {
			t.Errorf("%s: a dry run says %+v, what is done is %+v", step.what, dry, res)
		}
		holds := step.reason == "" && step.what != "nobody" // of whom there is nothing to refuse
		if dry.Holds != holds || res.Holds != holds {
			t.Errorf("%s: the claim holds: a dry run says %t, what is done %t, want %t", step.what, dry.Holds, res.Holds, holds)
		}
		if res.Deleted != step.deleted || res.Refused[step.reason] != step.held || step.reason == "" && len(res.Refused) > 0 {
			t.Errorf("%s: %+v", step.what, res)
		}
	}
	if left := entries(t, c); len(left) != 0 {
		t.Errorf("%d entries are left", len(left))
	}
	// Enough answered ones among them, wherever the scan meets them.
	fill()
	if res := flush(t, dial(t, fw.NS), bySrc(client4), FlushOptions{Claim: Claim{Least: real, Answered: true}}); res.Deleted != silent+real {
		t.Errorf("enough are answered: %+v", res)
	}
	// What has to stay anyway proves nothing, and is refused for its own reason.
	fill()
	keep := func(e *events.Event) string {
		if e.Answered() {
			return "kept"
		}
		return ""
	}
	res := flush(t, dial(t, fw.NS), bySrc(client4), FlushOptions{Claim: Claim{Least: 1, Answered: true}, Keep: keep})
	if res.Deleted != 0 || res.Refused["kept"] != real || res.Refused[RefusedUnanswered] != silent {
		t.Errorf("the answered ones are kept: %+v", res)
	}
	all := func(*events.Event) string { return "kept" }
	res = flush(t, dial(t, fw.NS), bySrc(client4), FlushOptions{Claim: Claim{Least: 1, Answered: true}, Keep: all})
	if len(res.Refused) != 1 || res.Refused["kept"] != silent+real {
		t.Errorf("all are kept: %+v", res)
	}
}

//go:build linux

package conntrack

import (
	"fmt"
	"math/rand/v2"
	"testing"

	timo "github.com/ti-mo/conntrack"
	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestFlushStaysWithinItsBudget draws what matches, what must stay, what ends by
// itself while it is scanned, what the claim needs, and how much may be deleted:
// never more than that, never less when there is more, and the table holds what
// the result says.
func TestFlushStaysWithinItsBudget(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	c, o := dial(t, fw.NS), oracle(t, fw.NS)
	r := rand.New(rand.NewPCG(7, 8))
	const many = 2 * maxBatch
	for round := range 60 {
		n := 1 + r.IntN(many+100)
		// None, one, smaller than a batch and larger, about as much as there is.
		most := []uint64{0, 1, uint64(1 + r.IntN(maxBatch-1)), maxBatch, uint64(maxBatch + r.IntN(many)), uint64(max(n-1+r.IntN(3), 1))}[r.IntN(6)]
		least := []uint64{0, 0, uint64(r.IntN(n + 1)), uint64(n), uint64(n + 1)}[r.IntN(5)]
		kept, ending := r.IntN(3)*r.IntN(30), r.IntN(3)*r.IntN(30) // of 100
		m := bySrc(client4)                                        // selected by the kernel
		if r.IntN(2) == 0 {
			m = bySrc(client4, client6) // by a full dump
		}
		what := fmt.Sprintf("round %d: %d entries, most %d, least %d, %d%% kept, %d%% ending", round, n, most, least, kept, ending)
		flush(t, c, bySrc(client4), FlushOptions{})
		flood(t, fw, udp(client4, n))

		var stay, ended uint64
		keep := func(e *events.Event) string {
			switch x := r.IntN(100); {
			case x < kept:
				stay++
				return "kept"
			case x >= 100-ending:
				if err := o.Delete(timo.NewFlow(unix.IPPROTO_UDP, 0, e.Src(), e.Dst(), e.Orig.SrcPort, e.Orig.DstPort, 0, 0)); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				ended++
			}
			return ""
		}
		opt := FlushOptions{Keep: keep, Claim: Claim{Least: least}, Most: most}
		dry := flush(t, dial(t, fw.NS), m, FlushOptions{DryRun: true, Claim: opt.Claim, Most: most})
		short := uint64(0) // of what the claim needs, where nothing is kept
		if uint64(n) < least {
			short = uint64(n)
		}
		if dry.Matched != uint64(n) || dry.Deleted != 0 || dry.Refused[RefusedFew] != short || dry.Refused[RefusedBudget] != 0 {
			t.Fatalf("%s, dry run: %+v", what, dry)
		}
		res := flush(t, dial(t, fw.NS), m, opt)
		may := uint64(n) - stay // the scan does not know which of them have ended
		want, few := may-ended, uint64(0)
		if most > 0 {
			want = min(want, most)
		}
		if may < least {
			want, few = 0, may
		}
		over := res.Refused[RefusedBudget]
		if res.Matched != uint64(n) || res.Deleted != want || res.Refused["kept"] != stay || res.Refused[RefusedFew] != few {
			t.Fatalf("%s: %+v, want %d deleted, %d kept, %d refused by the claim", what, res, want, stay, few)
		}
		if res.Gone > ended || over > 0 && (most == 0 || res.Deleted != most) {
			t.Fatalf("%s, %d ended: %+v", what, ended, res)
		}
		if left := len(entries(t, c)); uint64(left) != uint64(n)-ended-want {
			t.Fatalf("%s, %d ended: %d entries are left after %+v", what, ended, left, res)
		}
	}
}

// TestFlushBudgetAndClaim: what is held back for a claim is more than the budget
// allows, and more than fits a batch.
func TestFlushBudgetAndClaim(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	const n = MaxHeld + 200
	answered := udp(client4, 50)
	answered.First, answered.Answer = n, true
	flood(t, fw, udp(client4, n))
	flood(t, fw, answered)
	left := uint64(n + 50)
	f := func(what string, claim Claim, most, deleted uint64, reason string) {
		t.Helper()
		res := flush(t, dial(t, fw.NS), bySrc(client4), FlushOptions{Claim: claim, Most: most})
		if res.Matched != left || res.Deleted != deleted || res.Refused[reason] != left-deleted {
			t.Errorf("%s: %+v, want %d deleted of %d, the others refused as %s", what, res, deleted, left, reason)
		}
		left -= res.Deleted
	}
	f("the budget does not lower what must be there", Claim{Least: MaxHeld, Answered: true}, 10, 0, RefusedFew)
	f("more must be there than may go", Claim{Least: MaxHeld}, 10, 10, RefusedBudget)
	f("one", Claim{Least: 1}, 1, 1, RefusedBudget)
	f("several batches of what was held back", Claim{Least: MaxHeld}, 3*maxBatch+1, 3*maxBatch+1, RefusedBudget)
	f("no claim", Claim{}, maxBatch, maxBatch, RefusedBudget)
	f("no limit", Claim{}, 0, left, RefusedBudget)
	f("nothing to delete", Claim{}, 1, 0, RefusedBudget)
}

// TestFlushBudgetIsPaced: a part that the listener's buffer has no room for is
// smaller than what is left of the budget.
func TestFlushBudgetIsPaced(t *testing.T) {
	fw := firewall(t, lab.FirewallSpec{})
	flood(t, fw, udp(client4, 600))
	room := func() (used, limit int, err error) { return 0, 2 * 7 * eventCost, nil }
	res := flush(t, dial(t, fw.NS), bySrc(client4), FlushOptions{Most: 300, Pressure: room})
	if res.Deleted != 300 || res.Refused[RefusedBudget] != 300 {
		t.Errorf("%+v, want 300 deleted and as many over the budget", res)
	}
}

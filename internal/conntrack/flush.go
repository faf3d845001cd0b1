package conntrack

import (
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Reasons why entries that matched stay.
const (
	// RefusedOffloaded: the kernel does not let go of them (EBUSY). They are
	// offloaded to a flowtable, and the kernel lacks commit 9b7c68b3911a.
	RefusedOffloaded = "offloaded"
	// RefusedFew and RefusedUnanswered: the [Claim] does not hold.
	RefusedFew        = "too-few-entries"
	RefusedUnanswered = "never-answered"
	// RefusedBudget: as many were deleted as [FlushOptions].Most allows.
	RefusedBudget = "over-budget"
)

// Claim is what must hold in the table before the first entry is deleted. Who
// asks for a flush has heard of the flows from others, who may have made them up.
type Claim struct {
	Least uint64 // so many entries match and may go; at most MaxHeld
	// Answered: only those count that have had an answer (see
	// [events.Event.Answered]), one at least. The source of flows without any may
	// be forged.
	Answered bool
}

// MaxHeld is how many entries are held back at most. A claim that does not hold
// by then does not hold: the order of the table is random.
const MaxHeld = 4096

// FlushOptions qualify a flush.
type FlushOptions struct {
	DryRun bool // match, ask Keep and test the claim, but delete nothing

	// Keep is asked about every entry that matches and returns why it must
	// stay, or "" when it may go. Nil lets all go.
	Keep func(*events.Event) (reason string)

	// Claim must hold, or all entries stay.
	Claim Claim

	// Most is how many entries are deleted at most, those that come first in the
	// table, whose order is random; 0 means no limit. What was gone or has to
	// stay uses up nothing: an entry is over the budget only once Most others
	// were deleted. A claim may need more entries than Most: it looks at all
	// that may go. A dry run refuses nothing for it.
	Most uint64

	// Pressure is the [Reader.Pressure] of whoever listens to this table: the
	// deletes are paced so that their own DESTROY events keep its buffer under
	// half full. Nil means no pacing.
	Pressure func() (used, limit int, err error)
}

// FlushResult says what became of the entries that matched. When nothing failed
// and it was no dry run, Matched is the sum of the others.
type FlushResult struct {
	Matched  uint64
	Deleted  uint64
	Gone     uint64            // ended by themselves before their turn came
	Refused  map[string]uint64 // by reason: Keep's, or one of ours
	Holds    bool              // the claim: also where nothing matched, and nothing is refused therefore
	Duration time.Duration     // of scan and deletes
}

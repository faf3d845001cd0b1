package aggregator

import (
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

func TestPacer(t *testing.T) {
	p := pacer{}
	is := func(what string, fleet int, behind int, looks int, want uint32) {
		t.Helper()
		var pace *events.Pace
		for range looks {
			pace = p.next(fleet, time.Duration(behind)*time.Millisecond)
		}
		if pace.LingerMS != want || pace.Fleet != uint32(fleet) || pace.Validate() != nil {
			t.Errorf("%s: %+v, want %d ms", what, pace, want)
		}
	}
	is("three firewalls", 3, 0, 5, 0)
	is("a thousand", 1000, 0, 5, 100)
	is("a thousand, a moment of lag", 1000, 300, 1, 125)
	is("a thousand, a little behind", 1000, 100, 10, 125)
	is("a thousand, abreast again", 1000, 0, 1, 118)
	is("a thousand, for long", 1000, 0, 20, 100)
	is("a thousand, always behind", 1000, 300, 100, events.MaxLingerMS)
	is("forty thousand", 40_000, 0, 300, events.MaxLingerMS)
	is("three firewalls, and a bus that cannot even do that", 3, 300, 20, 86)
	is("nobody", 0, 0, 300, 0)
}

// TestPaceOfTwo: the one that needs the longer linger speaks, and of two that need the
// same one; who hears nothing for a while speaks for himself.
func TestPaceOfTwo(t *testing.T) {
	now := time.Unix(1000, 0)
	p := pacer{self: "m"}
	is := func(what string, need uint32, after time.Duration, quiet bool) {
		t.Helper()
		if got := p.quiet(need, now.Add(after)); got != quiet {
			t.Errorf("%s: quiet is %t, want %t", what, got, quiet)
		}
	}
	is("nobody else", 100, 0, false)
	p.hear(&events.Pace{LingerMS: 500, By: "m"}, now)
	is("our own word", 100, 0, false)
	p.hear(&events.Pace{LingerMS: 120, By: "x"}, now)
	is("another needs more", 100, 0, true)
	is("another needs less", 130, 0, false)
	is("both need the same, we speak", 120, 0, false)
	p.hear(&events.Pace{LingerMS: 120, By: "a"}, now)
	is("both need the same, the other speaks", 120, 0, true)
	p.hear(&events.Pace{LingerMS: 80, By: "z"}, now)
	is("a third needs less", 100, 0, true)
	p.hear(&events.Pace{LingerMS: 90, By: "a"}, now)
	is("it needs less now", 100, 0, false)
	p.hear(&events.Pace{LingerMS: 120, By: "a"}, now)
	is("a while without a word", 100, silence, true)
	is("it is gone", 100, silence+1, false)
}

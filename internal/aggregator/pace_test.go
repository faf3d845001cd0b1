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

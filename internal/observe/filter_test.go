package observe

import (
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestFilterByNAT: an address counts on any side.
func TestFilterByNAT(t *testing.T) {
	addr := func(last uint64) events.Addr { return events.Addr{Lo: 0xc0000200 + last} }
	e := &events.Event{Type: events.New, Proto: 6, NAT: true, Orig: events.Tuple{Src: addr(1), Dst: addr(2), SrcPort: 1024, DstPort: 8080}, Reply: events.Tuple{Src: addr(3), Dst: addr(4), SrcPort: 80, DstPort: 1024}}
	for ip, want := range map[string]bool{"192.0.2.1": true, "192.0.2.2": true, "192.0.2.3": true, "192.0.2.4": true, "192.0.2.5": false, "192.0.2.4/31": true} {
		f := Filter{IP: []string{ip}}
		if err := f.Compile(); err != nil || f.Match(e) != want {
			t.Errorf("%s: %v, %v", ip, f.Match(e), err)
		}
	}
}

// TestCompile: what is wrong is named as it was given.
func TestCompile(t *testing.T) {
	f := func(filter Filter, want string) {
		t.Helper()
		if err := filter.Compile(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%+v: %v, want %s", filter, err, want)
		}
	}
	f(Filter{IP: []string{"x"}}, "ip: ")
	f(Filter{FromIP: []string{"192.0.2.0/33"}}, "from-ip: ")
	f(Filter{ToIP: []string{"192.0.2.1", ""}}, "to-ip: ")
	f(Filter{Protocol: []string{"tpc"}}, "protocol: ")
	f(Filter{Type: []string{"update"}}, `type: "update" is none of `)
	f(Filter{Not: true}, "not: ")
}

//go:build linux

package lab_test

import (
	"net/netip"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ctfleet/ctfleet/internal/host"
	"github.com/ctfleet/ctfleet/internal/lab"
	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/internal/traffic"
)

// TestHere: a namespace becomes a firewall, through which each flow of a flood goes once, and
// the answers come back.
func TestHere(t *testing.T) {
	labtest.Require(t)
	const flows = 500
	ns, err := host.NewNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var fw *lab.Firewall
	var undo func()
	// In a container the whole process is there; here only the thread of Do.
	err = ns.Do(func() (err error) {
		if err = os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil {
			return err
		}
		fw, undo, err = lab.Here(t.Context(), "fw-a")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	fw.NS, fw.Client, fw.Server = ns, ns, ns
	report, err := traffic.Flood{Protocol: unix.IPPROTO_UDP, Sources: netip.MustParsePrefix("198.18.0.9/32"), Destinations: lab.ServerPrefix4, DestinationCount: 10, Port: 53, Count: flows, Answer: true}.Run(t.Context(), fw)
	if err != nil || report.Sent != flows || report.Answered != flows {
		t.Fatalf("%+v, %v: want %d sent and answered", report, err, flows)
	}
	entries := dump(t, fw)
	answered := 0
	for _, f := range entries {
		if f.Status.SeenReply() {
			answered++
		}
	}
	if len(entries) != flows || answered != flows {
		t.Errorf("%d entries, %d of them answered, want %d", len(entries), answered, flows)
	}
	if err := ns.Do(func() error { undo(); return nil }); err != nil {
		t.Fatal(err)
	}
}

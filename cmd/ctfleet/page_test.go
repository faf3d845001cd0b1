//go:build linux

package main

import (
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/web/webtest"
)

// TestPage: the page shows a real fleet, an attack on it, and its flush.
func TestPage(t *testing.T) {
	t.Parallel()
	requireLab(t)
	p := call{}.start(t, "ctfleet", "demo", "--duration", "60s") // it is ended when the test is
	url := p.says(&p.stdout, `browser: +(http://[0-9.:]+)/`)
	tab := webtest.Open(t, strings.TrimPrefix(url, "http://"))
	tab.Size(1280, 900)
	tab.Open("")
	for _, name := range []string{"fw-a", "fw-b", "fw-c"} {
		tab.Says("#tiles", name)
	}
	tab.Says("#tiles", "new/s")
	tab.Says("#by-src", "198.18.1.") // ordinary traffic
	tab.Says("#by-src", "198.18.66.2")
	tab.Says("#alert-rows", "198.18.66.2")
	tab.Says("#deed-rows", "fw-a: 1,001 of 1,001 entries of 198.18.66.2 deleted")
	tab.Says("#deed-rows", "fw-b: 1,001 of 1,001 entries of 198.18.66.2 deleted")
	tab.Says("#deed-rows", "residual")
	tab.Picture("demo")
	tab.Open("#/address/198.18.66.2")
	tab.Says("#story-body", "fw-a 1,001 · fw-b 1,001")
	tab.Says("#story-body", "udp/53")
	tab.Says("#story-body", "deleted in")
	tab.Picture("attacker")
	tab.Open("#/firewall/fw-a")
	tab.Says("#story-body", "may flush")
	tab.Picture("firewall")
}

//go:build linux

package main

import (
	"fmt"
	"strings"
	"testing"
)

// TestAlertmanager: a real one shows what fires, and the heartbeat, and no longer what
// is resolved.
func TestAlertmanager(t *testing.T) {
	t.Parallel()
	am := debian(t, "prometheus-alertmanager", "prometheus-alertmanager")
	addr := freePort(t)
	url := "http://" + addr
	foreign(t, am, "--config.file", file(t, "alertmanager.yml", "route: {receiver: nobody}\nreceivers: [{name: nobody}]\n"),
		"--storage.path", t.TempDir(), "--web.listen-address", addr, "--cluster.listen-address=")
	until(t, "Alertmanager to listen", func() bool { return listens(addr) })
	f := secureFleet(t, "fw-a")
	f.bootstrap()
	f.aggregator("--rules", file(t, "rules.yaml", "rules:\n  - {name: flood, track: by_src, metric: new, count: 60, seconds: 3, recover: 0s, severity: critical}\n"))
	f.producer("fw-a")
	f.responder("mode: observe\n", "--alertmanager", url)
	active := func() string {
		code, body := get(t, url+"/api/v2/alerts?active=true")
		if code != 200 {
			return fmt.Sprint(code)
		}
		return body
	}
	until(t, "the heartbeat", func() bool { return strings.Contains(active(), `"alertname":"ctfleet-heartbeat"`) })
	f.flood("fw-a", attacker, 0, 60)
	until(t, "the alert", func() bool {
		a := active()
		return strings.Contains(a, `"alertname":"flood"`) && strings.Contains(a, `"key":"`+attacker+`"`) && strings.Contains(a, "opened 60 flows within 3 s in the fleet")
	})
	until(t, "its end", func() bool {
		a := active()
		return !strings.Contains(a, `"alertname":"flood"`) && strings.Contains(a, "heartbeat")
	})
}

package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus/embedded"
)

// TestPast reads times as people write them.
func TestPast(t *testing.T) {
	t.Parallel()
	zone := time.FixedZone("here", 3600)
	now := time.Date(2026, 11, 26, 9, 30, 15, 0, zone)
	f := func(in, want string) {
		t.Helper()
		got, err := past(in, now)
		text := got.Format(time.RFC3339)
		if err != nil {
			text = err.Error()
		}
		if !strings.HasPrefix(text, want) {
			t.Errorf("%q: %s, want %s", in, text, want)
		}
	}
	f("2026-11-25 14:05", "2026-11-25T14:05:00+01:00")
	f("2026-11-25 14:05:30", "2026-11-25T14:05:30+01:00")
	f("2026-11-25T14:05", "2026-11-25T14:05:00+01:00")
	f("2026-11-25T14:05:00Z", "2026-11-25T14:05:00Z")
	f("14:05", "2026-11-25T14:05:00+01:00") // that is still to come today
	f("9:05", "2026-11-26T09:05:00+01:00")
	f("-1h", "2026-11-26T08:30:15+01:00")
	f("90m", "2026-11-26T08:00:15+01:00")
	f("1h30m ago", "2026-11-26T08:00:15+01:00")
	f("yesterday", `"yesterday" is no time: '2026-11-25 14:05'`)
	f("2026-13-01 00:00", `"2026-13-01 00:00" is no time`)
}

// TestHistoryFlags asks an aggregator with a history, as programs, for what it does
// not have, and gives it files that it cannot use.
func TestHistoryFlags(t *testing.T) {
	t.Parallel()
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	c := call{env: []string{"NATS_URL=" + server.URL()}}
	history := filepath.Join(t.TempDir(), "history.db")
	f := func(want int, text string, name string, args ...string) {
		t.Helper()
		if r := c.run(t, name, args...); r.code != want || !strings.Contains(r.stdout+r.stderr, text) {
			t.Errorf("%s %q: %+v, want %d, %q", name, args, r, want, text)
		}
	}
	f(0, "history in "+history+", 168h0m0s and 1073741824 bytes at most\n", "aggregator", "--history", history, "--check")
	f(1, "--history-age: 1s is less than 1m", "aggregator", "--history", history, "--history-age", "1s", "--check")
	f(2, "--history-bytes: 1 is less than 1 MiB", "aggregator", "--history", history, "--history-bytes", "1")
	f(2, "its schema is version 99", "aggregator", "--history", newer(t))
	f(2, "its schema is version 99", "ctfleet", "up", "--history", newer(t))
	f(2, `--at: "soon" is no time`, "ctfleet", "top", "--at", "soon")

	p := c.start(t, "aggregator", "--history", history, "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
	url := p.says(&p.stderr, `msg=serving url=(http://[0-9.:]+)/`)
	p.until("it to be ready", func() bool { code, _ := get(t, url+"/readyz"); return code == 200 })
	f(2, "the history has nothing of 2026-11-25 14:05 UTC: it is empty", "ctfleet", "top", "--at", "2026-11-25T14:05:00Z")
	f(2, "it is empty", "ctfleet", "top", "--at", "-1h", "-o", "json")
	f(2, "which keeps minutes: 60s", "ctfleet", "top", "--at", "-1h", "--window", "10s")
	if code, body := get(t, url+"/api/v1/top?at=2026-11-25T14:05:00Z"); code != 400 || !strings.Contains(body, "it is empty") {
		t.Errorf("%d %s", code, body)
	}
	if code, body := get(t, url+"/metrics"); code != 200 || !strings.Contains(body, "ctfleet_history_bytes") {
		t.Errorf("%d %s", code, body)
	}
}

// newer is the file of a version that is still to come: SQLite's header, with the
// application's id and its version at their places.
func newer(t *testing.T) string {
	t.Helper()
	page := make([]byte, 4096)
	copy(page, "SQLite format 3\x00\x10\x00\x01\x01\x00\x40\x20\x20\x00\x00\x00\x01\x00\x00\x00\x01")
	page[47], page[59] = 4, 1 // schema format 4, UTF-8
	copy(page[60:], []byte{0, 0, 0, 99})
	copy(page[68:], "ctfh")
	page[95] = 1                                // valid for change counter 1
	page[100], page[105], page[106] = 13, 16, 0 // an empty leaf of the schema's table
	return file(t, "newer.db", string(page))
}

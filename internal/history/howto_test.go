package history

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/lab/labtest"
	"github.com/ctfleet/ctfleet/pkg/events"
)

var sqlBlock = regexp.MustCompile("(?s)```sql\n(.*?)```")

// TestHowto runs the SQL of docs/howto/history.md as it stands there, through the
// driver and, where it is installed, the sqlite3 program: each block finds something.
func TestHowto(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/howto/history.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks := sqlBlock.FindAllStringSubmatch(string(page), -1)
	if len(blocks) < 7 {
		t.Fatalf("%d blocks of SQL", len(blocks))
	}
	name := file(t)
	s, _ := start(t, name, nil)
	now := time.Now()
	at := time.Date(now.Year(), now.Month(), now.Day()-1, 14, 5, 0, 0, time.Local)
	m := quarter()
	m.At = at.Unix()
	m.ByDst[0].Rows = append(m.ByDst[0].Rows, Row{Address: addr("2001:db8:ffff::1"), New: 4})
	m.Fill = append(m.Fill, Fill{Place: Place{"default", "fw1"}, Entries: 12, Peak: 20, Limit: 100, Percent: 12, State: "fresh"})
	s.Put(m)
	receipt := &events.Receipt{ID: "c1", Firewall: "fw1", Verb: "flush", Addresses: []string{"198.18.0.7"}, Deleted: 9, Refused: []events.Refusal{}}
	if err := s.Record(t.Context(), []Record{
		{Stream: "CT_ALERTS", Position: Position{1, at}, Alert: &events.Alert{ID: "a1", Rule: "new-flows", State: events.Firing, Scope: "fleet", Realm: "default", Key: "198.18.0.7", Started: at.UnixMilli(), Updated: at.UnixMilli()}},
		{Stream: "CT_AUDIT", Position: Position{1, at}, Actor: "fw1", Verb: "flush", Receipt: receipt},
	}); err != nil {
		t.Fatal(err)
	}
	until(t, "the minute", func() bool { return one(t, s, "SELECT count(*) FROM minutes") == "1" })
	program, lacking := exec.LookPath("sqlite3")
	for _, block := range blocks {
		text := block[1]
		rows := query(t, s, text)
		if len(rows) == 0 {
			t.Errorf("nothing is found by\n%s", text)
		}
		var words []string
		for _, row := range rows {
			words = append(words, strings.ReplaceAll(strings.Join(row, "|"), "NULL", ""))
		}
		if lacking != nil {
			continue
		}
		out, err := exec.Command(program, "-readonly", name, text).CombinedOutput()
		if err != nil || strings.TrimSuffix(string(out), "\n") != strings.Join(words, "\n") {
			t.Errorf("sqlite3: %v\n%s\nthe driver:\n%s\nof\n%s", err, out, strings.Join(words, "\n"), text)
		}
	}
	// What the page says of those who are above 8000::.
	if got := one(t, s, "SELECT 0xfd00000000000000 & ~(1 << 63)"); got != "9007199254740992000" {
		t.Error(got)
	}
	if _, hi, _ := columns(addr("fd00::1")); hi != 9007199254740992000 {
		t.Error(hi)
	}
	if lacking != nil {
		labtest.Lacks(t, "sqlite3 to ask what was asked through the driver: apt-get install sqlite3")
	}
}

package tui

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"

	"github.com/ctfleet/ctfleet/pkg/events"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with a file under testdata, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (run the test with -update and look at the diff):\n%s", path, got)
	}
}

// noon is when the screens of these tests are drawn.
var noon = time.Date(2026, 11, 27, 12, 0, 0, 0, time.Local)

// person sits before a screen: answers come, keys are pressed.
type person struct {
	t *testing.T
	*model
}

func sit(t *testing.T, q events.TopQuery, columns, lines int) *person {
	t.Helper()
	p := &person{t, newModel(t.Context(), Config{Query: q, Every: time.Second}, noon)}
	p.Init()
	p.send(tea.WindowSizeMsg{Width: columns, Height: lines})
	return p
}

func (p *person) send(msg tea.Msg) tea.Cmd {
	_, cmd := p.Update(msg)
	return cmd
}

// press presses keys, and reports whether the last one led to a question.
func (p *person) press(names ...string) (asked bool) {
	p.t.Helper()
	for _, name := range names {
		before := p.round
		p.send(key(name))
		asked = p.round > before
	}
	return asked
}

// special are the keys that are no text.
var special = map[string]tea.Key{
	"enter": {Code: tea.KeyEnter}, "esc": {Code: tea.KeyEscape}, "tab": {Code: tea.KeyTab}, "backspace": {Code: tea.KeyBackspace},
	"up": {Code: tea.KeyUp}, "down": {Code: tea.KeyDown}, "pgup": {Code: tea.KeyPgUp}, "pgdown": {Code: tea.KeyPgDown},
	"home": {Code: tea.KeyHome}, "end": {Code: tea.KeyEnd}, "space": {Code: tea.KeySpace, Text: " "},
	"ctrl+c": {Code: 'c', Mod: tea.ModCtrl}, "ctrl+u": {Code: 'u', Mod: tea.ModCtrl},
}

func key(name string) tea.KeyPressMsg {
	if k, ok := special[name]; ok {
		return tea.KeyPressMsg(k)
	}
	return tea.KeyPressMsg{Code: rune(name[0]), Text: name}
}

// write types a text.
func (p *person) write(text string) {
	for _, r := range text {
		p.press(string(r))
	}
}

// gets is an answer to what was asked last, after so long.
func (p *person) gets(after time.Duration, a answer) {
	a.round, a.at, a.query, a.head = p.round, noon.Add(after), p.query, a.head || a.err == nil
	p.send(&a)
}

// sees is the screen without its colours. Every line of it fits.
func (p *person) sees() string {
	p.t.Helper()
	text := ansi.Strip(p.screen())
	lines := strings.Split(text, "\n")
	if len(lines) != p.height {
		p.t.Errorf("%d lines on a screen of %d", len(lines), p.height)
	}
	for i, l := range lines {
		if w := ansi.StringWidth(l); w > p.width {
			p.t.Errorf("line %d has %d columns, the screen %d: %q", i, w, p.width, l)
		}
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n") + "\n"
}

func (p *person) mustSee(words ...string) {
	p.t.Helper()
	screen := p.sees()
	for _, w := range words {
		if !strings.Contains(screen, w) {
			p.t.Errorf("%q is not to be seen:\n%s", w, screen)
		}
	}
}

func (p *person) mustNotSee(words ...string) {
	p.t.Helper()
	screen := p.sees()
	for _, w := range words {
		if strings.Contains(screen, w) {
			p.t.Errorf("%q is to be seen:\n%s", w, screen)
		}
	}
}

func firewall(name, state string, percent, rate float64) events.FirewallStatus {
	f := events.FirewallStatus{State: state, EventsPerS: rate, ActiveKnown: true}
	f.Firewall, f.Realm = name, events.RealmDefault
	f.Table = events.TableHealth{Count: uint64(percent * 2621.44), Limit: 262144, Percent: percent}
	return f
}

func row(key string, parts ...uint64) events.TopRow {
	r := events.TopRow{Key: key, Firewalls: events.ByName[uint64]{}}
	for i, n := range parts {
		if n > 0 {
			r.Firewalls[fmt.Sprintf("fw-%c", 'a'+i)] = n
		}
		r.Value += n
	}
	return r
}

func topOf(rows ...events.TopRow) *events.TopReply {
	return &events.TopReply{By: events.BySrc, Metric: events.MetricNew, WindowS: 10, Scope: "fleet", Windows: []int{10, 30, 60}, Rows: rows}
}

// calm is a fleet in which nothing is wrong.
func calm() answer {
	return answer{
		fleet: events.FirewallsReply{Firewalls: []events.FirewallStatus{firewall("fw-a", events.StateFresh, 31.5, 1204), firewall("fw-b", events.StateFresh, 12, 960)}},
		top:   topOf(row("198.18.1.1", 120, 80), row("198.18.1.2", 90, 70), row("198.18.1.10", 0, 40)),
	}
}

// storm is one in which much is.
func storm() answer {
	a := calm()
	rows := []events.TopRow{row("198.18.66.1", 1001, 1001), row("2001:db8:1234:5678:9abc:def0:1234:5678", 300, 0, 0, 2)}
	for i := range 40 {
		rows = append(rows, row(fmt.Sprintf("198.18.1.%d", i), uint64(100-2*i), uint64(40-i)))
	}
	a.top = topOf(rows...)
	a.top.Stale, a.top.Partial = []string{"fw-c", "fw-d"}, true
	full, replay := firewall("fw-b", events.StateFresh, 92.3, 14071), firewall("fw-replay", events.StateFresh, 0, 3)
	full.Lost, full.Missing = 312, 12
	replay.Source = "replay"
	a.fleet.Firewalls = []events.FirewallStatus{
		firewall("fw-a", events.StateFresh, 76, 13022), full, firewall("fw-c", events.StateStale, 55, 0), firewall("fw-d", events.StateSilent, 99, 0),
		firewall("fw-e", events.StateStopped, 1, 0), replay,
	}
	a.alerts.Alerts = []events.Alert{{
		ID: "a1", Rule: "new-flows-by-source", State: events.Firing, Severity: "critical", Scope: "fleet", Realm: events.RealmDefault, Key: "198.18.66.1", Track: "by_src",
		Lossy: true, Text: "198.18.66.1 opened 2002 flows within 10 s in the fleet, threshold 600, through 2 firewalls",
	}, {
		ID: "a2", Rule: "table-full", State: events.Firing, Severity: "warning", Scope: "fw-b", Realm: events.RealmDefault, Key: "table", Track: "table",
		Text: "the table of fw-b is 92.3 % full, threshold 90 %",
	}}
	return a
}

// story is all that is known of an address.
func story() *events.AddressReply {
	share := 0.4
	at := noon.Add(-2 * time.Minute).UnixMilli()
	empty := []events.AddressCount{{Metric: "new", WindowS: 10, Value: new(uint64)}, {Metric: "active"}, {Metric: "unreplied", WindowS: 10}}
	alert := storm().alerts.Alerts[0]
	alert.Started = at
	past := alert
	past.State, past.Started = events.Resolved, at-1_200_000
	return &events.AddressReply{
		Address: "198.18.66.1", Realm: "default", Allowlisted: &events.AddressEntry{Prefix: "198.18.0.0/15", Why: "alice: the lab"},
		Src: events.AddressSide{
			Counts: []events.AddressCount{
				{Metric: "new", WindowS: 10, Value: new(uint64(2002)), Firewalls: map[string]uint64{"fw-a": 1001, "fw-b": 1001}},
				{Metric: "new", WindowS: 60, Value: new(uint64(2002)), Firewalls: map[string]uint64{"fw-a": 1001, "fw-b": 1001}, Partial: true},
				{Metric: "active", Value: new(uint64(7)), Firewalls: map[string]uint64{"fw-b": 7}},
				{Metric: "unreplied", WindowS: 10, Value: new(uint64(12)), Share: &share, Firewalls: map[string]uint64{"fw-a": 12}},
			},
			Peers: []events.Share{{Value: "203.0.113.1", Count: 60}, {Value: "203.0.113.2", Count: 40}}, Ports: []events.Share{{Value: "udp/53", Count: 100}}, SampleSize: 100,
		},
		Dst:    events.AddressSide{Counts: empty},
		Alerts: []events.Alert{alert}, Past: []events.Alert{past},
		Decisions: []events.Decision{{Time: at + 5, Rule: "new-flows-by-source", Key: "198.18.66.1", Action: "flush", Outcome: events.OutcomeCommanded, Mode: "enforce", Reason: "over its threshold", Firewalls: []string{"fw-a", "fw-b"}}},
		Receipts:  []events.Receipt{{Time: at + 9, Firewall: "fw-a", Verb: events.VerbFlush, Actor: events.ActorResponder, Who: "responder", Addresses: []string{"198.18.66.1"}, Matched: 300, Deleted: 299, Refused: []events.Refusal{{Reason: "protected", Count: 1}}}},
		Acts:      []events.Act{{Time: at - 9, Verb: events.VerbAllowlist, What: "added 198.18.0.0/15", Who: "alice", Reason: "the lab"}},
		Unknown:   []string{"fw-c"}, Lossy: true, More: true,
	}
}

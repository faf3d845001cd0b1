package tui

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// TestScreens holds whole screens, from the smallest one on.
func TestScreens(t *testing.T) {
	f := func(name string, columns, lines int, a answer, names ...string) {
		t.Helper()
		p := sit(t, events.TopQuery{By: events.BySrc, Metric: events.MetricNew}, columns, lines)
		if a.top != nil {
			first := calm()
			first.fleet.Firewalls = append(first.fleet.Firewalls, firewall("fw-replay", events.StateFresh, 0, 0))
			p.gets(0, first)
			p.press("p", "p") // asks again
			p.gets(time.Second, a)
		}
		p.press(names...)
		golden(t, name, p.sees())
	}
	f("asking", 80, 12, answer{})
	f("calm", 100, 24, calm())
	f("storm", 120, 40, storm(), "down")
	f("storm-small", 80, 24, storm(), "end")
	f("storm-tiny", 40, 10, storm(), "down", "down")
	f("help", 80, 24, calm(), "?")
	f("help-tiny", 40, 10, calm(), "?", "down", "down")
	f("none", 80, 12, answer{top: topOf()})

	p := sit(t, events.TopQuery{By: events.BySrc}, 60, 16)
	p.gets(0, storm())
	golden(t, "colours", strings.ReplaceAll(p.screen(), "\x1b", "ESC")+"\n")
	p.light = true
	if dark, light := sit(t, p.query, 60, 16), p.screen(); light == dark.screen() || !strings.Contains(light, "38;5;124") {
		t.Errorf("on a light background: %q", light)
	}
}

// TestQuestions presses the keys that ask for something else.
func TestQuestions(t *testing.T) {
	p := sit(t, events.TopQuery{By: events.BySrc, Metric: events.MetricNew, Realm: "lis1"}, 100, 24)
	a := calm()
	for i := range a.fleet.Firewalls {
		a.fleet.Firewalls[i].Realm = "lis1"
	}
	a.fleet.Firewalls = append(a.fleet.Firewalls, firewall("fw-x", events.StateFresh, 1, 1)) // of another realm
	p.gets(0, a)
	f := func(name string, want events.TopQuery) {
		t.Helper()
		want.V, want.Realm = events.MessageVersion, "lis1"
		if !p.press(name) || p.query != want {
			t.Errorf("%s: asks for %+v, want %+v", name, p.query, want)
		}
		p.mustSee("new flows by source within 10 s, fleet") // the rows are still called what they are
		if want != p.shown {
			p.mustSee(", asking…")
		}
	}
	f("d", events.TopQuery{By: "dst", Metric: "new"})
	f("tab", events.TopQuery{By: "src", Metric: "new"})
	f("tab", events.TopQuery{By: "dst", Metric: "new"})
	f("w", events.TopQuery{By: "dst", Metric: "new", WindowS: 30})
	f("w", events.TopQuery{By: "dst", Metric: "new", WindowS: 60})
	f("w", events.TopQuery{By: "dst", Metric: "new", WindowS: 10})
	f("W", events.TopQuery{By: "dst", Metric: "new", WindowS: 60})
	f("m", events.TopQuery{By: "dst", Metric: "active", WindowS: 60})
	if p.press("w") {
		t.Error("another window of active is asked for")
	}
	p.mustSee("it has no window")
	f("m", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60})
	f("h", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60, Allowlisted: "hide"})
	f("h", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60})
	f("f", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60, Firewall: "fw-a"})
	f("f", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60, Firewall: "fw-b"})
	f("f", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60})
	f("F", events.TopQuery{By: "dst", Metric: "unreplied", WindowS: 60, Firewall: "fw-b"})
	f("m", events.TopQuery{By: "dst", Metric: "new", WindowS: 60, Firewall: "fw-b"})

	// A round of questions asks them all, and brings their answers.
	asked := make(chan string, 3)
	p.cfg.Ask = func(_ context.Context, kind string, _, answer events.Message) error {
		asked <- kind
		if r, ok := answer.(*events.TopReply); ok {
			*r = *topOf(row("198.18.7.7", 5))
		}
		return nil
	}
	if a, ok := p.send(key("m"))().(*answer); !ok || a.err != nil || a.round != p.round || a.query != p.query || a.top.Rows[0].Key != "198.18.7.7" || len(asked) != 3 {
		t.Errorf("a round brings %+v, after %d questions", a, len(asked))
	}
	p.cfg.Ask = func(ctx context.Context, kind string, _, _ events.Message) error {
		if kind == events.QueryAlerts {
			return errors.New("it has no time")
		}
		<-ctx.Done() // what is stuck ends with the round
		return ctx.Err()
	}
	failing := p.send(key("m"))
	p.giveUp()
	if a, ok := failing().(*answer); !ok || a.err == nil || a.err.Error() != "it has no time" && !errors.Is(a.err, context.Canceled) {
		t.Errorf("a round that fails brings %+v", a)
	}
	stuck := p.send(key("m"))
	p.giveUp() // as patience would
	if a, ok := stuck().(*answer); !ok || a.err == nil {
		t.Errorf("a round that is given up brings %+v", a)
	}

	// An answer to what is no longer asked changes nothing.
	stray := calm()
	stray.round, stray.at, stray.top = p.round-1, noon, topOf(row("203.0.113.66", 1))
	p.send(&stray)
	p.mustNotSee("203.0.113.66")
	if !p.waiting {
		t.Error("it no longer waits for its answer")
	}
}

// TestFilter types prefixes, good and bad.
func TestFilter(t *testing.T) {
	p := sit(t, events.TopQuery{By: events.BySrc}, 100, 24)
	p.gets(0, calm())
	p.press("/")
	p.write("198.18.1/33q")
	if p.press("enter") {
		t.Error("what is no prefix is asked for")
	}
	p.mustSee("within: 198.18.1/33q", "is neither an address nor a prefix")
	p.press("ctrl+u")
	p.write("198.18.1.0/25")
	p.press("backspace")
	p.write("4")
	if !p.press("enter") || p.query.Prefix != "198.18.1.0/24" {
		t.Errorf("asks for %q", p.query.Prefix)
	}
	p.gets(time.Second, calm())
	p.mustSee("fleet, of 198.18.1.0/24")
	p.press("/")
	p.send(tea.PasteMsg{Content: "\x1b[2J"})
	p.mustSee("198.18.1.0/24\uFFFD[2J")
	p.press("ctrl+u")
	p.send(tea.PasteMsg{Content: " 198.18.1.0/24\n"})
	p.send(tea.PasteMsg{Content: strings.Repeat("x", 65)})
	if p.typed != "198.18.1.0/24" {
		t.Errorf("pasted %q", p.typed)
	}
	if p.press("esc") || p.query.Prefix != "198.18.1.0/24" {
		t.Errorf("Esc changed the filter to %q", p.query.Prefix)
	}
	p.press("/", "ctrl+u")
	if !p.press("enter") || p.query.Prefix != "" {
		t.Errorf("the filter does not end: %q", p.query.Prefix)
	}
}

// order is the keys of the rows as they are to be seen, the chosen one marked.
func (p *person) order() string {
	var out []string
	for i, r := range p.rows {
		k := strings.TrimPrefix(r.Key, "198.18.1.")
		if i == p.bar {
			k = "*" + k
		}
		out = append(out, k)
	}
	return strings.Join(out, " ")
}

// TestRows: the bar stays on its address, whatever the order.
func TestRows(t *testing.T) {
	p := sit(t, events.TopQuery{By: events.BySrc}, 100, 24)
	f := func(want string) {
		t.Helper()
		if got := p.order(); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
	again := func(rows ...events.TopRow) {
		p.press("p", "p")
		a := calm()
		a.top = topOf(rows...)
		p.gets(time.Second, a)
	}
	p.gets(0, calm())
	f("*1 2 10")
	again(row("198.18.1.2", 90), row("198.18.1.1", 80), row("198.18.1.10", 1)) // nothing is chosen: the bar is on the first
	f("*2 1 10")
	p.press("down")
	f("2 *1 10")
	again(row("198.18.1.10", 95), row("198.18.1.2", 90), row("198.18.1.1", 80))
	f("10 2 *1")
	p.press("r")
	f("*1 2 10")
	p.press("o")
	f("10 2 *1")
	p.press("r")
	f("*1 2 10")
	p.press("o")
	again(row("198.18.1.10", 95), row("198.18.1.2", 90))
	f("10 *2")
	again(row("198.18.1.10", 95), row("198.18.1.2", 90), row("198.18.1.1", 99))
	f("*1 10 2")
	p.press("end")
	f("1 10 *2")
	p.press("pgup", "down")
	f("1 *10 2")
	p.press("home")
	f("*1 10 2")
	again(row("198.18.1.2", 95))
	f("*2")
	again()
	f("")
	if p.press("down", "enter") {
		t.Error("asks about no address")
	}
}

// TestTrouble: what is wrong is said, and the picture stays.
func TestTrouble(t *testing.T) {
	p := sit(t, events.TopQuery{By: events.BySrc}, 120, 24)
	p.gets(0, calm())
	at := func(s int) time.Time { return noon.Add(time.Duration(s) * time.Second) }
	p.mustNotSee("late", "lossy", "no answer")
	p.send(tick(at(1)))
	if !p.waiting {
		t.Fatal("a second later nothing is asked")
	}
	for s := range 3 {
		round := p.round
		p.send(tick(at(2 + s)))
		if p.round != round {
			t.Error("a second question while the first has no answer")
		}
	}
	p.mustSee("late: this is of 12:00:00, 4s ago", "198.18.1.1")
	p.gets(5*time.Second, answer{err: errors.New("no connection to NATS\x1b]0;evil\a")})
	p.send(tick(at(6)))
	p.gets(9*time.Second, answer{err: errors.New("no connection to NATS")})
	p.mustSee("no answer: since 12:00:05, trying again; this is of 12:00:00: no connection to NATS", "198.18.1.1")
	p.mustNotSee("late")

	// What was answered beside it is shown.
	p.send(tick(at(9)))
	some := calm()
	some.fleet.Firewalls[1].State = events.StateStale
	p.gets(9*time.Second, answer{fleet: some.fleet, alerts: some.alerts, head: true, err: errors.New("top: slow")})
	p.mustSee("1 fresh · 1 stale", "no answer: since 12:00:05", "top: slow", "198.18.1.1")

	p.send(tick(at(10)))
	a := calm()
	a.fleet.Firewalls[1].Lost, a.fleet.Firewalls[1].Missing = 5, 2
	a.fleet.Firewalls[0].Approximate, a.fleet.Firewalls[0].Rivals = true, true
	p.gets(10*time.Second, a)
	p.mustSee("lossy: fw-b 7 events were lost: the truth may be more", "5 lost · 2 missing", "rivals: fw-a: two producers use this name")
	p.mustNotSee("no answer", "approximate") // that is of active
	p.send(tick(at(11)))
	a.top.Metric, a.top.WindowS, a.top.Unknown = events.MetricActive, 0, []string{"fw-b"}
	p.query.Metric = events.MetricActive
	p.gets(11*time.Second, a)
	p.mustSee("active flows by source, fleet", "approximate: fw-a: may count flows that have ended", "unknown: fw-b: not known yet")
	p.send(tick(at(12)))
	p.gets(72*time.Second, a)
	p.mustNotSee("lossy")

	p.press("p")
	round := p.round
	p.send(tick(at(100)))
	if p.round != round {
		t.Error("it asks although it is paused")
	}
	p.mustSee("paused: this is of 12:01:12")
	p.mustNotSee("late")
	if !p.press("space") {
		t.Error("it does not go on at once")
	}
}

// TestAddress goes down to an address and back.
func TestAddress(t *testing.T) {
	p := sit(t, events.TopQuery{By: events.BySrc}, 110, 36)
	p.gets(0, storm())
	p.press("down", "up")
	if !p.press("enter") || *p.subject != (events.AddressQuery{Address: "198.18.66.1", Realm: "default"}) {
		t.Fatalf("asks for %+v", p.subject)
	}
	p.mustSee("198.18.66.1, realm default  asking…")
	a := storm()
	a.top, a.address = nil, story()
	p.gets(time.Second, a)
	golden(t, "address", p.sees())
	if p.send(tick(noon.Add(2 * time.Second))); p.waiting {
		t.Error("an address is asked about each second")
	}
	p.send(tick(noon.Add(4 * time.Second)))
	if !p.waiting {
		t.Error("an address is not asked about again")
	}
	p.gets(time.Second, a)
	p.send(tea.WindowSizeMsg{Width: 40, Height: 10})
	p.press("end", "up")
	golden(t, "address-tiny", p.sees())
	p.press("home")
	p.mustSee("198.18.66.1, realm default")
	if !p.press("esc") || p.subject != nil {
		t.Error("Esc does not lead back")
	}
	p.mustSee("%SHOWN")

	// The realm of a firewall's rows is the firewall's.
	a = calm()
	a.fleet.Firewalls[0].Realm = "lis1"
	p.query.Firewall = "fw-a"
	p.gets(time.Second, a)
	p.press("enter")
	if p.subject == nil || p.subject.Realm != "lis1" {
		t.Errorf("asks for %+v", p.subject)
	}
	// What is no address has no story.
	p.press("esc")
	a.top = topOf(row("nonsense", 1))
	p.gets(time.Second, a)
	if p.press("home", "enter") || p.subject != nil {
		t.Errorf("asks for %+v", p.subject)
	}
	p.mustSee(`"nonsense" is no IP address`)
}

// TestHostile: whatever an answer holds, nothing but what is drawn here is an escape.
func TestHostile(t *testing.T) {
	const evil = "\x1b]0;owned\a\x1b[2J\u009b31m\u202e\r\n\tx"
	p := sit(t, events.TopQuery{By: events.BySrc}, 200, 60)
	a := storm()
	for i := range a.fleet.Firewalls {
		a.fleet.Firewalls[i].Firewall += evil
	}
	a.top = topOf(events.TopRow{Key: evil, Value: 7, Firewalls: events.ByName[uint64]{evil: 7}})
	a.top.Scope, a.top.Metric, a.top.Stale, a.top.Unknown = evil, evil, []string{evil}, []string{evil}
	a.alerts.Alerts[0].Text, a.alerts.Alerts[0].Severity, a.alerts.Alerts[1].Key = evil, evil, evil
	safe := func() {
		t.Helper()
		screen := p.screen()
		for _, bad := range []string{"\x1b]", "\x1b[2J", "\a", "\u009b", "\u202e", "\r", "\t"} {
			if strings.Contains(screen, bad) {
				t.Errorf("%q reaches the terminal:\n%q", bad, screen)
			}
		}
		p.sees()
	}
	p.gets(0, a)
	safe()
	s := story()
	s.Allowlisted.Why, s.Src.Peers[0].Value, s.Decisions[0].Reason, s.Receipts[0].Firewall, s.Acts[0].What, s.Alerts[0].Text = evil, evil, evil, evil, evil, evil
	s.Address, s.Src.Counts[0].Metric, s.Src.Counts[0].Firewalls = evil, evil, events.ByName[uint64]{evil: 1}
	p.subject = &events.AddressQuery{Address: evil, Realm: evil}
	p.press("p", "p")
	a.top, a.address = nil, s
	p.gets(time.Second, a)
	safe()
	p.press("p", "p")
	p.gets(time.Second, answer{err: errors.New(evil)})
	safe()
}

// TestSizes draws every page at every size, and presses every key there.
func TestSizes(t *testing.T) {
	for columns := 1; columns <= 130; columns += 9 {
		for lines := 1; lines <= 45; lines += 5 {
			p := sit(t, events.TopQuery{By: events.BySrc}, columns, lines)
			p.sees()
			p.gets(0, storm())
			for _, b := range bindings {
				for _, name := range b.names {
					if name != "q" && name != "enter" {
						p.press(name, "esc")
						p.sees()
					}
				}
			}
			if columns >= 40 && lines >= 10 {
				p.mustSee("198.18.66.1", "2002")
			}
			p.press("enter", "?", "end", "?")
			a := storm()
			a.top, a.address = nil, story()
			p.gets(0, a)
			p.sees()
			p.press("end", "pgup", "down")
			p.sees()
		}
	}
}

// TestEnd: the keys that end it.
func TestEnd(t *testing.T) {
	f := func(want bool, names ...string) {
		t.Helper()
		p := sit(t, events.TopQuery{By: events.BySrc}, 80, 24)
		p.gets(0, calm())
		var cmd tea.Cmd
		for _, name := range names {
			cmd = p.send(key(name))
		}
		quits := false
		if cmd != nil && !p.waiting {
			_, quits = cmd().(tea.QuitMsg)
		}
		if quits != want {
			t.Errorf("%q: ends %t, want %t", names, quits, want)
		}
	}
	f(true, "q")
	f(true, "ctrl+c")
	f(true, "/", "ctrl+c")
	f(false, "/", "q")
	f(false, "?", "q")
	f(true, "?", "q", "q")
	f(false, "esc")
}

package tui

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// binding is what some keys do on the page of the rows.
type binding struct {
	keys  string   // as a person reads them
	short string   // for the footer; "": not there
	long  string   // for the page of help
	names []string // as Bubble Tea names them
	do    func(m *model, name string) tea.Cmd
}

// bindings are in the order of the page of help, and of the footer, which ends where
// the screen does.
var bindings = []binding{
	{"?", "help", "this page", []string{"?"}, func(m *model, _ string) tea.Cmd { m.help, m.scroll = true, 0; return nil }},
	{"q", "quit", "quit, as does Ctrl-C", []string{"q"}, func(*model, string) tea.Cmd { return tea.Quit }},
	{"Enter", "inspect", "all that is known of the chosen address; Esc goes back", []string{"enter"}, (*model).inspect},
	{"s d", "src, dst", "count by source, or by destination; Tab changes over", []string{"s", "d", "tab"}, (*model).countBy},
	{"m", "metric", "the next metric: new, active, unreplied", []string{"m"}, (*model).nextMetric},
	{"w", "window", "the next of the windows that are kept; W: the one before", []string{"w", "W"}, (*model).nextWindow},
	{"f", "firewall", "one firewall after the other, then the fleet; F: backwards", []string{"f", "F"}, (*model).nextFirewall},
	{"/", "filter", "only addresses within a prefix; an empty one ends it", []string{"/"}, (*model).filter},
	{"h", "allowlisted", "hide what is allowlisted, or show it again", []string{"h"}, (*model).toggleAllowlisted},
	{"o", "order", "by value, or by address", []string{"o"}, func(m *model, _ string) tea.Cmd { m.byKey = !m.byKey; return m.arrange() }},
	{"r", "reverse", "the order turned around", []string{"r"}, func(m *model, _ string) tea.Cmd { m.reversed = !m.reversed; return m.arrange() }},
	{"p", "pause", "hold the picture, or go on; also Space", []string{"p", "space"}, (*model).togglePause},
	{"↑ ↓", "", "choose a row, which stays chosen wherever it goes; also k j PgUp PgDn End", []string{"up", "k", "down", "j", "pgup", "pgdown", "end"}, (*model).move},
	{"Home", "", "the first row, whatever it is; also g, Esc", []string{"home", "g", "esc"}, func(m *model, _ string) tea.Cmd { m.chosen = ""; return m.arrange() }},
}

// press does what a key is for.
func (m *model) press(k tea.KeyPressMsg) tea.Cmd {
	name := k.String()
	switch name {
	case "ctrl+c":
		return tea.Quit
	case "ctrl+z":
		return tea.Suspend
	}
	m.wrong = ""
	switch {
	case m.typing:
		return m.typePrefix(name, k.Text)
	case m.help || m.subject != nil:
		return m.read(name)
	}
	for _, b := range bindings {
		if slices.Contains(b.names, name) {
			return b.do(m, name)
		}
	}
	return nil
}

// step is how far a key moves; 0: it does not.
func (m *model) step(name string) int {
	switch name {
	case "up", "k":
		return -1
	case "down", "j":
		return 1
	case "pgup":
		return -max(m.height/2, 1)
	case "pgdown":
		return max(m.height/2, 1)
	case "end":
		return 1 << 20 // more than there can be
	}
	return 0
}

func (m *model) move(name string) tea.Cmd {
	if len(m.rows) > 0 {
		m.bar = max(min(m.bar+m.step(name), len(m.rows)-1), 0)
		m.chosen = m.rows[m.bar].Key
	}
	return nil
}

// read does what the keys do on a page that is only read.
func (m *model) read(name string) tea.Cmd {
	switch name {
	case "home", "g":
		m.scroll = 0
	case "?":
		m.help, m.scroll = !m.help, 0
	case "p", "space":
		return m.togglePause(name)
	case "q":
		if !m.help {
			return tea.Quit
		}
		fallthrough
	case "esc", "enter", "backspace", "left":
		m.scroll = 0
		if m.help {
			m.help = false
			return nil
		}
		m.subject, m.address = nil, nil
		return m.ask()
	default:
		m.scroll = max(m.scroll+m.step(name), 0) // what is drawn ends it at its other end
	}
	return nil
}

// filter asks for a prefix.
func (m *model) filter(string) tea.Cmd {
	m.typing, m.typed = true, m.query.Prefix
	return nil
}

// typePrefix takes what is typed.
func (m *model) typePrefix(name, text string) tea.Cmd {
	switch name {
	case "enter":
		typed := strings.TrimSpace(m.typed)
		if typed != "" {
			p, err := events.ParsePrefix(typed)
			if err != nil {
				m.wrong = err.Error()
				return nil
			}
			typed = events.FormatPrefix(p)
		}
		m.typing, m.query.Prefix = false, typed
		return m.ask()
	case "esc":
		m.typing = false
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(m.typed)
		m.typed = m.typed[:len(m.typed)-size]
	case "ctrl+u":
		m.typed = ""
	default:
		m.typed += clean(text)
	}
	return nil
}

func (m *model) countBy(name string) tea.Cmd {
	by := events.BySrc
	if name == "d" || name == "tab" && m.query.By != events.ByDst {
		by = events.ByDst
	}
	if by == m.query.By {
		return nil
	}
	m.query.By, m.chosen = by, "" // an address means another thing there
	return m.ask()
}

func (m *model) nextMetric(string) tea.Cmd {
	m.query.Metric, _ = neighbour([]string{events.MetricNew, events.MetricActive, events.MetricUnreplied}, m.query.Metric, 1)
	return m.ask()
}

func (m *model) nextWindow(name string) tea.Cmd {
	if m.query.Metric == events.MetricActive {
		m.wrong = "active is what there is now: it has no window"
		return nil
	}
	now := m.query.WindowS
	if now == 0 && m.top != nil {
		now = m.top.WindowS
	}
	next, ok := neighbour(m.windows, now, direction(name, "w"))
	if !ok {
		m.wrong = "the aggregator has not said which windows it keeps"
		return nil
	}
	m.query.WindowS = next
	return m.ask()
}

// nextFirewall goes through the firewalls, of the realm if one was said, and all of
// them together.
func (m *model) nextFirewall(name string) tea.Cmd {
	all := []string{""}
	for i := range m.fleet {
		f := &m.fleet[i]
		if _, ok := events.ZoneOf(m.query.Realm, f.Realm); ok || m.query.Realm == "" {
			all = append(all, f.Firewall)
		}
	}
	m.query.Firewall, _ = neighbour(all, m.query.Firewall, direction(name, "f"))
	return m.ask()
}

// direction is forwards for a key, and backwards for it with Shift.
func direction(name, key string) int {
	if name == key {
		return 1
	}
	return -1
}

// neighbour is what stands beside v in a ring; its beginning, if v is not there.
func neighbour[T comparable](ring []T, v T, step int) (next T, ok bool) {
	if len(ring) == 0 {
		return next, false
	}
	i := slices.Index(ring, v)
	if i < 0 {
		return ring[0], true
	}
	return ring[(i+step+len(ring))%len(ring)], true
}

func (m *model) toggleAllowlisted(string) tea.Cmd {
	if m.query.Allowlisted == "" {
		m.query.Allowlisted = events.AllowlistedHide
	} else {
		m.query.Allowlisted = ""
	}
	return m.ask()
}

func (m *model) togglePause(string) tea.Cmd {
	if m.paused = !m.paused; m.paused {
		return nil
	}
	return m.ask()
}

// inspect opens the page of the address under the bar.
func (m *model) inspect(string) tea.Cmd {
	if len(m.rows) == 0 {
		return nil
	}
	key := m.rows[m.bar].Key
	q := &events.AddressQuery{Address: key, Realm: m.realm()}
	if err := q.Validate(); err != nil {
		m.wrong = err.Error()
		return nil
	}
	m.chosen, m.subject, m.address, m.scroll = key, q, nil, 0
	return m.ask()
}

// realm is the one that the rows are of.
func (m *model) realm() string {
	if m.shown.Realm == "" {
		for i := range m.fleet {
			if m.fleet[i].Firewall == m.shown.Firewall {
				return m.fleet[i].Realm
			}
		}
	}
	return cmp.Or(m.shown.Realm, events.RealmDefault)
}

// compareKeys orders addresses as numbers; what is none comes last.
func compareKeys(a, b string) int {
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	switch {
	case errX == nil && errY == nil:
		return x.Compare(y)
	case errX == nil:
		return -1
	case errY == nil:
		return 1
	}
	return cmp.Compare(a, b)
}

package tui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// screen draws the page. It has as many lines as the terminal at most, and the last
// of them is the footer.
func (m *model) screen() string {
	look := &onDark
	if m.light {
		look = &onLight
	}
	var out []string
	put := func(lines ...line) {
		for _, l := range lines {
			out = append(out, look.draw(l, m.width, false))
		}
	}
	left := func() int { return m.height - 1 - len(out) }

	switch {
	case m.help:
		m.scrolled(helpPage(), left(), put)
	case m.subject != nil:
		put(limit(m.fleetLine(), 2)...)
		put(m.notes(max(left()/3, 1))...)
		m.scrolled(m.addressPage(), left(), put)
	default:
		put(limit(m.fleetLine(), 2)...)
		put(m.tables()...)
		put(m.notes(max(left()-5, 1))...)
		put(m.title())
		if m.top == nil {
			break
		}
		header, draw := m.layout()
		put(header)
		visible := max(left(), 1)
		m.first = min(m.first, m.bar, max(len(m.rows)-visible, 0))
		m.first = max(m.first, m.bar-visible+1)
		for i := m.first; i < min(len(m.rows), m.first+visible); i++ {
			out = append(out, look.draw(draw(&m.rows[i]), m.width, i == m.bar))
		}
		if len(m.rows) == 0 {
			put(line{say(faint, "  no flow is counted")})
		}
	}
	out = out[:min(len(out), max(m.height-1, 0))]
	for len(out) < m.height-1 {
		out = append(out, "")
	}
	put(m.footer())
	return strings.Join(out, "\n")
}

// scrolled puts the part of a long page that is to be seen.
func (m *model) scrolled(page []line, visible int, put func(...line)) {
	visible = max(visible, 0)
	m.scroll = max(min(m.scroll, len(page)-visible), 0)
	put(page[m.scroll:min(len(page), m.scroll+visible)]...)
}

func limit(lines []line, most int) []line { return lines[:min(len(lines), most)] }

// narrow is fewer columns than all of the fleet's line has room in, in two lines.
const narrow = 60

// fleetLine is the fleet in a line, or in two.
func (m *model) fleetLine() []line {
	if m.answered.IsZero() {
		return []line{{say(strong, "ctfleet"), say(faint, " asking…")}}
	}
	var items []span
	if m.width >= narrow {
		items = append(items, say(strong, "ctfleet %s", m.answered.Format(time.TimeOnly)))
	}
	states, rate, lost, missing := map[string]int{}, 0.0, uint64(0), uint64(0)
	for i := range m.fleet {
		f := &m.fleet[i]
		states[f.State]++
		rate += f.EventsPerS
		lost += f.Lost
		missing += f.Missing
	}
	for _, s := range []struct {
		state string
		ink   ink
	}{{events.StateFresh, good}, {events.StateStale, warn}, {events.StateSilent, bad}, {events.StateStopped, faint}} {
		if n := states[s.state]; n > 0 {
			items = append(items, say(s.ink, "%d %s", n, s.state))
		}
	}
	if len(m.fleet) == 0 {
		items = append(items, say(warn, "no firewall has reported"))
	}
	figure := func(n uint64, what string) {
		i := plain
		if n > 0 {
			i = bad
		}
		items = append(items, say(i, "%d %s", n, what))
	}
	figure(uint64(len(m.alerts)), "firing")
	items = append(items, say(plain, "%.0f events/s", rate))
	if m.width < narrow {
		figure(lost+missing, "lost")
	} else {
		figure(lost, "lost")
		figure(missing, "missing")
	}
	return pack(items, " · ", m.width)
}

// tables are the fullest ones, as many as there is room for.
func (m *model) tables() (lines []line) {
	var list []*events.FirewallStatus
	for i := range m.fleet {
		if f := &m.fleet[i]; f.Source == "" && f.State != events.StateStopped && (m.query.Firewall == "" || m.query.Firewall == f.Firewall) {
			list = append(list, f)
		}
	}
	slices.SortStableFunc(list, func(a, b *events.FirewallStatus) int { return cmp.Compare(b.Table.Percent, a.Table.Percent) })
	list = list[:min(len(list), max((m.height-12)/3, 0), 5)]
	name := 0
	for _, f := range list {
		name = min(max(name, len(f.Firewall)), 24)
	}
	for _, f := range list {
		level := good
		switch {
		case f.State != events.StateFresh:
			level = faint // what it was
		case f.Table.Percent >= 90:
			level = bad
		case f.Table.Percent >= 75:
			level = warn
		}
		l := line{say(faint, "table "), say(plain, "%s ", fit(f.Firewall, name, false))}
		size := fmt.Sprintf("  %d of %d", f.Table.Count, f.Table.Limit)
		if f.State != events.StateFresh {
			size = "  " + f.State + "," + size[1:]
		}
		room := m.width - l.width() - 8 - 30
		l = append(l, gauge(f.Table.Percent, max(min(room, 40), 8), level, "·")...)
		lines = append(lines, append(l, say(level, "%6.1f %%", f.Table.Percent), say(faint, "%s", size)))
	}
	return lines
}

// gauge is a bar that is so many per cent full, and what its rest is drawn with. What
// is not nothing shows.
func gauge(percent float64, columns int, i ink, rest string) line {
	full := max(min(int(percent*float64(columns)/100+0.5), columns), 0)
	if full == 0 && percent > 0 && columns > 0 {
		full = 1
	}
	return line{say(i, "%s", strings.Repeat("█", full)), say(faint, "%s", strings.Repeat(rest, columns-full))}
}

// note is one thing to know before the numbers are believed.
type note struct {
	tag  string
	ink  ink
	text string
}

// notes says what must be known, in at most so many lines: what has no line of its
// own is named in the last one.
func (m *model) notes(most int) (lines []line) {
	list := m.warnings()
	for i, n := range list {
		if len(lines) == most-1 && i < len(list)-1 {
			var tags line
			for j, n := range list[i:] {
				if j > 0 {
					tags = append(tags, say(faint, " · "))
				}
				tags = append(tags, say(n.ink, "%s", n.tag))
			}
			return append(lines, tags)
		}
		lines = append(lines, line{say(n.ink, "%s: %s", n.tag, n.text)})
	}
	return lines
}

// few is how many names a note has.
const few = 5

// warnings are all of them, the gravest first.
func (m *model) warnings() (list []note) {
	add := func(tag string, i ink, format string, args ...any) {
		list = append(list, note{tag, i, fmt.Sprintf(format, args...)})
	}
	picture := "nothing was answered yet"
	if !m.answered.IsZero() {
		picture = "this is of " + m.answered.Format(time.TimeOnly)
	}
	if m.err != nil {
		add("no answer", bad, "since %s, trying again; %s: %v", m.failed.Format(time.TimeOnly), picture, m.err)
	} else if age := m.now.Sub(m.answered); !m.answered.IsZero() && !m.paused && age > 2*m.every()+time.Second {
		add("late", warn, "%s, %s ago", picture, age.Round(time.Second))
	}
	if m.paused {
		add("paused", accent, "%s", picture)
	}
	for i := range min(len(m.alerts), 2) { // many fire when it is bad: they must not push out the doubts
		a, text := &m.alerts[i], m.alerts[i].Text
		if flags := a.Flags(); len(flags) > 0 {
			text += " [" + strings.Join(flags, ", ") + "]"
		}
		add(cmp.Or(a.Severity, "alert"), bad, "%s", text)
	}
	if rest := len(m.alerts) - 2; rest > 0 {
		add(fmt.Sprintf("%d more fire", rest), bad, "ctfleet alerts list")
	}
	return append(list, m.doubts()...)
}

// doubts are what the numbers do not hold.
func (m *model) doubts() (list []note) {
	add := func(tag, text string, firewalls []string) {
		if len(firewalls) > 0 {
			list = append(list, note{tag, warn, names(firewalls, few) + text})
		}
	}
	var lossy, simulated, approximate, rivals []string
	realm := m.realm()
	active := m.subject != nil || m.shown.Metric == events.MetricActive
	for i := range m.fleet {
		f := &m.fleet[i]
		if _, ok := events.ZoneOf(realm, f.Realm); !ok || m.subject == nil && m.shown.Firewall != "" && m.shown.Firewall != f.Firewall {
			continue // what it sees is not in the numbers
		}
		if l := m.losses[f.Firewall]; l.grown > 0 && m.now.Sub(l.at) < lossFor {
			lossy = append(lossy, fmt.Sprintf("%s %d", f.Firewall, l.grown))
		}
		if f.Source == "replay" {
			simulated = append(simulated, f.Firewall)
		}
		if active && f.ActiveKnown && f.Approximate {
			approximate = append(approximate, f.Firewall)
		}
		if f.Rivals {
			rivals = append(rivals, f.Firewall)
		}
	}
	var stale, unknown []string
	partial, more := false, false
	switch {
	case m.address != nil && m.subject != nil:
		stale, unknown = m.address.Stale, m.address.Unknown
		more = m.address.Lossy && len(lossy) == 0
	case m.top != nil && m.subject == nil:
		stale, unknown, partial = m.top.Stale, m.top.Unknown, m.top.Partial
	}
	add("stale", " silent: what is seen there is missing", stale)
	add("lossy", " events were lost: the truth may be more", lossy)
	if more {
		list = append(list, note{"lossy", warn, "events were lost within the longest window: the truth may be more"})
	}
	add("simulated", ": a recording is replayed, nothing of it happens now", simulated)
	add("unknown", ": not known yet how many flows are active", unknown)
	add("approximate", ": may count flows that have ended", approximate)
	if partial {
		list = append(list, note{"partial", warn, "the aggregator has not counted for a whole window yet"})
	}
	add("rivals", ": two producers use this name", rivals)
	return list
}

// lossFor is how long a loss is told of after it happened.
const lossFor = time.Minute

// footer is what can be done now.
func (m *model) footer() line {
	switch {
	case m.typing:
		l := line{say(strong, "within: "), say(plain, "%s", m.typed), say(accent, "▏")}
		if m.wrong != "" {
			return append(l, say(bad, "  %s", m.wrong))
		}
		return append(l, say(faint, "  an address or prefix; Enter, or Esc"))
	case m.wrong != "":
		return line{say(bad, "%s", m.wrong)}
	case m.help:
		return line{say(faint, "Esc back · ↑ ↓ scroll")}
	case m.subject != nil:
		return line{say(faint, "Esc back · ↑ ↓ scroll · p pause · ? help · q quit")}
	}
	var items []span
	for _, b := range bindings {
		if b.short != "" {
			items = append(items, say(faint, "%s %s", b.keys, b.short))
		}
	}
	return pack(items, " · ", m.width)[0]
}

// helpPage says what the keys do.
func helpPage() []line {
	lines := []line{{say(strong, "ctfleet top: who opens flows fastest, who holds the most, which table is about to fill")}, nil}
	for _, b := range bindings {
		lines = append(lines, line{say(accent, "  %s", fit(b.keys, 6, false)), say(plain, "%s", b.long)})
	}
	return append(lines, nil,
		line{say(plain, "new: flows that began within the window. active: flows that are there now.")},
		line{say(plain, "unreplied: flows that ended within the window without an answer.")},
		line{say(plain, "%%SHOWN: the part of all rows here. !: an alert fires about this address.")},
	)
}

package tui

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/charmbracelet/x/ansi"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// title says what the rows are: as they were answered, not as the next ones will be.
func (m *model) title() line {
	if m.top == nil {
		return line{say(strong, "top")}
	}
	t := m.top
	side := "source"
	if t.By == events.ByDst {
		side = "destination"
	}
	l := line{say(strong, "%s flows by %s", t.Metric, side)}
	if t.Metric != events.MetricActive {
		l = append(l, say(strong, " within %d s", t.WindowS))
	}
	l = append(l, say(strong, ", %s", t.Scope))
	if m.shown.Prefix != "" {
		l = append(l, say(accent, ", of %s", m.shown.Prefix))
	}
	if m.shown.Allowlisted != "" {
		l = append(l, say(accent, ", allowlisted hidden"))
	}
	if m.byKey {
		l = append(l, say(accent, ", by address"))
	}
	if m.reversed {
		l = append(l, say(accent, ", reversed"))
	}
	if m.query != m.shown {
		l = append(l, say(warn, ", asking…"))
	}
	return l
}

// Widths of columns. An address is not cut while there is a column for it.
const (
	minKey, maxKey = 15, 39 // an IPv4 and an IPv6 address
	minBar, maxBar = 8, 24
	minShares      = 16
)

// layout shares the columns of the screen out among those of the table.
func (m *model) layout() (header line, draw func(*events.TopRow) line) {
	key, value, total, most := minKey, len("FLOWS"), uint64(0), uint64(1)
	for i := range m.rows {
		r := &m.rows[i]
		key = min(max(key, ansi.StringWidth(r.Key)), maxKey)
		value = max(value, len(strconv.FormatUint(r.Value, 10)))
		total += r.Value
		most = max(most, r.Value)
	}
	const mark, gap, percent = 2, 2, 7
	left := m.width - mark - value - 1 - percent - gap
	key = max(min(key, left), 4)
	left -= key
	bar, shares := 0, 0
	if left >= minBar+gap {
		bar = min(left-gap, maxBar)
	}
	if m.shown.Firewall == "" && left >= minBar+minShares+2*gap {
		bar = max(min((left-2*gap)/3, maxBar), minBar)
		shares = left - bar - 2*gap
	}
	build := func(mark, k, v, p string, b line, s string) line {
		l := line{say(bad, "%s", fit(mark, 2, false)), say(plain, "%s", fit(k, key, false)), say(strong, "  %s", fit(v, value, true)), say(plain, " %s", fit(p, percent, true))}
		if bar > 0 {
			l = append(append(l, span{"  ", plain}), b...)
		}
		if shares > 0 {
			l = append(l, say(faint, "  %s", fit(s, shares, false)))
		}
		return l
	}
	header = build("", "ADDRESS", "FLOWS", "%SHOWN", line{say(plain, "%s", fit("", bar, false))}, "FIREWALLS")
	for i := range header {
		header[i].ink = faint
	}
	firing := m.firing()
	return header, func(r *events.TopRow) line {
		mark := ""
		if firing[r.Key] {
			mark = "!"
		}
		part := ""
		if total > 0 {
			part = fmt.Sprintf("%.1f", 100*float64(r.Value)/float64(total))
		}
		level := accent
		if firing[r.Key] {
			level = bad
		}
		return build(mark, r.Key, strconv.FormatUint(r.Value, 10), part, gauge(100*float64(r.Value)/float64(most), bar, level, " "), sharesText(r.Firewalls, shares))
	}
}

// firing are the addresses that an alert fires about, on the side that is shown.
func (m *model) firing() map[string]bool {
	out := map[string]bool{}
	for i := range m.alerts {
		if a := &m.alerts[i]; a.Track == "by_"+cmp.Or(m.shown.By, events.BySrc) && a.Realm == m.realm() {
			out[a.Key] = true
		}
	}
	return out
}

// sharesText is each firewall's part, the largest first, as many as fit.
func sharesText(parts map[string]uint64, columns int) string {
	list := slices.SortedFunc(maps.Keys(parts), func(a, b string) int {
		return cmp.Or(cmp.Compare(parts[b], parts[a]), cmp.Compare(a, b))
	})
	out := ""
	for i, fw := range list {
		next := fmt.Sprintf("%s=%d", fw, parts[fw])
		if i > 0 {
			next = out + " " + next
		}
		rest := ""
		if n := len(list) - i - 1; n > 0 {
			rest = fmt.Sprintf(" +%d", n)
		}
		if ansi.StringWidth(next+rest) > columns && i > 0 {
			return fmt.Sprintf("%s +%d", out, len(list)-i)
		}
		out = next
	}
	return out
}

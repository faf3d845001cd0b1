package tui

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// addressPage is all that is known of the address.
func (m *model) addressPage() []line {
	head := line{say(strong, "%s, realm %s", m.subject.Address, m.subject.Realm)}
	r := m.address
	if r == nil {
		return []line{append(head, say(faint, "  asking…"))}
	}
	if e := r.Allowlisted; e != nil {
		head = append(head, say(accent, ", allowlisted: %s", e.Prefix))
		if e.Why != "" {
			head = append(head, say(faint, " (%s)", e.Why))
		}
	}
	lines := []line{head}
	lines = append(lines, m.side("as source", &r.Src)...)
	lines = append(lines, m.side("as destination", &r.Dst)...)
	section := func(title string, list []events.Alert, i ink) {
		if len(list) == 0 {
			return
		}
		lines = append(lines, nil, line{say(strong, "%s", title)})
		for n := range list {
			a := &list[n]
			lines = append(lines, line{say(faint, "  %s ", clock(a.Started)), say(i, "%s", fit(a.Severity, 9, false)), say(plain, "%s", a.Text)})
		}
	}
	section("firing", r.Alerts, bad)
	section("resolved within the last hour", r.Past, good)
	if done := deeds(r); len(done) > 0 {
		lines = append(append(lines, nil, line{say(strong, "decided and done within the last hour")}), done...)
	}
	if r.More {
		lines = append(lines, line{say(faint, "  there are older ones: ctfleet audit list --address %s", r.Address)})
	}
	if len(r.Alerts)+len(r.Past)+len(r.Decisions)+len(r.Receipts)+len(r.Acts) == 0 {
		lines = append(lines, nil, line{say(faint, "no alert, no decision and no command within the last hour")})
	}
	return lines
}

// side is an address as source, or as destination.
func (m *model) side(title string, s *events.AddressSide) []line {
	lines := []line{nil, {say(strong, "%s", title)}}
	for i := range s.Counts {
		c := &s.Counts[i]
		what, value := c.Metric, "unknown"
		if c.WindowS > 0 {
			what += fmt.Sprintf(" within %d s", c.WindowS)
		}
		if c.Value != nil {
			value = fmt.Sprint(*c.Value)
		} else if c.Metric == events.MetricUnreplied {
			value = "none ended"
		}
		l := line{say(plain, "  %s%s", fit(what, 22, false), fit(value, 11, true))}
		if c.Share != nil {
			l = append(l, say(plain, " (%.0f %%)", 100**c.Share))
		}
		if c.Partial {
			l = append(l, say(warn, " partial"))
		}
		lines = append(lines, append(l, say(faint, "  %s", sharesText(c.Firewalls, max(m.width-38, minShares)))))
	}
	if s.SampleSize == 0 {
		return lines
	}
	for _, x := range []struct {
		what string
		list []events.Share
	}{{"peers", s.Peers}, {"ports", s.Ports}} {
		var parts []span
		for _, p := range x.list {
			parts = append(parts, say(plain, "%s ×%d", p.Value, p.Count))
		}
		label := fmt.Sprintf("  %s, a sample of %d events  ", x.what, s.SampleSize)
		for i, l := range pack(parts, " · ", max(m.width-len(label), 10)) {
			if i > 0 {
				label = strings.Repeat(" ", len(label))
			}
			lines = append(lines, append(line{say(faint, "%s", label)}, l...))
		}
	}
	return lines
}

// deeds are what was decided and done, one after the other.
func deeds(r *events.AddressReply) []line {
	type deed struct {
		at  int64
		who string
		audit.Entry
	}
	var list []deed
	for i := range r.Decisions {
		list = append(list, deed{r.Decisions[i].Time, events.ActorResponder, audit.Entry{Decision: &r.Decisions[i]}})
	}
	for i := range r.Receipts {
		list = append(list, deed{r.Receipts[i].Time, r.Receipts[i].Firewall, audit.Entry{Receipt: &r.Receipts[i]}})
	}
	for i := range r.Acts {
		list = append(list, deed{r.Acts[i].Time, events.ActorOperator, audit.Entry{Act: &r.Acts[i]}})
	}
	slices.SortStableFunc(list, func(a, b deed) int { return cmp.Compare(a.at, b.at) })
	var lines []line
	for i := range list {
		d := &list[i]
		_, what, why := d.Words()
		lines = append(lines, line{say(faint, "  %s ", clock(d.at)), say(accent, "%s ", d.who), say(plain, "%s", what), say(faint, "  %s", strings.Trim(why, ": "))})
	}
	return lines
}

// clock is when something happened, in local time.
func clock(ms int64) string { return time.UnixMilli(ms).Format(time.TimeOnly) }

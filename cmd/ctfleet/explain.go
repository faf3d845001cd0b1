package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ctfleet/ctfleet/internal/audit"
	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

type rulesExplainCmd struct {
	client
	trusting
	Alert string `arg:"" help:"Its id, of which the beginning is enough where it is unique. Or what it is about, and the latest such alert is explained: an address, a prefix, or RULE.SCOPE.KEY as in its subject."`
}

// explained is why an alert fired, and what came of it.
type explained struct {
	Rule      string        `json:"rule"`  // in words
	Alert     *events.Alert `json:"alert"` // as the first report that is kept has it
	Last      *events.Alert `json:"last"`  // as the latest one has it
	Responder []audit.Entry `json:"responder"`
	Earlier   int           `json:"responder_earlier,omitempty"` // entries that are left out
}

// maxDeeds is how many entries of the audit an explanation has: an alert may fire for
// weeks.
const maxDeeds = 200

func (c *rulesExplainCmd) Run(ctx context.Context) error {
	trust, err := c.open()
	if err != nil {
		return err
	}
	conn, err := c.connect()
	if err != nil {
		return err
	}
	defer conn.Close()
	x, err := findAlert(ctx, conn, c.Alert)
	if err != nil {
		return err
	}
	if err := x.readDeeds(ctx, conn, trust); err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(os.Stdout, x)
	}
	return x.print(os.Stdout, c.Output)
}

// findAlert reads the reports of an alert. Of those that an id may mean there must be
// one; of those that are about something the latest is meant.
func findAlert(ctx context.Context, conn *bus.Conn, what string) (*explained, error) {
	name := cmp.Or(events.SubjectAlert(what), what)
	key := ""
	if p, err := events.ParsePrefix(what); err == nil {
		key = events.FormatPrefix(p)
	}
	byID, about := map[string]*explained{}, &explained{}
	err := conn.Read(ctx, bus.StreamAlerts, bus.FollowFrom{All: true}, func(m bus.Msg) {
		var a events.Alert
		if err := events.Unmarshal(m.Data, &a); err != nil {
			complain("refused a message on %q: %v", m.Subject, err)
			return
		}
		switch {
		case key != "" && a.Key == key, events.SubjectAlert(m.Subject) == name:
			if about.Alert == nil || about.Alert.ID != a.ID && a.Started >= about.Alert.Started {
				about = &explained{Alert: &a}
			}
			if about.Alert.ID == a.ID {
				about.Last = &a
			}
		case what != "" && strings.HasPrefix(a.ID, what):
			x := byID[a.ID]
			if x == nil {
				x = &explained{Alert: &a}
				byID[a.ID] = x
			}
			x.Last = &a
		}
	})
	if err != nil {
		return nil, err
	}
	x := byID[what]
	switch {
	case x != nil:
	case about.Alert != nil:
		x = about
	case len(byID) > 1:
		return nil, &exitError{2, fmt.Errorf("%q is the beginning of %d ids: %s", what, len(byID), strings.Join(firstOf(slices.Sorted(maps.Keys(byID)), 5), ", "))}
	case len(byID) == 1:
		for _, x = range byID {
		}
	default:
		return nil, fmt.Errorf("no alert %q is known: ctfleet alerts list shows those that fire, alerts watch --since those that did", what)
	}
	x.Rule = whyItFires(x.Alert)
	return x, nil
}

// firstOf are the first of a list.
func firstOf[T any](list []T, n int) []T { return list[:min(n, len(list))] }

// readDeeds reads what was decided and done about the alert, and what persons said to
// that.
func (x *explained) readDeeds(ctx context.Context, conn *bus.Conn, trust *seal.Trust) error {
	x.Responder = []audit.Entry{}
	decided := map[string]bool{}
	from := bus.FollowFrom{Time: time.UnixMilli(x.Alert.Started).Add(-time.Minute)}
	return conn.Read(ctx, bus.StreamAudit, from, func(m bus.Msg) {
		e, ok := readAudit(m, trust)
		switch {
		case !ok:
			return
		case e.Decision != nil && e.Decision.Alert == x.Alert.ID:
			decided[e.Decision.ID] = true
		case e.Receipt != nil && e.Receipt.Alert == x.Alert.ID, e.Act != nil && decided[e.Act.ID]:
		default:
			return
		}
		if x.Responder = append(x.Responder, e); len(x.Responder) > maxDeeds {
			x.Responder, x.Earlier = slices.Delete(x.Responder, 0, 1), x.Earlier+1
		}
	})
}

// whyItFires says in words what was over which threshold, as far as an alert tells: a
// rule may also narrow it to some flows, which its name should say.
func whyItFires(a *events.Alert) string {
	who, direction := "one source", "from"
	if a.Track == rule.ByDst {
		who, direction = "one destination", "to"
	}
	if _, bits, ok := strings.Cut(a.Key, "/"); ok {
		who = strings.TrimPrefix(who, "one ")
		who = fmt.Sprintf("the %ss of one /%s", who, bits)
	}
	within := ""
	if a.Seconds > 0 {
		within = fmt.Sprintf(" within %d s", a.Seconds)
	}
	var s string
	switch a.Metric {
	case events.MetricNew:
		s = fmt.Sprintf("%s or more new flows %s %s%s", number(a.Count), direction, who, within)
	case events.MetricActive:
		s = fmt.Sprintf("%s or more flows at a time %s %s", number(a.Count), direction, who)
	case events.MetricUnreplied:
		s = fmt.Sprintf("%s or more flows %s %s that ended unanswered%s", number(a.Count), direction, who, within)
	case rule.TablePercent:
		s = fmt.Sprintf("a table is %s %% full or more", number(a.Count))
	default:
		s = fmt.Sprintf("%s is %s or more", a.Metric, number(a.Count))
	}
	if a.Scope == events.RealmScope(a.Realm) {
		return s + ", in the realm " + a.Realm
	}
	return s + ", on " + a.Scope + " alone"
}

// number writes all digits of a number.
func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// barWidth is the longest bar.
const barWidth = 40

// print tells a person; raw has the same lines without bars.
func (x *explained) print(w io.Writer, format string) error {
	a, last := x.Alert, x.Last
	clock := func(ms int64) string { return time.UnixMilli(ms).Format("2006-01-02 15:04:05.000") }
	t := newTable(w, format, a.Rule, last.State)
	t.add("what", a.Text)
	t.add("id", a.ID)
	t.add("severity", a.Severity)
	t.add("fires when", x.Rule)
	t.add("started", clock(a.Started))
	switch {
	case a.State == events.Resolved:
		t.add("reported", "only its end is kept")
	case a.Updated != a.Started:
		t.add("reported", clock(a.Updated))
	}
	if last.State == events.Resolved {
		t.add("resolved", clock(last.Updated))
	} else if last.Updated != a.Updated {
		t.add("reported again", clock(last.Updated))
	}
	t.add("counted", fmt.Sprintf("%s, threshold %s; %s at its peak, %s when last reported", number(a.Value), number(a.Count), number(last.Peak), number(last.Value)))
	x.printSlots(t, format)
	for _, name := range slices.SortedFunc(maps.Keys(a.Firewalls), func(p, q string) int {
		return cmp.Or(cmp.Compare(a.Firewalls[q], a.Firewalls[p]), cmp.Compare(p, q))
	}) {
		t.add("firewall "+name, number(a.Firewalls[name]))
	}
	for _, p := range a.Peers {
		t.add("peer (sample)", fmt.Sprintf("%s × %d", p.Value, p.Count))
	}
	for _, p := range a.Ports {
		t.add("port (sample)", fmt.Sprintf("%s × %d", p.Value, p.Count))
	}
	if a.Unreplied != nil {
		t.add("unreplied", fmt.Sprintf("%.0f%% of the flows that ended", 100**a.Unreplied))
	}
	for _, f := range []struct {
		is         bool
		name, what string
	}{
		{a.Lossy, "lossy", "events were lost: it may have been more"},
		{a.Stale, "stale", "a firewall was silent: what it held is not counted"},
		{a.Approximate, "approximate", "a firewall's active count was not exact"},
		{a.Partial, "partial", "it had been counted for less than the window: it may have been more"},
		{a.Allowlisted, "allowlisted", "the live allowlist covered it"},
		{a.Muted, "muted", "the bucket said that its firewall is muted, which is not verified here: a responder tells nobody then"},
		{a.Simulated, "simulated", "it is a trial: nothing acts upon it"},
	} {
		if f.is {
			t.add(f.name, f.what)
		}
	}
	if x.Earlier > 0 {
		t.add("responder", fmt.Sprintf("%d earlier entries: ctfleet audit list", x.Earlier))
	}
	for i := range x.Responder {
		e := &x.Responder[i]
		_, what, why := e.Words()
		t.add("responder", fmt.Sprintf("%s %s: %s (%s)", e.Time.Local().Format(time.DateTime), e.Actor, what, why))
	}
	if len(x.Responder) == 0 {
		t.add("responder", "nothing was decided: no policy is for this rule, or no responder ran")
	}
	return t.flush()
}

// printSlots shows when what was counted came.
func (x *explained) printSlots(t *table, format string) {
	a := x.Alert
	if len(a.Slots) == 0 {
		why := "none were kept"
		if a.Seconds == 0 {
			why = a.Metric + " has no window"
		}
		t.add("slots", why)
		return
	}
	var sum uint64
	for _, n := range a.Slots {
		sum += n
	}
	t.add("slots", fmt.Sprintf("%d, of %d ms each, held %d", len(a.Slots), a.SlotMS, sum))
	most := max(slices.Max(a.Slots), 1)
	for i, n := range a.Slots {
		begin := time.UnixMilli(a.SlotsEnd - int64(len(a.Slots)-i)*a.SlotMS).Format("15:04:05.000")
		text := fmt.Sprint(n)
		if format != "raw" {
			width := int(float64(n) / float64(most) * barWidth)
			if n > 0 {
				width = max(width, 1)
			}
			text = strings.TrimRight(fmt.Sprintf("%-*d %s", len(fmt.Sprint(most)), n, strings.Repeat("█", width)), " ")
		}
		t.add("slot "+begin, text)
	}
}

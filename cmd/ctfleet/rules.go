package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/ctfleet/ctfleet/internal/aggregator"
	"github.com/ctfleet/ctfleet/internal/rule"
)

type rulesCmd struct {
	Check   rulesCheckCmd   `cmd:"" help:"Read a rules file strictly and say what is wrong, with line and nearest valid word."`
	Explain rulesExplainCmd `cmd:"" help:"Why an alert fired: what was counted, when it came and through whom, and what was done about it."`
}

type rulesCheckCmd struct {
	File   string `arg:"" type:"existingfile" help:"The rules file."`
	Output string `short:"o" enum:"human,json,raw" default:"human" help:"human, json, or raw (tab-separated)."`
}

// checkedRule is one rule as it was understood.
type checkedRule struct {
	Name      string `json:"name"`
	Severity  string `json:"severity"`
	FiresWhen string `json:"fires_when"`
}

func (c *rulesCheckCmd) Run() error {
	f, err := (&aggregator.Options{Rules: c.File}).Load()
	if err != nil {
		return err
	}
	if c.Output == "json" {
		rules := []checkedRule{}
		for i := range f.Rules {
			r := &f.Rules[i]
			rules = append(rules, checkedRule{r.Name, r.Severity, firesWhen(r)})
		}
		return printJSON(os.Stdout, map[string]any{"rules": rules, "max_firing": f.MaxFiring})
	}
	t := newTable(os.Stdout, c.Output, "RULE", "SEVERITY", "FIRES WHEN")
	for i := range f.Rules {
		r := &f.Rules[i]
		t.add(r.Name, r.Severity, firesWhen(r))
	}
	return t.flush()
}

// firesWhen says in words what a rule watches, every key that narrows it
// included: what an operator reads here is what will be counted.
func firesWhen(r *rule.Rule) string {
	var b strings.Builder
	say := func(format string, args ...any) { fmt.Fprintf(&b, format, args...) }
	who, one := "source", r.Prefix.IPv4 == 32 && r.Prefix.IPv6 == 128
	if r.Track == rule.ByDst {
		who = "destination"
	}
	if one {
		who = "one " + who
	} else {
		who = fmt.Sprintf("the %ss of one /%d (IPv6: /%d)", who, r.Prefix.IPv4, r.Prefix.IPv6)
	}
	switch {
	case r.Track == rule.Table:
		say("the table is %v %% full", r.Count)
	case r.Metric == rule.Active:
		say("%s: %v %s at a time", who, r.Count, flows(r.Match))
	case r.Metric == rule.Unreplied:
		say("%s: %v %s that ended unanswered", who, r.Count, flows(r.Match))
	default:
		say("%s: %v new %s", who, r.Count, flows(r.Match))
	}
	if r.Seconds > 0 {
		say(" within %d s", r.Seconds)
	}
	if r.For > 0 {
		say(", for %s", r.For)
	}
	switch {
	case r.Scope == rule.Firewall:
		say(", on each firewall by itself")
	case r.Combine == rule.Max:
		say(", on the firewall that sees most")
	default:
		say(", in the fleet")
	}
	if len(r.Except) > 0 {
		say(", except %s", strings.Trim(fmt.Sprint(r.Except), "[]"))
	}
	say("; until under %v %% of that for %s", 100*r.ClearRatio, r.Recover)
	return b.String()
}

func flows(m rule.Match) string {
	s := "flows"
	if m.Protocol != 0 {
		s = m.Protocol.String() + " flows"
	}
	for i, port := range m.DPort {
		s += []string{" to port ", " or "}[min(i, 1)] + fmt.Sprint(port)
	}
	return s
}

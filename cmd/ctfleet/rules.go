package main

import (
	"fmt"
	"os"

	"github.com/ctfleet/ctfleet/internal/aggregator"
)

type rulesCmd struct {
	Check rulesCheckCmd `cmd:"" help:"Read a rules file strictly and say what is wrong, with line and nearest valid word."`
}

type rulesCheckCmd struct {
	File   string `arg:"" type:"existingfile" help:"The rules file."`
	Output string `short:"o" enum:"human,json,raw" default:"human" help:"human, json, or raw (tab-separated)."`
}

func (c *rulesCheckCmd) Run() error {
	f, err := (&aggregator.Options{Rules: c.File}).Load()
	if err != nil {
		return err
	}
	if c.Output == "json" {
		return printJSON(os.Stdout, map[string]any{"rules": len(f.Rules), "max_firing": f.MaxFiring})
	}
	t := newTable(os.Stdout, c.Output, "RULE", "SEVERITY", "FIRES WHEN")
	for i := range f.Rules {
		r := &f.Rules[i]
		what := fmt.Sprintf("%s of %s reaches %v", r.Metric, r.Track, r.Count)
		if r.Seconds > 0 {
			what += fmt.Sprintf(" within %d s", r.Seconds)
		}
		if r.For > 0 {
			what += fmt.Sprintf(", for %s", r.For)
		}
		t.add(r.Name, r.Severity, what+", scope "+r.Scope)
	}
	return t.flush()
}

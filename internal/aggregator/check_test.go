package aggregator

import (
	"bytes"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/internal/rule"
)

// TestCheck holds what an operator is told before an aggregator is started.
func TestCheck(t *testing.T) {
	server, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	f := func(what string, rules []rule.Rule, nats *bus.Flags, works bool, want ...string) {
		t.Helper()
		opt := Options{MaxKeys: 1000}
		if len(rules) > 0 {
			opt.Rules = "rules.yaml"
		}
		var out bytes.Buffer
		if err := Check(&out, opt, rule.File{Rules: rules, MaxFiring: 100}, nats, "NATS somewhere"); (err == nil) != works {
			t.Errorf("%s: %v\n%s", what, err, out.String())
		}
		if n := strings.Count(out.String(), "note ") + strings.Count(out.String(), "FATAL"); n != len(want) {
			t.Errorf("%s: %d findings, want %d\n%s", what, n, len(want), out.String())
		}
		for _, w := range want {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s: %q is missing\n%s", what, w, out.String())
			}
		}
	}
	one := rule.Default()
	one.Name, one.Track, one.Metric, one.Count, one.Seconds = "one", rule.BySrc, rule.New, 10, 10
	f("all is well", []rule.Rule{one}, nil, true)
	f("no rules", nil, nil, true, "There are no rules")
	f("nobody there", []rule.Rule{one}, &bus.Flags{NATSURL: "nats://127.0.0.1:1"}, true, "cannot be reached")
	f("without credentials", []rule.Rule{one}, &bus.Flags{NATSURL: "nats://" + server.Addr()}, false, "refuses us")
	f("before its first start", []rule.Rule{one}, &bus.Flags{NATSURL: server.URL()}, true, "This program creates them")
	many := []rule.Rule{}
	for i := range 40 {
		r := one
		r.Name, r.Seconds = strings.Repeat("r", i+1), i+1
		many = append(many, r)
	}
	f("more windows than there can be", many, nil, false, "at most 32")
}

// TestBuiltIn: the names that a policy may use are those of the alarms.
func TestBuiltIn(t *testing.T) {
	var names []string
	for i := range alarms {
		names = append(names, alarms[i].Name)
	}
	if got, want := strings.Join(rule.BuiltIn, " "), strings.Join(names, " "); got != want {
		t.Errorf("rule.BuiltIn is %s, the alarms are %s", got, want)
	}
}

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/goccy/go-yaml"
)

// prometheusDir is what is deployed for Prometheus.
const prometheusDir = "../../deploy/prometheus"

// prometheusRules is a file of rules as Prometheus reads it.
type prometheusRules struct {
	Groups []struct {
		Name  string
		Rules []struct {
			Record, Alert, Expr string
			For                 string
			Labels, Annotations map[string]string
		}
	}
}

func readYAML(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err == nil {
		err = yaml.Unmarshal(b, v)
	}
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

// promtool runs it, and fails the test if it does not like what it is given.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), debian(t, "promtool", "prometheus"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %q: %v\n%s", args, err, out)
	}
}

// TestPrometheusRules has Prometheus's own tool read and test what is deployed.
func TestPrometheusRules(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "config", filepath.Join(prometheusDir, "prometheus.yml")) // and its rules
	promtool(t, "test", "rules", filepath.Join(prometheusDir, "ctfleet.test.yml"))
}

// TestPrometheusAlerts: each says how bad it is, what happened and what to do, and has
// a test in which it fires and one in which it does not.
func TestPrometheusAlerts(t *testing.T) {
	t.Parallel()
	var rules prometheusRules
	readYAML(t, filepath.Join(prometheusDir, "ctfleet.rules.yml"), &rules)
	var tests struct {
		Tests []struct {
			Checks []struct {
				Alert string `yaml:"alertname"`
				Fires []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	readYAML(t, filepath.Join(prometheusDir, "ctfleet.test.yml"), &tests)
	fires, quiet := map[string]bool{}, map[string]bool{}
	for _, c := range tests.Tests {
		for _, check := range c.Checks {
			if len(check.Fires) > 0 {
				fires[check.Alert] = true
			} else {
				quiet[check.Alert] = true
			}
		}
	}
	alerts := 0
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Alert == "" {
				continue
			}
			alerts++
			switch r.Labels["severity"] {
			case "info", "warning", "critical":
			default:
				t.Errorf("%s has the severity %q", r.Alert, r.Labels["severity"])
			}
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s does not say what happened, or what to do", r.Alert)
			}
			if !fires[r.Alert] || !quiet[r.Alert] {
				t.Errorf("%s: tested firing %t, not firing %t, want both", r.Alert, fires[r.Alert], quiet[r.Alert])
			}
		}
	}
	if alerts < 20 {
		t.Errorf("%d alerts in the rules file", alerts)
	}
}

package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/ctfleet/ctfleet/internal/reference"
)

var (
	seriesLine   = regexp.MustCompile(`(?m)^([a-z_]+)(\{.*\})? `)
	seriesLabel  = regexp.MustCompile(`(\w+)="((?:[^"\\]|\\.)*)"`)
	metricName   = regexp.MustCompile(`\b(?:ctfleet|nf_conntrack)_[a-z_]+`)
	ownMetric    = regexp.MustCompile(`\bctfleet_[a-z_]+`)
	dashed       = regexp.MustCompile(`\d+-\d+-\d+-\d+|[0-9a-f]{4}-[0-9a-f]{4}`) // an address in a subject
	notMetrics   = regexp.MustCompile(`"[^"]*"|\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)`)
	expressionID = regexp.MustCompile(`[\w:]+\s*\(?`)
)

// metricsIn returns the metrics that an expression of PromQL reads.
func metricsIn(expr string) (names []string) {
	for _, w := range expressionID.FindAllString(notMetrics.ReplaceAllString(expr, " "), -1) {
		switch {
		case strings.HasSuffix(w, "("), w[0] >= '0' && w[0] <= '9': // a function, a number
			continue
		}
		switch w = strings.TrimSpace(w); w {
		case "and", "or", "unless", "bool", "offset":
		default:
			names = append(names, w)
		}
	}
	return names
}

func TestMetricsIn(t *testing.T) {
	got := metricsIn(`max by (firewall) (rate(ctfleet_a_total{kind="x_y", firewall=~"$firewall"}[$__rate_interval])) > 1.5e3
		unless on (firewall) (a:b:c offset 5m and up{job="ctfleet_no"} == 1) or sum(nf_b)`)
	if want := []string{"ctfleet_a_total", "a:b:c", "up", "nf_b"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

// series are the time series of what /metrics says.
func series(body string) map[string]bool {
	out := map[string]bool{}
	for _, m := range seriesLine.FindAllStringSubmatch(body, -1) {
		out[m[1]+m[2]] = true
	}
	return out
}

// metricTable has a row for each metric that a daemon exports, with its labels.
func metricTable(body string) string {
	labels := map[string][]string{}
	for s := range series(body) {
		name, rest, _ := strings.Cut(s, "{")
		for _, l := range seriesLabel.FindAllStringSubmatch(rest, -1) {
			if !slices.Contains(labels[name], l[1]) {
				labels[name] = append(labels[name], l[1])
			}
		}
	}
	kinds := map[string]string{}
	for _, m := range regexp.MustCompile(`(?m)^# TYPE (\S+) (\S+)$`).FindAllStringSubmatch(body, -1) {
		kinds[m[1]] = m[2]
	}
	var table reference.Table
	table.Row("Metric", "Labels", "Kind", "")
	for _, m := range regexp.MustCompile(`(?m)^# HELP (\S+) (.*)$`).FindAllStringSubmatch(body, -1) {
		slices.Sort(labels[m[1]])
		table.Row(reference.Code(m[1]), reference.Code(strings.Join(labels[m[1]], ", ")), kinds[m[1]], m[2])
	}
	return table.String()
}

func missing(want, have map[string]bool) []string {
	var out []string
	for name := range want {
		if !have[name] {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

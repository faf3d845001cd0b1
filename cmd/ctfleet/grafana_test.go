package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
)

// dashboard is what a test asks of deploy/grafana/ctfleet.json.
type dashboard struct {
	UID           string
	SchemaVersion int `json:"schemaVersion"`
	Templating    struct {
		List []struct {
			Name, Type string
			Definition string
			Datasource *dataSource
		}
	}
	Panels []struct {
		ID                       int
		Type, Title, Description string
		Datasource               *dataSource
		GridPos                  struct{ X, Y, W, H int } `json:"gridPos"`
		Targets                  []struct {
			RefID      string `json:"refId"`
			Expr       string
			Datasource *dataSource
		}
	}
}

type dataSource struct{ Type, UID string }

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	if err := json.Unmarshal([]byte(read(t, "../../deploy/grafana/ctfleet.json")), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDashboard: it asks a data source that its user chooses, nothing overlaps, and
// Prometheus can parse each expression.
func TestDashboard(t *testing.T) {
	t.Parallel()
	d := readDashboard(t)
	if d.UID != "ctfleet" || d.SchemaVersion < 41 || len(d.Panels) < 30 {
		t.Errorf("uid %q, schema version %d, %d panels", d.UID, d.SchemaVersion, len(d.Panels))
	}
	chosen := func(what string, s *dataSource) {
		if s == nil || *s != (dataSource{"prometheus", "${datasource}"}) {
			t.Errorf("%s does not ask the data source that was chosen: %+v", what, s)
		}
	}
	for _, v := range d.Templating.List {
		if v.Type != "datasource" {
			chosen("the variable "+v.Name, v.Datasource)
		}
	}
	type rule struct {
		Record string `yaml:"record"`
		Expr   string `yaml:"expr"`
	}
	var rules []rule
	ids, taken := map[int]bool{}, map[[2]int]string{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("the id %d of %q is taken", p.ID, p.Title)
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other, there := taken[[2]int{x, y}]; there || x >= 24 {
					t.Fatalf("%q lies over %q, or out of the page", p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		if p.Type == "row" {
			continue
		}
		if p.Title == "" || p.Description == "" || len(p.Targets) == 0 {
			t.Errorf("panel %d, %q: no title, no description or nothing to show", p.ID, p.Title)
		}
		chosen(p.Title, p.Datasource)
		for _, target := range p.Targets {
			chosen(p.Title, target.Datasource)
			// As Grafana fills it in.
			expr := strings.NewReplacer("$__rate_interval", "1m", "$firewall", ".*").Replace(target.Expr)
			if strings.Contains(expr, "$") {
				t.Errorf("%s: a variable that is not there: %s", p.Title, expr)
			}
			rules = append(rules, rule{fmt.Sprintf("panel:%d:%s", p.ID, target.RefID), expr})
		}
	}
	b, err := yaml.Marshal(map[string]any{"groups": []any{map[string]any{"name": "dashboard", "rules": rules}}})
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file(t, "dashboard.rules.yml", string(b)))
}

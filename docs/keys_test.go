package docs

import (
	"flag"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/policy"
	"github.com/ctfleet/ctfleet/internal/reference"
	"github.com/ctfleet/ctfleet/internal/rule"
	"github.com/ctfleet/ctfleet/internal/seal"
)

var update = flag.Bool("update", false, "write the tables of reference/files.md anew")

// A key is what is said of one that cannot be read off its type.
type key struct{ def, text string } // def: instead of the value

// ruleKeys, policyKeys and trustKeys say what the keys of each file mean. Which there are and what
// they are by default comes from the code.
var (
	ruleKeys = map[string]key{
		"max_firing":             {"", "alerts that fire at a time, built-in alarms included; the rest is one alert, `max-firing`"},
		"rules[].name":           {"required", "as firewall names; unique in the file"},
		"rules[].track":          {"required", "`by_src`, `by_dst`, or `table` (with `table_percent`)"},
		"rules[].metric":         {"required", "`new`, `active`, `unreplied`, `table_percent`"},
		"rules[].scope":          {"`fleet`; `firewall` for `table`", "sum over the firewalls of a realm, or each by itself"},
		"rules[].count":          {"required", "fires at this value or more; a whole number, a percentage for `table_percent`"},
		"rules[].seconds":        {"required for `new` and `unreplied`", "the window, 1 to 3,600"},
		"rules[].for":            {"", "over this long before it fires"},
		"rules[].recover":        {"", "under `clear_ratio` × `count` this long before it is resolved"},
		"rules[].clear_ratio":    {"", "above 0, at most 1"},
		"rules[].prefix.ipv4":    {"", "bits of an address that count as one key"},
		"rules[].prefix.ipv6":    {"", "the same; 64 for a host that changes its address within its network"},
		"rules[].match.protocol": {"all", "only flows of this protocol, by name or number"},
		"rules[].match.dport":    {"all", "only flows to these ports"},
		"rules[].except":         {"none", "keys within these prefixes never fire"},
		"rules[].severity":       {"", "`info`, `warning`, `critical`"},
		"rules[].combine":        {"", "`max`: the largest firewall instead of the sum"},
	}
	policyKeys = map[string]key{
		"mode":                        {"", "`observe` decides and records; `approve` proposes to a person (`ctfleet approvals`); `enforce` sends commands"},
		"policies[].rule":             {"required", "the rule whose alerts are meant"},
		"policies[].action":           {"", "`flush`: delete the address's entries; `block`: drop its packets for `block_for`; `flush+block`: block, then flush; `relieve`: for `table_percent` alone (below)"},
		"policies[].block_for":        {"`10m` where the action blocks", "how long a block lasts, at most a day; not with `unanswered: delete`, since a block of a forged source would be its owner's"},
		"policies[].until_percent":    {"required for `relieve`", "how full the table may stay"},
		"policies[].where":            {"", "`alert`: the alert's firewalls; `realm`: all of its realm"},
		"policies[].mode":             {"the file's", "for this rule alone"},
		"policies[].unanswered":       {"", "`refuse`: a source whose flows were not answered may be forged, and the firewall leaves it alone; `delete`: only flows without an answer are deleted. For rules by destination see below"},
		"allowlist":                   {"none", "prefixes that are never acted upon, beside the live allowlist"},
		"cool_down":                   {"", "how long an address is left alone after an action; an alert that still fires is acted upon again then"},
		"max_age":                     {"", "how old an alert may be"},
		"approve_within":              {"", "how long a proposal waits for a person, at most a day"},
		"budget.addresses_per_minute": {"", "how many times an address is acted upon within any minute, by all responders together; 0: no limit, at most 500. The next one opens the circuit: all policies only observe until `ctfleet guard close`. What is only simulated has as many of its own, and opens nothing"},
		"budget.table_percent":        {"", "how much of one firewall's table one command may delete, in percent of its entries; the rest is refused, `over-budget`; 0: no limit"},
		"budget.realm_percent":        {"", "how much of all tables of a realm the commands about one address may delete together; 0: no limit"},
		"budget.firewalls":            {"", "on how many firewalls an address is acted upon at a time; where it would be more nothing is done; 0: no limit"},
	}
	trustKeys = map[string]key{
		"keys[].name":  {"required", "shown in receipts and audit"},
		"keys[].role":  {"required", "`operator`, or `responder`: whatever it asks for must hold in the firewall's own table"},
		"keys[].key":   {"required", "the public key, `U…`"},
		"keys[].verbs": {"required", "what it may ask for: `flush`, `block`, `unblock`; of an operator also `allowlist`, `approve`, `guard`"},
	}
)

// TestKeys: the tables of keys are those of the files, and say what a file means that leaves
// them out.
func TestKeys(t *testing.T) {
	rules, file := rule.NewFile(), policy.Default()
	rules.Rules = []rule.Rule{rule.Default()}
	file.Policies = []policy.Policy{{Rule: "some-rule"}}
	if err := file.Validate(); err != nil { // fills in what is left out
		t.Fatal(err)
	}
	for _, f := range []struct {
		name  string
		value any
		keys  map[string]key
	}{{"keys of rules", rules, ruleKeys}, {"keys of policies", file, policyKeys}, {"keys of trust", seal.File{Keys: []seal.Party{{}}}, trustKeys}} {
		var table reference.Table
		table.Row("Key", "Default", "")
		seen := map[string]bool{}
		leaves(reflect.ValueOf(f.value), "", func(path, def string) {
			k, ok := f.keys[path]
			if !ok {
				t.Errorf("%s: %s is new: say here what it means", f.name, path)
			}
			seen[path] = true
			if k.def != "" {
				def = k.def
			} else {
				def = "`" + def + "`"
			}
			table.Row("`"+path+"`", def, k.text)
		})
		for path := range f.keys {
			if !seen[path] {
				t.Errorf("%s: there is no %s any more", f.name, path)
			}
		}
		reference.Block(t, *update, "reference/files.md", f.name, "`go test ./docs -run Keys -update`", table.String())
	}
}

// leaves calls f with the path and the value of each key that holds no others.
func leaves(v reflect.Value, path string, f func(path, value string)) {
	switch {
	case v.Kind() == reflect.Struct:
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
			if name == "-" || name == "" {
				continue
			}
			below := name
			if path != "" {
				below = path + "." + name
			}
			leaves(v.Field(i), below, f)
		}
	case v.Kind() == reflect.Slice && v.Len() == 1 && v.Type().Elem().Kind() == reflect.Struct:
		leaves(v.Index(0), path+"[]", f)
	default:
		value := fmt.Sprint(v.Interface())
		if d, ok := reflect.TypeAssert[time.Duration](v); ok {
			value = short(d)
		}
		f(path, value)
	}
}

// short writes a duration as one would in a file: 10m, not 10m0s.
func short(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = s[:len(s)-2]
	}
	if strings.HasSuffix(s, "h0m") {
		s = s[:len(s)-2]
	}
	return s
}

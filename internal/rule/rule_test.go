package rule_test

import (
	"math"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"

	"github.com/ctfleet/ctfleet/internal/config"
	"github.com/ctfleet/ctfleet/internal/rule"
)

func parse(text string) (rule.File, error) {
	f := rule.NewFile()
	err := config.Parse("rules.yaml", []byte(text), &f)
	return f, err
}

func TestRead(t *testing.T) {
	f, err := parse(`
rules:
  - name: new-flows-by-source
    track: by_src
    metric: new
    scope: fleet
    count: 3500
    seconds: 10
    for: 5s
    recover: 1m
    clear_ratio: 0.5
    prefix: {ipv4: 24, ipv6: 64}
    match: {protocol: tcp, dport: [22, 2222]}
    except: [198.51.100.0/24, 2001:db8::1]
    severity: critical
    combine: max
  - {name: short, track: by_dst, metric: active, count: 1000, match: {protocol: 17, dport: 53}, except: 192.0.2.0/24}
  - {name: full, track: table, metric: table_percent, count: 87.5}
`)
	if err != nil {
		t.Fatal(err)
	}
	short, full := rule.Default(), rule.Default()
	short.Name, short.Track, short.Metric, short.Count = "short", rule.ByDst, rule.Active, 1000
	short.Match = rule.Match{Protocol: 17, DPort: rule.Ports{53}}
	short.Except = rule.Prefixes{netip.MustParsePrefix("192.0.2.0/24")}
	full.Name, full.Track, full.Metric, full.Count, full.Scope = "full", rule.Table, rule.TablePercent, 87.5, rule.Firewall
	want := rule.File{MaxFiring: 100, Rules: []rule.Rule{{
		Name: "new-flows-by-source", Track: rule.BySrc, Metric: rule.New, Scope: rule.Fleet, Count: 3500, Seconds: 10,
		For: 5 * time.Second, Recover: time.Minute, ClearRatio: 0.5, Prefix: rule.Prefix{IPv4: 24, IPv6: 64},
		Match:    rule.Match{Protocol: 6, DPort: rule.Ports{22, 2222}},
		Except:   rule.Prefixes{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
		Severity: rule.Critical, Combine: rule.Max,
	}, short, full}}
	if !reflect.DeepEqual(f, want) {
		t.Errorf("read\n%+v, want\n%+v", f, want)
	}
	if got := f.Rules[0].Match.Protocol.String(); got != "tcp" {
		t.Errorf("protocol 6 is %q, want tcp", got)
	}
	if f, err := parse("rules: []\n"); err != nil || f.MaxFiring != 100 || len(f.Rules) != 0 {
		t.Errorf("no rules: %+v, %v", f, err)
	}
	if f, err := parse("max_firing: 7\n"); err != nil || f.MaxFiring != 7 {
		t.Errorf("max_firing: %+v, %v", f, err)
	}
}

// TestRefused: each mistake gets one line that names the place, the rule and the key.
func TestRefused(t *testing.T) {
	// f replaces a part of a good file (or adds to its end) and wants an error.
	const good = `rules:
  - name: one
    track: by_src
    metric: new
    count: 100
    seconds: 10
`
	f := func(old, new, want string) {
		t.Helper()
		text := good + new
		if old != "" {
			text = strings.Replace(good, old, new, 1)
		}
		_, err := parse(text)
		if err == nil || err.Error() != want {
			t.Errorf("%s\ngives  %v\nwanted %s", text, err, want)
		}
	}
	f("seconds: 10", "seconds: -5", "rules.yaml:6:14: rule one: seconds: must be 1 to 3600, not -5")
	f("seconds: 10", "seconds: 3601", "rules.yaml:6:14: rule one: seconds: must be 1 to 3600, not 3601")
	f("    seconds: 10\n", "", "rules.yaml:2:5: rule one: seconds: must be 1 to 3600, not 0")
	f("seconds: 10", "second: 10", `rules.yaml:6:5: unknown key "second", did you mean "seconds"?`)
	f("metric: new", "metric: active", "rules.yaml:6:14: rule one: seconds: active is a value of now and has no window")
	f("metric: new", "metric: newer", `rules.yaml:4:13: rule one: metric: must be new or active or unreplied or table_percent, not "newer"`)
	f("metric: new", "metric: table_percent", "rules.yaml:4:13: rule one: metric: table_percent goes with track: table and no other, not table_percent with by_src")
	f("track: by_src", "track: src", `rules.yaml:3:12: rule one: track: must be by_src or by_dst or table, not "src"`)
	f("count: 100", "count: 0", "rules.yaml:5:12: rule one: count: must be a whole number from 1 to 1e+12, not 0")
	f("count: 100", "count: 1.5", "rules.yaml:5:12: rule one: count: must be a whole number from 1 to 1e+12, not 1.5")
	f("count: 100", "count: .nan", "rules.yaml:5:12: rule one: count: must be a whole number from 1 to 1e+12, not NaN")
	f("name: one", "name: One", `rules.yaml:2:11: rule "One": name: name "One": 'O' at position 1 is not allowed (a-z, 0-9, and after the first character - and _)`)
	f("name: one", "name: max-firing", "rules.yaml:2:11: rule max-firing: name: is the name of the summary of what max_firing holds back")
	f("", "    for: -1s\n", "rules.yaml:7:10: rule one: for: must be 0s to 24h0m0s, not -1s")
	f("", "    recover: 48h\n", "rules.yaml:7:14: rule one: recover: must be 0s to 24h0m0s, not 48h0m0s")
	f("", "    clear_ratio: 0\n", "rules.yaml:7:18: rule one: clear_ratio: must be above 0 and at most 1, not 0")
	f("", "    prefix: {ipv4: 33}\n", "rules.yaml:7:20: rule one: prefix.ipv4: must be 1 to 32, not 33")
	f("", "    prefix:\n      ipv6: 0\n", "rules.yaml:8:13: rule one: prefix.ipv6: must be 1 to 128, not 0")
	f("", "    match: {protocol: tpc}\n", `rules.yaml:7:23: protocol must be 1 to 255, or icmp, igmp, tcp, udp, dccp, ipv6, gre, esp, ah, icmpv6, ospf, sctp, udplite, not "tpc"`)
	f("", "    match: {protocol: icmp, dport: 3}\n", "rules.yaml:7:36: rule one: match.dport: protocol icmp has no ports")
	f("", "    match: {dport: [22, 70000]}\n", `rules.yaml:7:25: port must be 1 to 65535, not "70000"`)
	f("", "    match: {dport: {a: 1}}\n", "rules.yaml:7:21: a single value is expected here")
	f("", "    except: [10.0.0.0/33]\n", `rules.yaml:7:14: "10.0.0.0/33" is not a network such as 198.51.100.0/24`)
	f("", "    except:\n      - 10.0.0.0/8\n      - 10.1.0.0/8\n", "rules.yaml:9:9: 10.1.0.0/8 has bits beyond its length, did you mean 10.0.0.0/8?")
	f("", "    severity: high\n", `rules.yaml:7:15: rule one: severity: must be info or warning or critical, not "high"`)
	f("", "    scope: firewall\n    combine: max\n", "rules.yaml:8:14: rule one: combine: max goes with scope: fleet: a single firewall has nothing to combine")
	f("", "max_firing: 0\n", "rules.yaml:7:13: max_firing: must be at least 1, not 0")
	f("", "  - {name: one, track: by_dst, metric: new, count: 5, seconds: 1}\n", "rules.yaml:7:12: rule one: name: two rules have this name")
	f("", "  - {name: two, track: table, metric: table_percent, count: 101}\n", "rules.yaml:7:61: rule two: count: must be above 0 and at most 100 percent, not 101")
	f("", "  - {name: two, track: table, metric: table_percent, count: 90, scope: fleet}\n", "rules.yaml:7:72: rule two: scope: a table is a firewall's: must be firewall")
	f("", "  - {name: two, track: table, metric: table_percent, count: 90, except: 10.0.0.0/8}\n", "rules.yaml:7:73: rule two: except: a table has no addresses")
}

func TestValidateNaN(t *testing.T) {
	r := rule.Default()
	r.Name, r.Track, r.Metric, r.Count, r.Seconds = "one", rule.BySrc, rule.New, 1, 1
	if err := r.Validate(); err != nil {
		t.Fatal(err)
	}
	r.ClearRatio = math.NaN()
	if err := r.Validate(); err == nil {
		t.Error("a clear_ratio that is no number was accepted")
	}
}

// FuzzRead puts any values in well-formed YAML: what is accepted is valid, and can
// be written and read again.
func FuzzRead(f *testing.F) {
	f.Add("one", "tcp", "22", "198.51.100.0/24", 100.0, 10, false)
	f.Add("two", "132", "0x16", "2001:db8::1", 0.5, -1, true)
	f.Fuzz(func(t *testing.T, name, protocol, port, except string, count float64, seconds int, list bool) {
		one := func(s string) any {
			if list {
				return []string{s, s}
			}
			return s
		}
		text, err := yaml.Marshal(map[string]any{"rules": []any{map[string]any{
			"name": name, "track": "by_src", "metric": "new", "count": count, "seconds": seconds, "except": one(except),
			"match": map[string]any{"protocol": protocol, "dport": one(port)},
		}}})
		if err != nil {
			t.Skip("not for YAML")
		}
		file, err := parse(string(text))
		if err != nil {
			return
		}
		if err := file.Validate(); err != nil {
			t.Fatalf("%s\naccepted, and yet: %v", text, err)
		}
		if text, err = yaml.Marshal(file); err != nil {
			t.Fatal(err)
		}
		if again, err := parse(string(text)); err != nil || !reflect.DeepEqual(again, file) {
			t.Errorf("written as\n%s\nand read as %+v (%v), want %+v", text, again, err, file)
		}
	})
}

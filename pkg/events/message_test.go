package events_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/vmihailenco/msgpack/v5"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// messages is one of each, with every field set.
func messages() []events.Message {
	health := events.Health{
		Firewall: "fw-a", Realm: "default", Boot: strings.Repeat("ab", 16), Labels: map[string]string{"site": "lis1", "rack": "4"},
		Version: "1.2.3", Config: "9f86d081", Sent: 1 << 50, Started: 1_700_000_000_000, Stopping: true,
		Table:      events.TableHealth{Count: 50_000, Limit: 262_144, Buckets: 65_536, Percent: 19.07},
		Kernel:     events.KernelHealth{Drop: 1, EarlyDrop: 2, InsertFailed: 3, Invalid: 4, SearchRestart: 5, ClashResolve: 6, ChainTooLong: 7},
		AllowFlush: true, TCPLoose: true, Problems: []string{"nf_conntrack_acct is 0: counters stay empty"},
		Stream: events.StreamHealth{
			Events: 10, Published: 9, LostSocket: 1, LostRing: 2, LostBus: 3, Undecodable: 4, RingBytes: 5, RingLimit: 6, Buffer: 7,
			BufferUsed: 8, LingerMS: 10, LagMS: 11, Epoch: 12, Live: 13, Resyncing: true, Resyncs: 14, Unannounced: true,
		},
	}
	alert := events.Alert{
		ID: "0123abcd", Rule: "new-flows-by-source", State: events.Firing, Severity: "critical", Scope: "fleet", Realm: "default",
		Key: "203.0.113.7", Track: "by_src", Metric: events.MetricNew, Value: 4001, Count: 3500, Seconds: 10, Peak: 4001,
		Started: 1_700_000_000_000, Updated: 1_700_000_000_100, Firewalls: map[string]float64{"fw-a": 2001, "fw-b": 2000},
		Peers: []events.Share{{Value: "198.51.100.1", Count: 12}}, Ports: []events.Share{{Value: "tcp/443", Count: 12}}, SampleSize: 12,
		Slots: []uint64{0, 1, 4000}, SlotMS: 500, SlotsEnd: 1_700_000_000_500,
		Unreplied: new(0.5), Allowlisted: true, Lossy: true, Stale: true, Approximate: true, Muted: true, Simulated: true, Partial: true,
		Text: "203.0.113.7 opened 4001 flows in 10 s on 2 firewalls, 3500 are allowed",
	}
	return []events.Message{
		&health, &alert,
		&events.Command{
			ID: "c1", Verb: events.VerbFlush, Firewall: "fw-a", Boot: health.Boot, Expires: 1 << 51, Actor: events.ActorOperator, Reason: "scan",
			Alert: alert.ID, Rule: alert.Rule, Addresses: []string{"203.0.113.7", "2001:db8::/64"}, By: events.BySrc, DryRun: true,
		},
		&events.Receipt{
			ID: "c1", Firewall: "fw-a", Verb: events.VerbFlush, Actor: events.ActorOperator, Reason: "scan", Alert: alert.ID, Rule: alert.Rule,
			Addresses: []string{"203.0.113.7"}, By: events.BySrc, Time: 1_700_000_000_200, DryRun: true, Matched: 5, Deleted: 3, Gone: 1,
			Refused: []events.Refusal{{Reason: "offloaded", Count: 1}}, Residual: new(uint64(0)), TCPLoose: true, TableBefore: 100, TableAfter: 97,
			DurationMS: 1.5, Error: "delete: no such entry",
		},
		&events.Decision{
			ID: "d1", Alert: alert.ID, Rule: alert.Rule, Scope: "fleet", Realm: "default", Key: alert.Key, Mode: "enforce", Action: "flush",
			Outcome: events.OutcomeCommanded, Reason: "policy", Firewalls: []string{"fw-a"}, Commands: []string{"c1"}, Time: 5, Simulated: true,
		},
		&events.AllowEntry{Prefix: "10.0.0.0/8", Realm: "lis1", Except: true, Comment: "backup run", Until: 1_700_000_000_000, Removed: true, Time: 1},
		&events.Act{Verb: events.VerbAllowlist, What: "added 10.0.0.0/8", Who: "alice", Key: "10.0.0.0/8", Realm: "lis1", ID: "d1", Reason: "backup run", Before: "0011", After: "2233", Time: 5},
		&events.Proposal{Decision: events.Decision{ID: "d1", Rule: alert.Rule, Outcome: events.OutcomeProposed, Address: alert.Key}, Text: alert.Text, Expires: 6},
		&events.Answer{ID: "d1", Approve: true, Digest: "00ff", Reason: "seen", Time: 7},
		&events.Outcome{ID: "d1", Outcome: events.OutcomeCommanded, Who: "alice", Time: 8},
		&events.Ledger{Acts: []events.Acted{{Realm: "default", Address: alert.Key, Alert: alert.ID, Updated: 1, At: 2, Until: 3, Simulated: true}}, Circuit: events.Circuit{Open: true, Since: 4, Why: "spent", Who: "alice"}},
		&events.CircuitOrder{Open: true, Reason: "wrong rule", Time: 9},
		&events.Mute{Firewall: "fw-a", Until: 1_700_000_060_000, Reason: "new disk", Time: 1_700_000_000_000},
		&events.Dismissal{Firewall: "fw-a", Boot: health.Boot, Sent: 1 << 50, Reason: "sold", Time: 1_700_000_000_000},
		&events.Pace{LingerMS: 100, Fleet: 1000},
		&events.TopQuery{By: events.ByDst, Metric: events.MetricActive, WindowS: 60, Firewall: "fw-a", Realm: "lab", Limit: 50, At: 1_795_615_500_000, Prefix: "203.0.113.0/24", Allowlisted: events.AllowlistedHide},
		&events.TopReply{
			By: "src", Metric: "new", WindowS: 30, Scope: "fleet", Rows: []events.TopRow{{Key: "203.0.113.7", Value: 7, Firewalls: map[string]uint64{"fw-a": 7}}},
			Unknown: []string{"fw-b"}, Stale: []string{"fw-c"}, Partial: true, Windows: []int{10, 60},
		},
		&events.FirewallsQuery{},
		&events.FirewallsReply{Firewalls: []events.FirewallStatus{{
			Health: health, State: events.StateStale, AgeMS: 3500, Events: 1, EventsPerS: 0.5, Lost: 2, Missing: 3, Duplicates: 4, Refused: 5,
			ActiveKnown: true, Active: 6, Approximate: true, Boots: 7, Rivals: true, MutedUntil: 8, Behind: true, Differs: true,
		}}, Version: "1.2.4", Rules: "0123456789ab", Newest: "1.2.4", Config: "ba9876543210"},
		&events.AlertsQuery{State: events.AlertsPast, Since: 1_795_615_500_000},
		&events.AlertsReply{Alerts: []events.Alert{alert}, More: true},
		&events.AddressQuery{Address: "203.0.113.7", Realm: "lab"},
		&events.AddressReply{
			Address: "203.0.113.7", Realm: "lab",
			Src: events.AddressSide{
				Counts: []events.AddressCount{
					{Metric: "new", WindowS: 10, Value: new(uint64(7)), Firewalls: map[string]uint64{"fw-a": 7}, Partial: true},
					{Metric: "active", Firewalls: map[string]uint64{}},
					{Metric: "unreplied", WindowS: 10, Value: new(uint64(1)), Share: new(0.5), Firewalls: map[string]uint64{"fw-a": 1}},
				},
				Peers: []events.Share{{Value: "198.51.100.7", Count: 3}}, Ports: []events.Share{{Value: "tcp/443", Count: 3}}, SampleSize: 3,
			},
			Dst:         events.AddressSide{Counts: []events.AddressCount{}, Peers: []events.Share{}, Ports: []events.Share{}},
			Allowlisted: &events.AddressEntry{Prefix: "203.0.113.0/24", Why: "live allowlist"},
			Alerts:      []events.Alert{alert}, Past: []events.Alert{}, More: true,
			Decisions: []events.Decision{{ID: "d1", Rule: alert.Rule}}, Receipts: []events.Receipt{}, Acts: []events.Act{{Verb: events.VerbAllowlist}},
			Unknown: []string{"fw-b"}, Stale: []string{"fw-c"}, Lossy: true,
		},
		&events.ResyncReply{Firewall: "fw-a", Accepted: true, Reason: "busy", Epoch: 3},
	}
}

func name(m events.Message) string { return reflect.TypeOf(m).Elem().Name() }

func TestMessageRoundTrip(t *testing.T) {
	for _, m := range messages() {
		t.Run(name(m), func(t *testing.T) {
			data, err := events.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			got := reflect.New(reflect.TypeOf(m).Elem()).Interface().(events.Message)
			if err := events.Unmarshal(data, got); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, m) {
				t.Errorf("\n got %+v\nwant %+v", got, m)
			}
			again, err := events.Marshal(got)
			if err != nil || !bytes.Equal(again, data) {
				t.Errorf("encoded twice it differs: %v\n%x\n%x", err, again, data)
			}
		})
	}
}

// TestMessageKeys holds that the JSON keys are the msgpack keys, and that the
// version stands at the top of both.
func TestMessageKeys(t *testing.T) {
	for _, m := range messages() {
		t.Run(name(m), func(t *testing.T) {
			packed, err := events.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			var asMsgpack, asJSON map[string]any
			if err := msgpack.Unmarshal(packed, &asMsgpack); err != nil {
				t.Fatal(err)
			}
			text, err := json.Marshal(m)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(text, &asJSON); err != nil {
				t.Fatal(err)
			}
			if got, want := keys(asMsgpack), keys(asJSON); !slices.Equal(got, want) {
				t.Errorf("msgpack has %q,\nJSON has %q", got, want)
			}
			if v := reflect.ValueOf(asMsgpack["v"]); !v.CanInt() || v.Int() != events.MessageVersion {
				t.Errorf(`"v" is %v in msgpack`, asMsgpack["v"])
			}
			if asJSON["v"] != float64(events.MessageVersion) {
				t.Errorf(`"v" is %v in JSON`, asJSON["v"])
			}
		})
	}
}

// keys lists all keys of nested maps as paths.
func keys(v any) (out []string) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			out = append(out, k)
			for _, below := range keys(v[k]) {
				out = append(out, k+"."+below)
			}
		}
	case []any:
		for _, e := range v {
			out = append(out, keys(e)...)
		}
	}
	return out
}

// TestLargeAnswers: a fleet of 1,000 firewalls, all of which see the same addresses.
func TestLargeAnswers(t *testing.T) {
	fleet, top := &events.FirewallsReply{}, &events.TopReply{By: "src", Metric: "new", Scope: "fleet", Rows: make([]events.TopRow, 50)}
	for i := range 1000 {
		f := events.FirewallStatus{State: events.StateFresh}
		f.Firewall, f.Realm, f.Boot, f.Version, f.Config = fmt.Sprintf("branch-%d", i), events.RealmDefault, strings.Repeat("0f", 16), "v0.1.0", strings.Repeat("a", 16)
		f.Stream = events.StreamHealth{Events: 1 << 40, Published: 1 << 40, RingLimit: 64 << 20, Buffer: 8 << 20}
		fleet.Firewalls = append(fleet.Firewalls, f)
		for j := range top.Rows {
			r := &top.Rows[j]
			r.Key = fmt.Sprintf("198.18.0.%d", j)
			if r.Firewalls == nil {
				r.Firewalls = events.ByName[uint64]{}
			}
			r.Firewalls[f.Firewall] = 1000
		}
	}
	for _, m := range []events.Message{fleet, top} {
		data, err := events.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		again := reflect.New(reflect.TypeOf(m).Elem()).Interface().(events.Message)
		if err := events.Unmarshal(data, again); err != nil || len(data) <= events.MaxMessageBytes {
			t.Errorf("%T: %d bytes: %v", m, len(data), err)
		}
		if err := events.Unmarshal(make([]byte, events.MaxAnswerBytes+1), again); err == nil || !strings.Contains(err.Error(), "at most 1048576 are allowed") {
			t.Errorf("%T, too long: %v", m, err)
		}
	}
}

func TestUnmarshalForgets(t *testing.T) {
	data, err := events.Marshal(&events.TopQuery{By: events.BySrc})
	if err != nil {
		t.Fatal(err)
	}
	q := events.TopQuery{Firewall: "fw-a", Limit: 9}
	if err := events.Unmarshal(data, &q); err != nil {
		t.Fatal(err)
	}
	if q.Firewall != "" || q.Limit != 0 {
		t.Errorf("what stood there before is still there: %+v", q)
	}
}

func TestReceiptRefusedIsNeverNull(t *testing.T) {
	r := events.Receipt{Firewall: "fw-a", Refused: []events.Refusal{}}
	data, err := events.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Unmarshal(data, &r); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(&r)
	if err != nil || !strings.Contains(string(text), `"refused":[]`) || !strings.Contains(string(text), `"residual":null`) {
		t.Errorf("%v %s", err, text)
	}
}

func TestUnmarshalMalformed(t *testing.T) {
	pack := func(m map[string]any) []byte {
		data, err := msgpack.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	for name, c := range map[string]struct {
		data []byte
		want string
	}{
		"nothing":             {nil, "not a msgpack map"},
		"an array":            {[]byte{0x92, 1, 2}, "not a msgpack map"},
		"no version":          {pack(map[string]any{"linger_ms": 1}), "unknown version 0"},
		"a newer version":     {pack(map[string]any{"v": 2}), "unknown version 2, this program reads 1"},
		"a negative version":  {pack(map[string]any{"v": -1}), "unknown version -1"},
		"text for a number":   {pack(map[string]any{"v": 1, "linger_ms": "x"}), "decode *events.Pace"},
		"bytes after the end": {append(pack(map[string]any{"v": 1}), 0xc0), "1 bytes after its end"},
		"truncated":           {[]byte{0x82, 0xa1, 'v', 1}, "key"},
		"a repeated key":      {[]byte{0x82, 0xa1, 'v', 1, 0xa1, 'v', 1}, `key "v" appears twice`},
		"a key of no string":  {[]byte{0x81, 1, 1}, "key"},
		"a huge map":          {[]byte{0xdf, 0xff, 0xff, 0xff, 0xff}, "at most 1024 are allowed"},
		"a huge array":        {[]byte{0x81, 0xa1, 'x', 0xdd, 0xff, 0xff, 0xff, 0xff}, `key "x"`},
		"a huge text":         {[]byte{0x81, 0xa1, 'x', 0xdb, 0xff, 0xff, 0xff, 0xff}, `key "x"`},
		"deep nesting":        {append([]byte{0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x81, 0xa1, 'y'}, 80_000)...), `key "x"`},
		"too long":            {make([]byte, events.MaxMessageBytes+1), "at most 262144 are allowed"},
		"out of its bounds":   {pack(map[string]any{"v": 1, "linger_ms": 2001}), "linger_ms: 2001, at most 2000 is allowed"},
		"unknown keys":        {pack(map[string]any{"v": 1, "linger_ms": 5, "later": []any{map[string]any{"a": 1}}}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			var p events.Pace
			err := events.Unmarshal(c.data, &p)
			switch {
			case c.want == "" && (err != nil || p.LingerMS != 5):
				t.Errorf("error is %v, linger %d", err, p.LingerMS)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
				t.Errorf("error is %v, want one with %q", err, c.want)
			case strings.Contains(c.want, "unknown version") && !errors.Is(err, events.ErrVersion):
				t.Errorf("%v is not ErrVersion", err)
			}
		})
	}
}

// TestValidate changes one field of a valid message and expects to be told of
// that field.
func TestValidate(t *testing.T) {
	all := map[string]events.Message{}
	for _, m := range messages() {
		all[name(m)] = m
	}
	fresh := func() map[string]events.Message {
		out := map[string]events.Message{}
		for _, m := range messages() {
			out[name(m)] = m
		}
		return out
	}
	for n, m := range all {
		if err := m.Validate(); err != nil {
			t.Errorf("%s: %v", n, err)
		}
	}
	const escape = "a\x1b[31mb"
	for _, c := range []struct {
		message string
		change  func(events.Message)
		want    string
	}{
		{"Health", func(m events.Message) { m.(*events.Health).Firewall = "fw.a" }, `firewall name "fw.a"`},
		{"Health", func(m events.Message) { m.(*events.Health).Firewall = "realm_x" }, "reserved"},
		{"Health", func(m events.Message) { m.(*events.Health).Realm = "a_z1" }, "conntrack zone"},
		{"Health", func(m events.Message) { m.(*events.Health).Version = escape }, "version: control characters"},
		{"Health", func(m events.Message) { m.(*events.Health).Labels["x"] = "line\nline" }, "label: control characters"},
		{"Health", func(m events.Message) { m.(*events.Health).Problems[0] = "\u202egnp.exe" }, "problem: control characters"},
		{"Health", func(m events.Message) { m.(*events.Health).Config = "\xff\xfe" }, "config: not UTF-8"},
		{"Health", func(m events.Message) { m.(*events.Health).Table.Percent = math.NaN() }, "table.percent: NaN"},
		{"Alert", func(m events.Message) { m.(*events.Alert).State = "maybe" }, `state: "maybe" is none of`},
		{"Alert", func(m events.Message) { m.(*events.Alert).Rule = "" }, "rule: name is empty"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Scope = "a b" }, "scope: name"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Realm = strings.Repeat("r", 64) }, "at most 63 are allowed"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Key = escape }, "key: control characters"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Text = strings.Repeat("x", 1025) }, "text: 1025 bytes"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Ports[0].Value = escape }, "sample: control characters"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Peers[0].Value = escape }, "sample: control characters"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Firewalls["x y"] = 1 }, "firewall name"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Firewalls["fw-a"] = math.Inf(1) }, "firewalls: +Inf"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Peak = math.Inf(-1) }, "value: -Inf"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Slots = make([]uint64, 101) }, "slots: 101, at most 100"},
		{"Alert", func(m events.Message) { m.(*events.Alert).SlotMS = 0 }, "slots: of 0 ms"},
		{"Alert", func(m events.Message) { m.(*events.Alert).SlotMS = 3_600_001 }, "slots: of 3600001 ms"},
		{"Alert", func(m events.Message) { m.(*events.Alert).SlotsEnd = -1 }, "until -1"},
		{"Alert", func(m events.Message) { m.(*events.Alert).SlotsEnd = 1 << 62 }, "there is no such time"},
		{"Alert", func(m events.Message) { m.(*events.Alert).Unreplied = new(math.NaN()) }, "unreplied: NaN"},
		{"Command", func(m events.Message) { m.(*events.Command).Verb = "rm" }, `verb: "rm" is none of`},
		{"Command", func(m events.Message) { m.(*events.Command).ID = "" }, "id: is empty"},
		{"Command", func(m events.Message) { m.(*events.Command).By = "" }, `by: "" is none of`},
		{"Command", func(m events.Message) { m.(*events.Command).Addresses = nil }, "addresses: is empty"},
		{"Command", func(m events.Message) { m.(*events.Command).Addresses = []string{"10.0.0.1/8"} }, "10.0.0.0/8 is meant?"},
		{"Command", func(m events.Message) { m.(*events.Command).Addresses = make([]string, 1025) }, "addresses: 1025, at most 1024"},
		{"Command", func(m events.Message) { m.(*events.Command).Reason = escape }, "reason: control characters"},
		{"Receipt", func(m events.Message) { m.(*events.Receipt).Error = escape }, "error: control characters"},
		{"Receipt", func(m events.Message) { m.(*events.Receipt).Refused[0].Reason = escape }, "refused: control characters"},
		{"Receipt", func(m events.Message) { m.(*events.Receipt).DurationMS = math.NaN() }, "duration_ms: NaN"},
		{"Decision", func(m events.Message) { m.(*events.Decision).Rule = "A" }, "rule: name"},
		{"Decision", func(m events.Message) { m.(*events.Decision).Commands[0] = escape }, "commands: control characters"},
		{"TopQuery", func(m events.Message) { m.(*events.TopQuery).By = "by" }, `by: "by" is none of`},
		{"TopQuery", func(m events.Message) { m.(*events.TopQuery).Limit = -1 }, "limit: -1"},
		{"TopQuery", func(m events.Message) { m.(*events.TopQuery).At = -1 }, "at: -1"},
		{"TopQuery", func(m events.Message) { m.(*events.TopQuery).Prefix = "203.0.113.7/24" }, "prefix: "},
		{"TopQuery", func(m events.Message) { m.(*events.TopQuery).Allowlisted = "show" }, "allowlisted: "},
		{"Mute", func(m events.Message) { m.(*events.Mute).Firewall = "fleet" }, "reserved"},
		{"Mute", func(m events.Message) { m.(*events.Mute).Until = -1 }, "until: -1"},
		{"Mute", func(m events.Message) { m.(*events.Mute).Until += 31 * 24 * 3_600_000 }, "is more than 720h0m0s after"},
		{"Mute", func(m events.Message) { m.(*events.Mute).Time = 1 << 62 }, "is no time"},
		{"Mute", func(m events.Message) { m.(*events.Mute).Reason = escape }, "reason: control characters"},
		{"Dismissal", func(m events.Message) { m.(*events.Dismissal).Firewall = "a b" }, "firewall name"},
		{"Dismissal", func(m events.Message) { m.(*events.Dismissal).Boot = escape }, "boot: control characters"},
		{"AlertsQuery", func(m events.Message) { m.(*events.AlertsQuery).State = "over" }, "state: "},
		{"AlertsQuery", func(m events.Message) { m.(*events.AlertsQuery).Since = -1 }, "since: -1"},
		{"AddressQuery", func(m events.Message) { m.(*events.AddressQuery).Address = "203.0.113.0/24" }, "address: "},
		{"AddressQuery", func(m events.Message) { m.(*events.AddressQuery).Address = "fe80::1%eth0" }, "address: "},
		{"AddressQuery", func(m events.Message) { m.(*events.AddressQuery).Realm = "A" }, "realm: "},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Address = escape }, "address: "},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Src.Counts[0].Metric = "ended" }, "metric: "},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Src.Counts[2].Share = new(math.NaN()) }, "share: NaN"},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Src.Ports[0].Value = escape }, "sample: control"},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Allowlisted.Why = escape }, "allowlisted: control"},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Alerts[0].Text = escape }, "text: control"},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Decisions[0].Reason = escape }, "reason: control"},
		{"AddressReply", func(m events.Message) { m.(*events.AddressReply).Acts[0].What = escape }, "what: control"},
		{"TopReply", func(m events.Message) { m.(*events.TopReply).Rows[0].Key = escape }, "key: control characters"},
		{"TopReply", func(m events.Message) { m.(*events.TopReply).Unknown[0] = escape }, "firewalls: control characters"},
		{"FirewallsReply", func(m events.Message) { m.(*events.FirewallsReply).Firewalls[0].State = "" }, "state:"},
		{"FirewallsReply", func(m events.Message) { m.(*events.FirewallsReply).Firewalls[0].Boot = escape }, "boot: control"},
		{"AlertsReply", func(m events.Message) { m.(*events.AlertsReply).Alerts[0].ID = escape }, "id: control characters"},
		{"ResyncReply", func(m events.Message) { m.(*events.ResyncReply).Reason = escape }, "reason: control characters"},
	} {
		m := fresh()[c.message]
		c.change(m)
		if err := m.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error is %v, want one with %q", c.message, err, c.want)
		}
	}
}

func TestLostIsTheSum(t *testing.T) {
	h := messages()[0].(*events.Health)
	if got := h.Stream.Lost(); got != 1+2+3+4 {
		t.Errorf("Lost is %d, want 10", got)
	}
}

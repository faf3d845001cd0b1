package audit

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/seal"
	"github.com/ctfleet/ctfleet/pkg/events"
)

func read(t *testing.T, subject string, m events.Message) (Entry, error) {
	t.Helper()
	data, err := events.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	everybody, err := seal.OpenTrust(seal.TrustNone)
	if err != nil {
		t.Fatal(err)
	}
	return Read(&bus.Msg{Subject: subject, Data: data, Time: time.Unix(1_790_000_000, 0)}, everybody)
}

func TestRead(t *testing.T) {
	f := func(subject string, m events.Message, want string) {
		t.Helper()
		if _, err := read(t, subject, m); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", subject, err, want)
		}
	}
	receipt := &events.Receipt{ID: "1", Firewall: "fw-a", Verb: "flush"}
	f("ct.v1.audit.fw-a.flush", receipt, "")
	f("ct.v1.audit.fw-b.flush", receipt, "fw-b wrote a receipt in the name of fw-a")
	f("ct.v1.audit.fw-a.flush.more", receipt, "names no author")
	f("ct.v1.audit.responder.decision", &events.Decision{Rule: "r"}, "")
	f("ct.v1.audit.responder.decision", receipt, "rule")
	f("ct.v1.audit.operator.circuit", &events.Act{Verb: "circuit"}, "")
	f("ct.v1.audit.operator.circuit", receipt, "verb")
}

// TestWho: who an act says did it is not believed; the key says so.
func TestWho(t *testing.T) {
	act := &events.Act{Verb: "allowlist", Key: "198.18.0.0/24", Who: "alice"}
	if e, err := read(t, "ct.v1.audit.operator.allowlist", act); err != nil || e.Act.Who != "" {
		t.Errorf("%+v: %v", e.Act, err)
	}
}

func TestConcerns(t *testing.T) {
	a, b := netip.MustParseAddr("198.18.0.7"), netip.MustParseAddr("198.18.1.7")
	f := func(e Entry, key, firewall string, want bool) {
		t.Helper()
		if e.Concerns(key, firewall) != want {
			t.Errorf("%+v: %q, %q: want %t", e, key, firewall, want)
		}
	}
	receipt := Entry{Actor: "fw-a", Receipt: &events.Receipt{Firewall: "fw-a", Addresses: []string{"198.18.0.0/24", "2001:db8::7"}}}
	f(receipt, "", "", true)
	f(receipt, "2001:db8::7", "fw-a", true)
	f(receipt, "2001:db8::7", "fw-b", false)
	f(receipt, "198.18.0.7", "", false)
	decision := Entry{Actor: "responder", Decision: &events.Decision{Key: "203.0.113.4", Address: "198.18.0.7", Firewalls: []string{"fw-a", "fw-b"}}}
	f(decision, "203.0.113.4", "fw-b", true)
	f(decision, "198.18.0.7", "fw-c", false)
	act := Entry{Actor: "operator", Act: &events.Act{Key: "198.18.0.7"}}
	f(act, "198.18.0.7", "", true)
	f(act, "198.18.0.7", "fw-a", false)
	for _, e := range []*Entry{&receipt, &decision, &act} {
		if !e.Covers(a) || e.Covers(b) {
			t.Errorf("%+v: covers %s %t, %s %t", e, a, e.Covers(a), b, e.Covers(b))
		}
	}
	if table := (Entry{Decision: &events.Decision{Key: events.KeyTable}}); table.Covers(a) {
		t.Error("a table is no address")
	}
}

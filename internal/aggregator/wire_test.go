package aggregator

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"flag"
	"io"
	"os"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vmihailenco/msgpack/v5"

	"github.com/ctfleet/ctfleet/internal/count"
	"github.com/ctfleet/ctfleet/internal/recording"
	"github.com/ctfleet/ctfleet/pkg/events"
)

var update = flag.Bool("update", false, "write the golden recording that is missing")

const (
	// goldenFleet is what two firewalls that run wire version 1 publish: a dump each and
	// live batches, with IPv4 and IPv6, NAT, zones and counters.
	goldenFleet = "testdata/fleet-v1.rec"
	// goldenDigest is the SHA-256 of that file, which is never written again: firewalls that are not
	// upgraded yet write just this, so that changing the file changes nothing out there.
	goldenDigest = "0594b30a4a14901e"
	goldenHealth = "../../pkg/events/testdata/messages-v1/Health.msgpack"
)

// recordGolden writes the golden recording.
func recordGolden(t *testing.T) {
	t.Helper()
	var out bytes.Buffer
	w, err := recording.NewWriter(&out)
	if err != nil {
		t.Fatal(err)
	}
	tuple := func(src, dst uint64, dport uint16) events.Tuple {
		return events.Tuple{Src: events.Addr{Lo: 0xc0000200 | src}, Dst: events.Addr{Lo: 0xc6336400 | dst}, SrcPort: 40000, DstPort: dport}
	}
	at := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	put := func(h events.Header, evs ...events.Event) {
		h.Realm, h.Boot, h.Epoch, h.Clean = "default", events.Boot{h.Firewall[3], 1}, 1, true
		h.Sent = int64(h.Seq) * 1e9
		subject := events.EventsSubject(h.Firewall)
		if h.Phase != events.Live {
			subject = events.SnapshotsSubject(h.Firewall)
		}
		var b events.BatchWriter
		for i := range evs {
			evs[i].Time = h.Sent - 1e6
			if err := b.Append(&evs[i]); err != nil {
				t.Fatal(err)
			}
		}
		data, err := b.Encode(&h)
		if err == nil {
			err = w.Write(recording.Message{Time: at, Subject: subject, Data: data})
		}
		if err != nil {
			t.Fatal(err)
		}
		at = at.Add(10 * time.Millisecond)
	}
	for _, name := range []string{"fw-a", "fw-b"} {
		put(events.Header{Firewall: name, Seq: 1})
		held := events.Event{Type: events.Existing, Proto: 6, ID: 1, Orig: tuple(1, 1, 443)}
		put(events.Header{Firewall: name, Seq: 1, After: 1, Phase: events.SnapshotPart | events.SnapshotBegin | events.SnapshotEnd}, held, held, held)
		var evs []events.Event
		for i := range uint32(30) {
			e := events.Event{Type: events.New, Proto: 17, ID: 10 + i, Orig: tuple(1, uint64(i), 53)}
			if i%3 == 0 {
				e.NAT, e.Status, e.Reply = true, events.StatusSrcNAT, tuple(2, 3, 61000)
			}
			evs = append(evs, e)
		}
		put(events.Header{Firewall: name, Seq: 2}, evs...)
		var ends []events.Event
		for i := range uint32(10) {
			e := events.Event{Type: events.Destroy, Proto: 17, ID: 10 + i, Orig: tuple(1, uint64(i), 53), HasCounters: true, Counters: events.Counters{OrigPackets: 3, OrigBytes: 300}}
			if i%2 == 0 {
				e.Status = events.StatusSeenReply
			}
			ends = append(ends, e)
		}
		v6 := events.Event{Type: events.New, Proto: 6, IPv6: true, ID: 99, Orig: events.Tuple{Src: events.Addr{Hi: 0x20010db8 << 32, Lo: 7}, Dst: events.Addr{Hi: 0x20010db8 << 32, Lo: 8}, DstPort: 22}}
		zoned := events.Event{Type: events.New, Proto: 6, ID: 98, Zone: 7, Orig: tuple(1, 1, 443)}
		put(events.Header{Firewall: name, Seq: 3, Total: 30}, append(ends, v6, v6, zoned)...)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(goldenFleet, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if os.IsExist(err) {
		return // written once, and never again
	}
	if err == nil {
		_, err = f.Write(out.Bytes())
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestPreviousWireVersion: in the midst of an upgrade the batches of firewalls that are
// not upgraded yet are counted exactly, through a real server; a version that nobody
// knows is refused and counted; keys that nobody knows are skipped.
func TestPreviousWireVersion(t *testing.T) {
	if *update {
		recordGolden(t)
	}
	file, err := os.ReadFile(goldenFleet)
	if err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(file); hex.EncodeToString(sum[:8]) != goldenDigest {
		t.Fatalf("%s is %x, and was frozen as %s", goldenFleet, sum[:8], goldenDigest)
	}
	r := newBusRig(t, "rules: []\n")
	in, err := recording.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	for {
		var m recording.Message
		if err := in.Next(&m); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		// As it is, and, from one firewall, with a key that came later.
		if m.Subject == events.EventsSubject("fw-b") {
			m.Data = withKey(t, m.Data)
		}
		r.publish(m.Subject, m.Data)
	}
	health, err := os.ReadFile(goldenHealth)
	if err != nil {
		t.Fatal(err)
	}
	r.publish(events.HealthSubject("fw-a"), health)
	r.until("all is counted", func() bool { return r.counted("fw-a") == 43 && r.counted("fw-b") == 43 })

	r.until("both dumps are complete", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.counter.Unknown(count.Place{Realm: events.RealmDefault})) == 0
	})
	top := func(q events.TopQuery, want map[string]uint64) {
		t.Helper()
		reply, err := r.Top(&q)
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]uint64{}
		for _, row := range reply.Rows {
			got[row.Key] = row.Value
			if q.Realm == "" && (row.Firewalls["fw-a"] != row.Value/2 || row.Firewalls["fw-b"] != row.Value/2) {
				t.Errorf("%+v: shares of %s are %v of %d", q, row.Key, row.Firewalls, row.Value)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%+v: %v, want %v", q, got, want)
		}
		for k, n := range want {
			if got[k] != n {
				t.Errorf("%+v: %s has %d, want %d", q, k, got[k], n)
			}
		}
	}
	top(events.TopQuery{WindowS: 60}, map[string]uint64{"192.0.2.1": 60, "2001:db8::7": 4})
	top(events.TopQuery{WindowS: 60, Metric: events.MetricUnreplied}, map[string]uint64{"192.0.2.1": 10})
	top(events.TopQuery{Metric: events.MetricActive}, map[string]uint64{"192.0.2.1": 2 * (3 + 30 - 10), "2001:db8::7": 4})
	top(events.TopQuery{WindowS: 60, Realm: "default_z7"}, map[string]uint64{"192.0.2.1": 2})
	r.until("the health has come", func() bool {
		all := r.Firewalls().Firewalls
		return len(all) == 1 && all[0].Firewall == "fw-a" && all[0].Table.Count == 50_000 && all[0].Labels["site"] == "lis1"
	})
	if n := r.refusals(kindVersion) + r.refusals("batch") + r.refusals("health"); n != 0 {
		t.Errorf("%v messages were refused", n)
	}

	// A version of the future.
	var batch []byte
	again, err := recording.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var m recording.Message
	if err := again.Next(&m); err != nil {
		t.Fatal(err)
	}
	batch = m.Data
	r.publish(events.EventsSubject("fw-a"), ofVersion(t, batch, 2))
	r.publish(events.HealthSubject("fw-a"), ofVersion(t, health, 2))
	r.until("both are refused and counted", func() bool { return r.refusals(kindVersion) == 2 })
	if all := r.Firewalls().Firewalls; all[0].Refused != 1 {
		t.Errorf("fw-a's account says %d were refused, want 1", all[0].Refused)
	}
	if r.counted("fw-a") != 43 {
		t.Error("something of it was counted")
	}
}

// refusals reads the metric of messages that were refused.
func (r *busRig) refusals(kind string) float64 {
	r.t.Helper()
	return metricOf(r.t, r.reg, "ctfleet_aggregator_refused_messages_total", kind)
}

func metricOf(t *testing.T, reg *prometheus.Registry, name, label string) float64 {
	t.Helper()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			if m.GetLabel()[0].GetValue() == label {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// withKey adds a key to a message that no version of today knows.
func withKey(t *testing.T, data []byte) []byte {
	t.Helper()
	return rewrite(t, data, func(enc *msgpack.Encoder, n int) error {
		if err := enc.EncodeMapLen(n + 1); err != nil {
			return err
		}
		return enc.EncodeMulti("of_a_later_program", map[string]any{"nested": []any{1, "two", nil}})
	})
}

// rewrite replaces the head of a map; what follows stays.
func rewrite(t *testing.T, data []byte, head func(enc *msgpack.Encoder, n int) error) []byte {
	t.Helper()
	in := bytes.NewReader(data)
	n, err := msgpack.NewDecoder(in).DecodeMapLen()
	if err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(in)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := head(msgpack.NewEncoder(&out), n); err != nil {
		t.Fatal(err)
	}
	return append(out.Bytes(), rest...)
}

// ofVersion sets the version of a message, which is its first key.
func ofVersion(t *testing.T, data []byte, version byte) []byte {
	t.Helper()
	key := []byte{0xa1, 'v'} // msgpack: a text of one byte
	i := bytes.Index(data, key)
	if i < 0 || data[i+2] != 1 {
		t.Fatalf("there is no version 1 in % x", data[:16])
	}
	out := bytes.Clone(data)
	out[i+2] = version
	return out
}

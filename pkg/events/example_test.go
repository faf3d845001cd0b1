package events_test

import (
	"fmt"
	"log"
	"net/netip"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/ctfleet/ctfleet/pkg/events"
)

// Follow alerts: subscribe, decode, act.
func ExampleUnmarshal() {
	ns := startServer()
	defer ns.Shutdown()

	nc, err := nats.Connect(ns.ClientURL())
	if err != nil {
		log.Fatal(err)
	}
	defer nc.Close()
	alerts, err := nc.SubscribeSync(events.SubjectAlerts + ".firing.>")
	if err != nil {
		log.Fatal(err)
	}
	publishAlert(nc)

	msg, err := alerts.NextMsg(5 * time.Second)
	if err != nil {
		log.Fatal(err)
	}
	var alert events.Alert
	if err := events.Unmarshal(msg.Data, &alert); err != nil {
		log.Fatal(err)
	}
	fmt.Println(alert.Rule, alert.Key, alert.Value)
	// Output: new-flows-by-source 203.0.113.7 4001
}

func startServer() *server.Server {
	ns, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		log.Fatal(err)
	}
	ns.Start()
	if !ns.ReadyForConnections(10 * time.Second) {
		log.Fatal("the server does not come up")
	}
	return ns
}

func publishAlert(nc *nats.Conn) {
	alert := events.Alert{
		ID: "0123abcd", Rule: "new-flows-by-source", State: events.Firing, Severity: "critical", Scope: events.ScopeFleet,
		Realm: events.RealmDefault, Key: "203.0.113.7", Track: "by_src", Metric: events.MetricNew, Value: 4001, Count: 3500, Seconds: 10,
	}
	data, err := events.Marshal(&alert)
	if err != nil {
		log.Fatal(err)
	}
	key := events.SubjectKey(netip.MustParsePrefix(alert.Key + "/32"))
	if err := nc.Publish(events.AlertSubject(alert.State, alert.Rule, alert.Scope, key), data); err != nil {
		log.Fatal(err)
	}
}

// Read a batch of events, as a subscriber of ct.v1.events.> does.
func ExampleDecoder() {
	data := encodeBatch()

	var dec events.Decoder
	var batch events.Batch
	if err := dec.Decode(data, &batch); err != nil {
		log.Fatal(err)
	}
	fmt.Println(batch.Firewall, "sent", batch.Count, "events")
	var e events.Event
	for r := batch.Events(); r.Next(&e); {
		fmt.Println(e.Type, e.Src(), "->", e.Dst(), e.Orig.DstPort)
	}
	// Output:
	// fw-a sent 1 events
	// NEW 192.0.2.10 -> 198.51.100.1 443
}

func encodeBatch() []byte {
	src, _ := events.FromNetip(netip.MustParseAddr("192.0.2.10"))
	dst, _ := events.FromNetip(netip.MustParseAddr("198.51.100.1"))
	var w events.BatchWriter
	if err := w.Append(&events.Event{
		Type: events.New, Proto: 6, Orig: events.Tuple{Src: src, Dst: dst, SrcPort: 40000, DstPort: 443},
	}); err != nil {
		log.Fatal(err)
	}
	data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: events.RealmDefault, Seq: 1, Epoch: 1})
	if err != nil {
		log.Fatal(err)
	}
	return data
}

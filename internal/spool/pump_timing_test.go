package spool

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/ctfleet/ctfleet/internal/bus"
	"github.com/ctfleet/ctfleet/internal/bus/embedded"
	"github.com/ctfleet/ctfleet/pkg/events"
)

// BenchmarkPump is the way of a batch of 512 events from the ring to its
// acknowledgement. What it allocates is nats.go's.
func BenchmarkPump(b *testing.B) {
	s, err := embedded.Start(embedded.Config{Listen: "127.0.0.1:0", Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	conn, err := bus.Connect(bus.Config{Flags: bus.Flags{NATSURL: s.URL()}, Role: "producer", Name: "fw-a", Direct: true})
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Bootstrap(b.Context(), bus.Limits{EventsAge: time.Minute, EventsBytes: 64 << 20, Memory: true}, false); err != nil {
		b.Fatal(err)
	}
	pub, err := conn.NewPublisher(events.EventsSubject("fw-a"))
	if err != nil {
		b.Fatal(err)
	}
	defer pub.Close()
	p := &Pump{Ring: NewRing(8 << 20), Account: &Account{}, Bus: pub, Firewall: "fw-a", Boot: events.Boot{1}, Now: func() int64 { return time.Now().UnixNano() }, Log: slog.New(slog.DiscardHandler)}
	var w events.BatchWriter
	for i := range 512 {
		if err := w.Append(&events.Event{Type: events.New, Proto: 17, ID: uint32(i)}); err != nil {
			b.Fatal(err)
		}
	}
	data, err := w.Encode(&events.Header{Firewall: "fw-a", Realm: events.RealmDefault})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = p.Run(ctx) })
	b.ReportAllocs()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		for !p.Ring.Offer(data, 512) {
			<-p.Ring.Room()
		}
	}
	for !p.Ring.Empty() {
		time.Sleep(time.Millisecond)
	}
	b.StopTimer()
	cancel()
	wg.Wait()
}
